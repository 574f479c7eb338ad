"""A purge takes bytes out of the store for good, and leaves everything else as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import delta
from pipelines.commits import commit_images, commit_labels
from pipelines.duplicates import find_duplicates
from pipelines.importing import StrictIngestError
from pipelines.maintenance import verify
from pipelines.purging import purge_images
from pipelines.revisions import diff, remove_images, roll_back
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.sources import open_source
from pipelines.storage import Store
from pipelines.versions import DatasetNotFound, EmptyDataset, open_dataset
from tests.making import LABEL_MAP, coco_document, coco_images, commit_records, record, write_coco
from workers.ingest import ingest


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """20 images of two splits in one shard, and 5 in another; the label set ``other`` has some of the first."""
    first = [record(i, split="train" if i < 12 else "val") for i in range(20)]
    commit_records(tmp_path / "d", first, plan_id="one")
    commit_records(tmp_path / "d", [record(i, prefix="b") for i in range(30, 35)], plan_id="two")
    label_again(tmp_path / "d", first, "other", rows=slice(3, 9))
    return str(tmp_path / "d")


def label_again(uri: Path, records: list, label_set: str, rows: slice) -> None:
    store = Store.open(uri)
    image_file = write_image_shard(store, records)
    file = write_label_shard(store, label_set, image_file.path, label_rows(records)[rows])
    images = commit_images(store.uri, [image_file], plan_id="one")
    commit_labels(
        store.uri, label_set, [file], plan_id=label_set, label_map=LABEL_MAP, images_version=images, ledger={}
    )


def rows(reference: str) -> dict[str, tuple]:
    return {
        r.image_id: (r.image, r.split, None if r.annotations is None else r.annotations.boxes_xywh.tolist(), r.extra)
        for r in open_dataset(reference).records()
    }


def without(found: dict[str, tuple], *ids: str) -> dict[str, tuple]:
    return {i: values for i, values in found.items() if i not in ids}


def holds(uri: str, image: bytes) -> bool:
    return any(image in path.read_bytes() for path in Path(uri).rglob("*.parquet"))


def test_the_bytes_are_gone_and_nothing_else(dataset: str):
    gt, other = rows(dataset), rows(f"{dataset}@labels/other")
    kept = open_dataset(dataset).shards[1 if open_dataset(dataset).shards[0].rows == 20 else 0].image_path
    assert holds(dataset, record(5).image)
    done = purge_images(dataset, ["a/5.jpg", "a/12.jpg"])
    assert not holds(dataset, record(5).image) and not holds(dataset, record(12).image)
    assert rows(dataset) == without(gt, "a/5.jpg", "a/12.jpg")
    assert rows(f"{dataset}@labels/other") == without(other, "a/5.jpg")
    assert done.image_ids == ("a/12.jpg", "a/5.jpg") and len(done.shards) == 1 and set(done.versions) == {"gt", "other"}
    opened = open_dataset(done.versions["gt"])
    assert (opened.num_images, opened.splits) == (23, {"train": 16, "val": 7})
    assert opened.num_objects == sum(len(a) for *_, a in opened.annotations())
    assert opened.read("a/13.jpg").image == record(13).image
    for label_set in ("gt", "other"):
        assert verify(f"{dataset}@labels/{label_set}") == []
    assert kept in {shard.image_path for shard in opened.shards}
    assert diff(f"{dataset}@labels/gt:2", dataset).removed == ("a/12.jpg", "a/5.jpg")
    assert {len(group.splits) for group in opened.row_groups()} == {1}


def test_removed_images_have_bytes_until_they_are_purged(dataset: str):
    remove_images(dataset, ["a/15.jpg"])
    assert holds(dataset, record(15).image)
    before = rows(dataset)
    purge_images(dataset, ["a/15.jpg"])
    assert not holds(dataset, record(15).image) and rows(dataset) == before
    with pytest.raises(ValueError, match=r"no image 'a/15\.jpg' \(1 of 2 missing\)"):
        purge_images(dataset, ["a/15.jpg", "a/16.jpg"])
    assert rows(dataset) == before


def test_a_whole_shard_and_then_everything(dataset: str):
    purge_images(dataset, [f"b/{i}.jpg" for i in range(30, 35)])
    assert len(open_dataset(dataset).shards) == 1
    purge_images(dataset, [f"a/{i}.jpg" for i in range(20)])
    with pytest.raises(EmptyDataset):
        open_dataset(dataset)
    assert not list(Path(dataset).glob("images/part-*")) + list(Path(dataset).glob("images/_index/*"))
    with pytest.raises(DatasetNotFound):
        purge_images(f"{dataset}-no", ["a"])


def test_roll_back_does_not_bring_purged_images_back(dataset: str):
    gt = rows(dataset)
    purge_images(dataset, ["a/5.jpg"])
    purge_images(dataset, ["a/6.jpg"])
    back = roll_back(f"{dataset}@labels/gt:2")
    assert rows(back.reference) == without(gt, "a/5.jpg", "a/6.jpg")
    only = roll_back(f"{dataset}@labels/gt:1")
    assert len(rows(only.reference)) == only.num_images == 18
    assert verify(dataset) == []


@pytest.mark.usefixtures("in_this_process")
def test_what_was_never_committed_is_purged_as_well(tmp_path: Path):
    """A refused ingest, then one of the source as it is now: both have written the image."""
    document, images, uri = coco_document(3), coco_images(3), str(tmp_path / "d")
    document["annotations"][0]["bbox"] = [20, 2, 15, 6]  # leaves the image
    refused = open_source("coco", **write_coco(tmp_path / "one", "train", document, images))
    with pytest.raises(StrictIngestError):
        ingest(refused, uri, strict=True)
    fewer = {name: images[name] for name in ("1.jpg", "2.jpg")}
    ingest(open_source("coco", **write_coco(tmp_path / "two", "train", coco_document(2), fewer)), uri)
    told = purge_images(uri, ["1.jpg"], dry_run=True)
    assert len(told.uncommitted) == 1 and len(told.shards) == 2 and holds(uri, images["3.jpg"])
    done = purge_images(uri, ["1.jpg"])
    assert (done.uncommitted, set(done.shards)) == (told.uncommitted, set(told.shards))
    assert not holds(uri, images["1.jpg"]) and not holds(uri, images["3.jpg"]) and holds(uri, images["2.jpg"])
    assert verify(uri) == [] and len(list(Path(uri).glob("_jobs/*/plan.parquet"))) == 1
    assert ingest(refused, uri, label_set="new").num_images == 3 and verify(f"{uri}@labels/new") == []


@pytest.mark.usefixtures("in_this_process")
def test_an_image_that_only_a_refused_ingest_has_written_can_be_purged(dataset: str, tmp_path: Path):
    document, images, before = coco_document(2, first_id=61), coco_images(2, first_id=61), rows(dataset)
    document["annotations"][0]["bbox"] = [20, 2, 15, 6]
    source = open_source("coco", **write_coco(tmp_path / "one", "train", document, images))
    with pytest.raises(StrictIngestError):
        ingest(source, dataset, label_set="new", strict=True)
    assert holds(dataset, images["62.jpg"])
    done = purge_images(dataset, ["62.jpg"])
    assert done.shards == done.uncommitted and len(done.shards) == 1 and done.versions == {}
    assert not holds(dataset, images["62.jpg"]) and rows(dataset) == before
    assert delta.newest_version(Store.open(dataset).sub("images")) == 2


def test_copies_are_told(tmp_path: Path):
    twin = replace(record(3), image_id="twin.jpg")
    version = commit_records(tmp_path, [record(3), record(4), twin], plan_id="p")
    assert [d.image_id for d in find_duplicates(open_dataset(version.reference))] == ["twin.jpg"]
    assert purge_images(str(tmp_path), ["a/3.jpg"]).copies == ("twin.jpg",)


def test_purged_images_may_come_again(dataset: str):
    purge_images(dataset, ["b/31.jpg"])
    commit_records(dataset, [replace(record(31, prefix="b"))], plan_id="three")
    assert "b/31.jpg" in rows(dataset) and verify(dataset) == []


def test_labels_of_an_old_shard_that_are_committed_late_are_moved(dataset: str):
    from pipelines.label_commits import settle

    shard = [record(i, split="train" if i < 12 else "val") for i in range(20)]
    store = Store.open(dataset)
    stem = next(s for s in open_dataset(dataset).shards if s.rows == 20).image_path
    file = write_label_shard(store, "late", stem, label_rows(shard)[2:8])
    purge_images(dataset, ["a/5.jpg"])
    commit_labels(dataset, "late", [file], plan_id="late", label_map=LABEL_MAP, images_version=1, ledger={})
    assert settle(store, "late") is not None
    assert sorted(rows(f"{dataset}@labels/late")) == ["a/2.jpg", "a/3.jpg", "a/4.jpg", "a/6.jpg", "a/7.jpg"]
    assert settle(store, "late") is None


def test_purges_removals_and_commits_at_once(dataset: str):
    def purge(i: int) -> None:
        purge_images(dataset, [f"a/{i}.jpg"])

    def append(i: int) -> None:
        commit_records(dataset, [record(i, prefix="c")], plan_id=f"c{i}")

    def remove(i: int) -> None:
        remove_images(dataset, [f"a/{i}.jpg"])

    work = [(purge, 1), (purge, 2), (purge, 13), (append, 1), (append, 2), (remove, 8), (remove, 14)]
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(do, i) for do, i in work]:
            done.result()
    gone = {f"a/{i}.jpg" for i in (1, 2, 13, 8, 14)}
    expected = {f"a/{i}.jpg" for i in range(20)} | {f"b/{i}.jpg" for i in range(30, 35)} | {"c/1.jpg", "c/2.jpg"}
    assert set(rows(dataset)) == expected - gone
    assert verify(dataset) == [] and not holds(dataset, record(13).image)
