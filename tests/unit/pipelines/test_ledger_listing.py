"""The ledger of a version lists what became of everything in the plans that the version is made of, and no others."""

from __future__ import annotations

from pathlib import Path

from pipelines.ledger_listing import read_ledger
from pipelines.revisions import roll_back
from pipelines.sources import open_source
from tests.making import coco_document, coco_images, encoded, write_coco
from workers.ingest import ingest


def bad_source(folder: Path, split: str, first_id: int):
    document = coco_document(3, first_id=first_id)
    document["annotations"][0]["bbox"] = [1, 1, 0, 5]
    document["annotations"][2]["bbox"] = [20, 2, 50, 5]
    images = coco_images(3, first_id=first_id)
    images[f"{first_id + 2}.jpg"] = encoded()[:50]
    document["images"].append({"id": 1000 + first_id, "file_name": "no.jpg", "width": 1, "height": 1})
    return open_source("coco", **write_coco(folder, split, document, images))


def test_entries_follow_the_version(tmp_path: Path):
    uri = str(tmp_path / "d")
    first = ingest(bad_source(tmp_path, "train", 1), uri)
    listing = read_ledger(first.reference)
    assert listing.to_json()["reasons"] == first.ledger["reasons"]
    found = [(e.fate, e.image_id, e.annotation_id) for e in listing.entries()]
    assert sorted(found, key=str) == [
        ("dropped", "1.jpg", 100),
        ("mended", "2.jpg", 200),
        ("quarantined", "3.jpg", None),
        ("quarantined", "no.jpg", None),
    ]
    assert len(found) == sum(listing.reasons.values())
    second = ingest(bad_source(tmp_path, "val", 11), uri)
    assert len(list(read_ledger(second.reference).entries())) == 8
    assert len(list(read_ledger(first.reference).entries())) == 4
    assert listing.images["seen"] == 4 and read_ledger(uri).images["seen"] == 8
    back = roll_back(first.reference)
    assert {e.image_id for e in read_ledger(back.reference).entries()} == {"1.jpg", "2.jpg", "3.jpg", "no.jpg"}
