"""A plan that was rolled back can be ingested again, and is found only where its rows are."""

from __future__ import annotations

from pathlib import Path

from pipelines.lineage import lineage, plan_ids
from pipelines.revisions import remove_images, roll_back
from pipelines.sources import open_source
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest


def source(folder: Path, split: str, first_id: int):
    document = coco_document(2, first_id=first_id)
    return open_source("coco", **write_coco(folder, split, document, coco_images(2, first_id=first_id)))


def ids(reference: str) -> list[str]:
    return sorted(open_dataset(reference).index()["image_id"].to_pylist())


def test_a_plan_that_was_rolled_back_is_ingested_again(tmp_path: Path):
    uri = str(tmp_path / "d")
    one, two = source(tmp_path, "train", 1), source(tmp_path, "val", 11)
    first, second = ingest(one, uri), ingest(two, uri)
    assert ingest(two, uri).found and ids(uri) == ["1.jpg", "11.jpg", "12.jpg", "2.jpg"]
    back = roll_back(first.reference)
    assert ids(uri) == ["1.jpg", "2.jpg"]
    again = ingest(two, uri)
    assert not again.found and again.reference not in (second.reference, back.reference)
    assert again.digest == second.digest and ids(again.reference) == ids(second.reference) == ids(uri)
    found = ingest(two, uri)
    assert found.found and found.reference == again.reference
    assert ingest(one, uri).reference == first.reference
    # And once more: the second commit is rolled back as well.
    roll_back(first.reference)
    third = ingest(two, uri)
    assert not third.found and third.digest == second.digest
    roll_back(second.reference)
    assert ingest(two, uri).found


def test_lineage_leaves_out_what_was_rolled_back(tmp_path: Path):
    uri = str(tmp_path / "d")
    first = ingest(source(tmp_path, "train", 1), uri)
    ingest(source(tmp_path, "val", 11), uri)
    remove_images(uri, ["1.jpg"])
    roll_back(first.reference)
    table = Store.open(uri).sub("labels", "gt")
    assert [commit.version for commit in lineage(table)] == [4, 1]
    assert [commit.version for commit in lineage(table, 3)] == [3, 2, 1]
    assert len(plan_ids(table)) == 1 and len(plan_ids(table, 3)) == 2
