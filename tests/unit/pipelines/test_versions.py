from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

import pipelines.commits
import pipelines.shards
from pipelines import open_dataset
from pipelines.records import Category, LabelMap
from pipelines.versions import (
    CategoryMismatch,
    DatasetNotFound,
    DuplicateImages,
    EmptyDataset,
    NewerSchema,
    commit_labels,
    find_version,
    parse_reference,
)
from tests.making import LABEL_MAP, commit_records, record


@pytest.mark.parametrize(
    ("text", "uri", "label_set", "version"),
    [
        ("s3://b/d", "s3://b/d", "gt", None),
        ("s3://b/d@labels/gt:12", ["s3://b/d", "labels/gt:12"][0], "gt", 12),
        ("/a@b/d@labels/net-1.2", "/a@b/d", "net-1.2", None),
        ("/a@b/d", "/a@b/d", "gt", None),
    ],
)
def test_references(text: str, uri: str, label_set: str, version: int | None) -> None:
    found = parse_reference(text)
    assert (found.uri, found.label_set, found.version) == (uri, label_set, version)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize("text", ["", "/d@labels/a b", "/d@labels/-x"])
def test_bad_references(text: str) -> None:
    with pytest.raises(ValueError, match="reference"):
        parse_reference(text)


def test_versions_stay_what_they_were(tmp_path: Path) -> None:
    first = commit_records(tmp_path, [record(i) for i in range(10)], plan_id="one")
    second = commit_records(tmp_path, [record(i, split="val") for i in range(10, 14)], plan_id="two")
    assert [first.num_images, second.num_images] == [10, 14]
    assert second.splits == {"train": 10, "val": 4}
    old, new = open_dataset(first.reference), open_dataset(str(tmp_path))
    assert (old.num_images, old.digest) == (10, first.digest)
    assert (new.reference, new.digest, new.num_objects) == (second.reference, second.digest, second.num_objects)
    assert old.metadata["plan_id"] == "one"
    assert sum(1 for _ in old.records()) == 10
    assert new.metadata["ledger"]["images"]["imported"] == 14
    assert [c.metadata["plan_id"] for c in new.history()] == ["two", "one"]
    assert [c.metadata["plan_id"] for c in old.history()] == ["one"]
    assert pickle.loads(pickle.dumps(new)).shards == new.shards


def test_a_plan_is_committed_once(tmp_path: Path) -> None:
    records = [record(i) for i in range(3)]
    first = commit_records(tmp_path, records, plan_id="one")
    again = commit_records(tmp_path, records, plan_id="one")
    assert again.found and not first.found
    assert (again.reference, again.digest) == (first.reference, first.digest)
    assert find_version(str(tmp_path), "gt", "one") == again
    assert find_version(str(tmp_path), "gt", "other") is None
    assert find_version(str(tmp_path / "no"), "gt", "one") is None


def test_opening_reads_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_records(tmp_path, [record(i) for i in range(10)], plan_id="one")
    for data in (tmp_path / "images").glob("*.parquet"):
        data.unlink()
    for data in (tmp_path / "labels/gt").glob("*.parquet"):
        data.unlink()
    dataset = open_dataset(str(tmp_path))
    assert (dataset.num_images, dataset.splits, len(dataset.shards)) == (10, {"train": 10}, 1)
    assert dataset.label_map == LABEL_MAP


def test_index_and_annotations_read_no_image_file(tmp_path: Path) -> None:
    records = [record(i, split="train" if i < 9 else "val") for i in range(12)]
    commit_records(tmp_path, records, plan_id="one")
    for data in (tmp_path / "images").glob("*.parquet"):
        data.unlink()
    dataset = open_dataset(str(tmp_path))
    index = dataset.index()
    assert index["image_id"].to_pylist() == [r.image_id for r in records]
    counts = [0 if r.annotations is None else len(r.annotations) for r in records]
    assert index["num_objects"].to_pylist() == counts
    assert index.schema.field("shard").type == pa.int32()
    assert dataset.index(["val"])["image_id"].to_pylist() == [r.image_id for r in records[9:]]
    found = list(dataset.annotations(["train"]))
    assert [f[0] for f in found] == [r.image_id for r in records[:9] if r.annotations is not None]
    assert found[0][1:4] == (0, 24, 16)


