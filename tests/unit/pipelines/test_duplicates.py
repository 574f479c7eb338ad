"""Images of the same bytes: told by default, left out when asked, and labels are never lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.duplicates import find_duplicates
from pipelines.importing import StrictIngestError
from pipelines.ledger_listing import read_ledger
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest


def source(folder: Path):
    """train 1..4 and val 11..13; 3 is 1 with the same labels, 4 is 2 with others, 11 is 1."""
    train, images = coco_document(4), coco_images(4)
    images |= {"3.jpg": images["1.jpg"], "4.jpg": images["2.jpg"]}
    train["annotations"][6]["bbox"] = [9, 9, 3, 3]
    train["annotations"][7]["bbox"] = [9, 9, 90, 3]  # will be mended
    val, others = coco_document(3, first_id=11), coco_images(3, first_id=11)
    others["11.jpg"] = images["1.jpg"]
    splits = {"train": write_coco(folder, "train", train, images), "val": write_coco(folder, "val", val, others)}
    return open_source("coco", splits=splits)


def test_duplicates_are_counted_and_kept_by_default(tmp_path: Path):
    opened = source(tmp_path)
    version = ingest(opened, str(tmp_path / "d"))
    assert version.num_images == 7
    counts = {"images": 3, "labels_differ": 1, "first_unlabelled": 0, "across_splits": 1}
    assert version.duplicates == counts
    found = {d.image_id: d for d in find_duplicates(open_dataset(version.reference))}
    assert {i: (d.first, d.labels, d.split, d.first_split) for i, d in found.items()} == {
        "3.jpg": ("1.jpg", "same", "train", "train"),
        "4.jpg": ("2.jpg", "differ", "train", "train"),
        "11.jpg": ("1.jpg", "same", "val", "train"),
    }
    assert ingest(opened, str(tmp_path / "d")).found
    assert ingest(opened, str(tmp_path / "e"), dedupe="keep").duplicates == {}


def test_dropped_duplicates_are_in_the_ledger(tmp_path: Path):
    opened = source(tmp_path)
    version = ingest(opened, str(tmp_path / "d"), dedupe="drop")
    dataset = open_dataset(version.reference)
    assert [r.image_id for r in dataset.records()] == ["1.jpg", "2.jpg", "12.jpg", "13.jpg"]
    assert version.num_images == 4 and version.num_objects == dataset.num_objects == 8
    assert version.splits == {"train": 2, "val": 2}
    assert version.ledger["images"] == {"seen": 7, "imported": 4, "mended": 0, "dropped": 3, "quarantined": 0}
    assert version.ledger["annotations"] == {"seen": 14, "imported": 8, "mended": 0, "dropped": 6, "quarantined": 0}
    told = {e.image_id: e.detail for e in read_ledger(version.reference).entries() if e.fate == "dropped"}
    assert "first is '2.jpg', labels: differ" in told["4.jpg"] and "'train' and 'val'" in told["11.jpg"]
    assert find_duplicates(dataset) == []
    assert ingest(opened, str(tmp_path / "d"), dedupe="drop").found


def test_what_was_mended_is_counted_however_few_entries_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.ledger.MAX_LISTED", 1)
    document, images = coco_document(4), coco_images(4)
    images |= {"2.jpg": images["1.jpg"], "3.jpg": images["1.jpg"]}
    for entry in document["images"]:
        entry["width"] = 25  # the file's header says 24
    for annotation in document["annotations"]:
        annotation["bbox"] = [20, 2, 15, 6]  # leaves the image
    opened = open_source("coco", **write_coco(tmp_path, "train", document, images))
    ledger = ingest(opened, str(tmp_path / "d"), dedupe="drop").ledger
    assert ledger["images"] == {"seen": 4, "imported": 0, "mended": 2, "dropped": 2, "quarantined": 0}
    assert ledger["annotations"] == {"seen": 8, "imported": 0, "mended": 4, "dropped": 4, "quarantined": 0}


def test_receipts_of_an_older_boxmill_tell_by_their_entries(tmp_path: Path):
    opened = source(tmp_path)
    uri = str(tmp_path / "d")
    with pytest.raises(StrictIngestError):
        ingest(opened, uri, dedupe="drop", strict=True)
    (path,) = Path(uri).glob("_jobs/*/done/*.json")
    told = json.loads(path.read_text())
    assert sum(map(len, told["extra"].pop("mended").values())) == 1
    path.write_text(json.dumps(told))
    ledger = ingest(opened, uri, dedupe="drop").ledger
    assert ledger["annotations"] == {"seen": 14, "imported": 8, "mended": 0, "dropped": 6, "quarantined": 0}


def test_duplicates_of_what_is_there_already(tmp_path: Path):
    uri = str(tmp_path / "d")
    first = write_coco(tmp_path, "first", coco_document(2), coco_images(2))
    ingest(open_source("coco", **first), uri)
    again = write_coco(
        tmp_path, "again", coco_document(2, first_id=8), {"8.jpg": coco_images(2)["2.jpg"]} | coco_images(1, first_id=9)
    )
    version = ingest(open_source("coco", **again), uri, dedupe="drop")
    assert sorted(open_dataset(version.reference).index()["image_id"].to_pylist()) == ["1.jpg", "2.jpg", "9.jpg"]
    assert version.duplicates["images"] == 1


def test_labels_of_a_copy_of_an_unlabelled_image_stay(tmp_path: Path):
    uri = str(tmp_path / "d")
    document = coco_document(2)
    bare = {**document, "annotations": []}
    ingest(open_source("coco", **write_coco(tmp_path, "bare", bare, coco_images(2))), uri)
    labelled = write_coco(tmp_path, "more", coco_document(1, first_id=5), {"5.jpg": coco_images(1)["1.jpg"]})
    version = ingest(open_source("coco", **labelled), uri, dedupe="drop")
    assert version.num_images == 3 and version.duplicates["first_unlabelled"] == 1
    with pytest.raises(ValueError, match="choose one of keep, report, drop"):
        ingest(open_source("coco", **labelled), uri, dedupe="maybe")  # type: ignore[arg-type]
