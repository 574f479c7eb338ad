from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.exports.coco import export_coco
from pipelines.sources import open_source
from pipelines.versions import EmptyDataset
from tests.making import coco_document, coco_images, commit_records, record, write_coco
from workers.ingest import ingest


def test_repeated_ids_are_numbered_anew(tmp_path: Path) -> None:
    records = [replace(record(i), coco_image_id=5) for i in (1, 2, 3)]
    version = commit_records(tmp_path / "d", records, plan_id="p")
    exported = export_coco(version.reference, str(tmp_path / "out"))
    found = json.loads(Path(exported.files["train"]).read_text())
    assert [i["id"] for i in found["images"]] == [1, 2, 3]
    # Every record numbers its objects from 1.
    assert [(a["id"], a["image_id"]) for a in found["annotations"]] == [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 3)]
    assert [i["file_name"] for i in found["images"]] == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]


def test_splits_that_number_alike_get_their_own_ids_back(tmp_path: Path) -> None:
    documents = {"train": coco_document(2), "val": coco_document(3)}
    splits = {s: write_coco(tmp_path, s, d, coco_images(len(d["images"]))) for s, d in documents.items()}
    version = ingest(open_source("coco", splits=splits), str(tmp_path / "d"))
    exported = export_coco(version.reference, str(tmp_path / "out"), images=True)
    for split, document in documents.items():
        found = json.loads(Path(exported.files[split]).read_text())
        assert found["images"] == document["images"]
        assert found["annotations"] == document["annotations"]
        assert (tmp_path / "out" / split / "2.jpg").read_bytes() == coco_images(2)["2.jpg"]


def test_category_ids_with_gaps_and_zero_are_kept(tmp_path: Path) -> None:
    version = commit_records(tmp_path / "d", [record(3)], plan_id="p")
    exported = export_coco(version.reference, str(tmp_path / "out"))
    found = json.loads(Path(exported.files["train"]).read_text())
    assert [c["id"] for c in found["categories"]] == [0, 7]
    assert [a["category_id"] for a in found["annotations"]] == [0, 7, 0]


def test_an_unlabelled_image_has_no_annotations(tmp_path: Path) -> None:
    version = commit_records(tmp_path / "d", [record(6)], plan_id="p")
    exported = export_coco(version.reference, str(tmp_path / "out"))
    assert (exported.num_images, exported.num_objects) == (1, 0)


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("../x.jpg", "/etc/x.jpg", "a/../../x.jpg")):
        uri = tmp_path / f"d{number}"
        version = commit_records(uri, [replace(record(1), image_id=name)], plan_id="p")
        with pytest.raises(ValueError, match="leaves the export's folder"):
            export_coco(version.reference, str(tmp_path / "out"), images=True)


def test_unknown_splits_are_named(tmp_path: Path) -> None:
    version = commit_records(tmp_path / "d", [record(1)], plan_id="p")
    with pytest.raises(EmptyDataset, match=r"no split \['test'\]; it has \['train'\]"):
        export_coco(version.reference, str(tmp_path / "out"), splits=["test"])