def test_errors_name_the_way_out(tmp_path: Path) -> None:
    commit_records(tmp_path / "shapes", [record(0)], plan_id="one")
    with pytest.raises(DatasetNotFound, match=r"did you mean .*/shapes\?"):
        open_dataset(str(tmp_path / "shape"))
    with pytest.raises(DatasetNotFound, match="no label set 'net'; it has gt"):
        open_dataset(f"{tmp_path}/shapes@labels/net")
    with pytest.raises(DatasetNotFound, match="versions 1 to 1, not 5"):
        open_dataset(f"{tmp_path}/shapes@labels/gt:5")
    with pytest.raises(EmptyDataset):
        open_dataset(f"{tmp_path}/shapes@labels/gt:0")


def test_what_may_not_be_appended(tmp_path: Path) -> None:
    commit_records(tmp_path, [record(i) for i in range(3)], plan_id="one")
    with pytest.raises(DuplicateImages, match=r"a/2\.jpg"):
        commit_records(tmp_path, [record(2), record(3)], plan_id="two")
    other = LabelMap(categories=(Category(category_id=1, name="cat"),))
    file = pipelines.shards.ShardFile(path="labels/gt/x.y.parquet", size=1, rows=1)
    with pytest.raises(CategoryMismatch, match="cat"):
        commit_labels(str(tmp_path), "gt", [file], plan_id="3", label_map=other, images_version=1, ledger={})
    with pytest.raises(ValueError, match="holds truth, not predictions"):
        commit_labels(
            str(tmp_path),
            "gt",
            [file],
            plan_id="4",
            label_map=LABEL_MAP,
            images_version=1,
            ledger={},
            kind="predictions",
        )
    with pytest.raises(EmptyDataset):
        commit_labels(str(tmp_path), "gt", [], plan_id="5", label_map=LABEL_MAP, images_version=1, ledger={})
    assert open_dataset(str(tmp_path)).num_images == 3


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.commits, "SCHEMA_VERSION", 99)
    version = commit_records(tmp_path, [record(0)], plan_id="one")
    with pytest.raises(NewerSchema, match="99"):
        open_dataset(version.reference)


def test_other_readers_understand_both_tables(tmp_path: Path) -> None:
    records = [record(i) for i in range(10)]
    commit_records(tmp_path, records, plan_id="one")
    builder = QueryBuilder()
    builder.register("images", DeltaTable(str(tmp_path / "images")))
    builder.register("labels", DeltaTable(str(tmp_path / "labels/gt")))
    query = (
        "SELECT l.image_id, l.objects['bbox'] AS bbox, i.image['bytes'] AS image FROM labels l "
        "JOIN images i ON i.image_id = l.image_id ORDER BY l.row"
    )
    rows = pa.table(builder.execute(query).read_all()).to_pylist()
    assert [row["image"] for row in rows] == [r.image for r in records]
    expected = [None if r.annotations is None else r.annotations.boxes_xywh.tolist() for r in records]
    assert [row["bbox"] for row in rows] == expected


def test_commit_metadata_is_plain_json(tmp_path: Path) -> None:
    commit_records(tmp_path, [record(0)], plan_id="one")
    lines = (tmp_path / "labels/gt/_delta_log/00000000000000000001.json").read_text().splitlines()
    (found,) = [json.loads(line)["commitInfo"] for line in lines if "commitInfo" in line]
    metadata = json.loads(found["boxmill"])
    assert metadata["categories"] == LABEL_MAP.to_json()
    assert {"schema_version", "images_version", "plan_id", "ledger", "digest", "kind", "provenance"} <= set(metadata)
