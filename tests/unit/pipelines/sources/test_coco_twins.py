"""Two annotations of one id: both are kept under different ids, a word for word copy is not, and the ledger says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.exports.coco import export_coco
from pipelines.ledger import LedgerEntry
from pipelines.sources import SourceItem, open_source
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest


def test_shared_ids(tmp_path: Path):
    document = coco_document(3, 1)  # ids 100, 200, 300
    one, two, three = document["annotations"]
    document["annotations"] += [
        {**two, "id": 100},  # another image's id
        dict(three),  # a copy
        {**one, "id": 100, "bbox": [3, 3, 4, 4]},  # in the same image
        {**one, "id": "x"},
        {**two, "id": "x"},
    ]
    source = open_source("coco", **write_coco(tmp_path, "train", document, coco_images(3)))
    version = ingest(source, str(tmp_path / "d"))
    assert version.ledger["annotations"] == {"seen": 8, "imported": 3, "mended": 4, "dropped": 1, "quarantined": 0}
    assert version.ledger["reasons"]["annotation dropped: annotation given twice, word for word"] == 1
    assert version.ledger["reasons"]["annotation mended: annotation id given twice, this one gets a new id"] == 3
    found = {i: a for i, *_, a in open_dataset(version.reference).annotations()}
    assert found["2.jpg"].ids.tolist()[:2] == [200, 301]
    assert found["1.jpg"].ids.tolist()[:2] == [100, 302]
    assert found["1.jpg"].boxes_xywh.tolist()[1] == [3, 3, 4, 4]
    assert found["1.jpg"].attributes[1] == {"source_id": 100}
    ids = [i for a in found.values() for i in a.ids.tolist()]
    assert len(export_coco(version.reference, str(tmp_path / "out")).files) == 1 and len(ids) == 7


def test_ids_shared_within_an_image_of_any_source(tmp_path: Path):
    from pipelines.checks import check_annotations
    from pipelines.ledger import Ledger
    from tests.making import annotations

    found = annotations(3)
    found.ids[:] = [5, 5, 6]
    ledger = Ledger()
    kept = check_annotations(
        found, width=24, height=16, category_ids=frozenset({0, 7}), ledger=ledger, image_id="a", clip_tolerance=99
    )
    assert kept.ids.tolist() == [5, 7, 6] and kept.attributes[1] == {"source_id": 5}
    assert ledger.counts["annotation"] == {"imported": 2, "mended": 1, "dropped": 0, "quarantined": 0}


def scanned(source: Any) -> tuple[dict[str, Any], list[tuple[str, str, str, int | None, int]]]:
    """Annotations by image id, and the entries of a scan."""
    found = list(source.scan())
    entries = [f for f in found if isinstance(f, LedgerEntry)]
    return (
        {f.image_id: f.annotations for f in found if isinstance(f, SourceItem)},
        [(e.subject, e.reason, e.image_id, e.annotation_id, e.annotations) for e in entries],
    )


@pytest.mark.parametrize("odd", [True, 1.0])
def test_an_image_id_that_only_equals_a_number_hides_no_annotations(tmp_path: Path, odd: Any):
    document = coco_document(2, 2)
    document["images"][0]["id"] = odd
    found, entries = scanned(open_source("coco", **write_coco(tmp_path, "train", document, coco_images(2))))
    assert list(found) == ["2.jpg"]
    assert entries == [
        ("image", "image without an integer id or a file_name", "1.jpg", None, 0),
        ("annotation", "its image is not in the file", "1", 100, 0),
        ("annotation", "its image is not in the file", "1", 101, 0),
    ]


def _points(annotation_id: int | None, image_id: int, x: int) -> dict[str, Any]:
    known = {} if annotation_id is None else {"id": annotation_id}
    box = {"category_id": 7, "bbox": [1, 2, 5, 6], "num_keypoints": 1}
    return {**known, **box, "image_id": image_id, "keypoints": [x, 1, 2, 0, 0, 0]}


def _with_points(folder: Path, split: str, document: dict[str, Any], points: list[dict[str, Any]]) -> dict[str, str]:
    options = write_coco(folder, split, document, coco_images(2))
    (folder / f"points_{split}.json").write_text(json.dumps({**document, "annotations": points}))
    return {**options, "keypoints": str(folder / f"points_{split}.json")}


def test_keypoints_go_to_the_object_of_their_id_and_their_image(tmp_path: Path):
    document = coco_document(2, 1)  # ids 100, 200
    document["annotations"].append({**document["annotations"][0], "image_id": 2})  # another image's id
    points = [_points(100, 2, 5), _points(100, 1, 4), _points(200, 1, 6), _points(100, 1, 9), _points(7, 1, 8)]
    found, entries = scanned(open_source("coco", **_with_points(tmp_path, "train", document, points)))
    placed = {name: [None if k is None else k[0, 0] for k in a.keypoints] for name, a in found.items()}
    assert placed == {"1.jpg": [4, 8], "2.jpg": [None, 5]}
    assert entries == [
        ("annotation", "keypoints given twice for one annotation", "1", 100, 0),
        ("annotation", "keypoints of an annotation that is of another image", "1", 200, 0),
    ]


def test_keypoints_without_an_id_are_imported_once_whatever_the_number_of_splits(tmp_path: Path):
    points = {"train": [_points(None, 1, 3)], "val": [], "test": []}
    splits = {name: _with_points(tmp_path, name, coco_document(2, 0), some) for name, some in points.items()}
    found, entries = scanned(open_source("coco", splits=splits))
    assert not entries and len(found) == 6
    assert sum(len(a) for a in found.values() if a is not None) == 1
