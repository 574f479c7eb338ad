"""Masks and numbers of COCO files that no reader could use: kept as they are, listed, and in nobody's way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipelines import open_dataset
from pipelines.exports import find_export
from pipelines.ledger_listing import read_ledger
from pipelines.sources import open_source
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest

NAN, INF = math.nan, math.inf
ODD: dict[str, dict[str, Any]] = {
    "a polygon with NaN": {"segmentation": [[1.0, 1.0, 6.0, NAN, 6.0, 6.0]]},
    "a polygon that leaves all bounds": {"segmentation": [[1, 1, INF, 1, 6, 6]]},
    "an RLE that cannot be read": {"segmentation": {"size": [16, 24], "counts": "garbage!!"}},
    "an RLE that does not fill the image": {"segmentation": {"size": [16, 24], "counts": [1, 2, 3]}},
    "an area that is none": {"area": NAN},
    "keypoints that are nowhere": {"keypoints": [1.0, NAN, 2], "num_keypoints": 1},
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_what_makes_no_sense_is_mended_listed_and_harms_no_export(tmp_path: Path, values: dict[str, Any]) -> None:
    document = coco_document(2)
    document["annotations"][0] |= values
    version = ingest(
        open_source("coco", **write_coco(tmp_path, "train", document, coco_images(2))), str(tmp_path / "d")
    )
    assert version.ledger["annotations"] == {"seen": 4, "imported": 3, "mended": 1, "dropped": 0, "quarantined": 0}
    name = next(iter(values))
    (entry,) = [e for e in read_ledger(version.reference).entries() if e.fate == "mended"]
    assert entry.reason == f"{name} makes no sense and is kept as an attribute" and entry.annotation_id == 100
    (found,) = [f for *_, f in open_dataset(version.reference).annotations() if 100 in f.ids]
    at = found.ids.tolist().index(100)
    assert found.polygons[at] is None and found.rles[at] is None and found.keypoints[at] is None
    assert json.dumps(found.attributes[at][name]) == json.dumps(values[name])
    for format in ("label_studio", "cvat", "yolo", "voc"):
        assert find_export(format)(version.reference, str(tmp_path / format)).num_objects == 4


def test_images_that_nobody_has_looked_at_are_told_of_a_coco_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, image in coco_images(3).items():
        (tmp_path / "images" / name).write_bytes(image)
    version = ingest(open_source("archive", uri=str(tmp_path / "images")), str(tmp_path / "d"))
    for format in ("coco", "lvis"):
        assert find_export(format)(version.reference, str(tmp_path / format)).losses == {
            "image that nobody has looked at": 3
        }
