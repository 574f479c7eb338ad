from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.exports import find_export
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


def test_categories_are_given_back_with_what_is_empty_or_missing(tmp_path: Path) -> None:
    document = coco_document(2)
    ways: list[dict[str, Any]] = [
        {"keypoints": [], "skeleton": []},
        {"keypoints": ["nose", "tail"]},
        {"keypoints": None},
        {"skeleton": []},
        {"keypoints": ["nose", "tail"], "skeleton": []},
        {},
    ]
    document["categories"] = [{"supercategory": "", **c} for c in document["categories"]] + [
        {"supercategory": "animal", "id": 900 + i, "name": f"way {i}", **way} for i, way in enumerate(ways)
    ]
    source = open_source("coco", **write_coco(tmp_path, "train", document, coco_images(2)))
    exported = export_coco(ingest(source, str(tmp_path / "d")).reference, str(tmp_path / "out"))
    assert json.loads(Path(exported.files["train"]).read_text())["categories"] == document["categories"]
    assert set(source.about()["train"]["categories"][0]) == {"supercategory", "id", "name", "keypoints", "skeleton"}
    assert [c["id"] for c in source.about()["train"]["categories"]] == [900, 901, 902, 903]


def test_an_unlabelled_image_has_no_annotations(tmp_path: Path) -> None:
    version = commit_records(tmp_path / "d", [record(6)], plan_id="p")
    exported = export_coco(version.reference, str(tmp_path / "out"))
    assert (exported.num_images, exported.num_objects) == (1, 0)


def exported_names(folder: Path, given: list[tuple[str, Any]], kind: str = "coco") -> list[str]:
    """File names in an export of images that have these ids, and this ``file_name`` unless it is None."""
    records = [
        replace(record(i), image_id=image_id, split="train", extra={} if name is None else {"file_name": name})
        for i, (image_id, name) in enumerate(given, start=1)
    ]
    version = commit_records(folder / "d", records, plan_id="p")
    out = folder / "out"
    report = find_export(kind)(version.reference, str(out), images=True)
    names = [image["file_name"] for image in json.loads(Path(report.files["train"]).read_text())["images"]]
    below = out / "train" if kind == "coco" else out
    assert [(below / name).read_bytes() for name in names] == [r.image for r in records]
    written = {str(path) for path in folder.rglob("*") if path.is_file() and folder / "d" not in path.parents}
    assert written == {str(below / name) for name in names} | set(report.files.values())
    return names


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_names_that_leave_the_folder_become_safe_ones(tmp_path: Path, kind: str) -> None:
    ids = ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "etc/x.jpg", ".", "good/y.jpg"]
    names = exported_names(tmp_path, [(image_id, None) for image_id in ids], kind)
    assert names == ["x.jpg", "etc/x-2.jpg", "a/x.jpg", "etc/x.jpg", "image.jpg", "good/y.jpg"]


def test_the_file_names_of_coco_sources_are_kept(tmp_path: Path) -> None:
    given = [("train2017/1.jpg", "1.jpg"), ("train2017/a/1.jpg", "a/1.jpg"), ("2.jpg", "2.jpg")]
    assert exported_names(tmp_path, given) == ["1.jpg", "a/1.jpg", "2.jpg"]


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_a_file_name_that_two_images_have_names_neither(tmp_path: Path, kind: str) -> None:
    """A column of a table may be called so, and hold the end of a path, anything or nothing."""
    given = [("0/a.jpg", "a.jpg"), ("1/a.jpg", "a.jpg"), ("b.jpg", "/data/b.jpg"), ("c.jpg", 7), ("d.jpg", "x.jpg")]
    assert exported_names(tmp_path, given, kind) == ["0/a.jpg", "1/a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_an_image_is_not_written_over_the_annotations(tmp_path: Path) -> None:
    given = [("annotations/lvis_train.json", None), ("b.jpg", None)]
    assert exported_names(tmp_path, given, "lvis") == ["lvis_train.json.jpg", "b.jpg"]


def test_unknown_splits_are_named(tmp_path: Path) -> None:
    version = commit_records(tmp_path / "d", [record(1)], plan_id="p")
    with pytest.raises(EmptyDataset, match=r"no split \['test'\]; it has \['train'\]"):
        export_coco(version.reference, str(tmp_path / "out"), splits=["test"])
