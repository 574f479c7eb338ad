"""COCO files whose boxes were drawn on what a viewer shows, while EXIF says that the stored picture is turned."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from pipelines.ledger_listing import read_ledger
from pipelines.sources import open_source
from pipelines.sources.drawn import decode_mask, encode_mask
from pipelines.versions import open_dataset
from workers.ingest import ingest

STORED = (40, 24)  # width, height
BOX = (3, 5, 10, 6)  # of the object, in the stored frame
TURNED = "annotations moved from the upright frame to the stored one"


def stored_mask() -> np.ndarray:
    mask = np.zeros(STORED[::-1], np.bool_)
    mask[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = True
    mask[BOX[1], BOX[0]] = False  # so that no turn looks like another
    return mask


def picture(orientation: int) -> tuple[bytes, np.ndarray]:
    """A PNG that shows the object, and the object's mask as a viewer shows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(stored_mask().astype(np.uint8) * 255).save(sink, "PNG", exif=exif)
    return sink.getvalue(), np.asarray(ImageOps.exif_transpose(Image.open(sink))) > 0


def annotations_of(shown: np.ndarray) -> list[dict[str, Any]]:
    """As somebody draws them who sees the upright picture: polygon, compressed and plain RLE, keypoints, box alone."""
    rle = encode_mask(shown)
    x, y, w, h = (int(v) for v in coco_mask.toBbox({"size": list(rle.size), "counts": rle.counts.encode()}))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], shown.reshape(-1, order="F")])))
    runs = np.diff(np.concatenate([[0], edges, [shown.size]])).tolist()
    common = {"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "area": int(shown.sum()), "iscrowd": 0}
    outline = [x, y, x + w, y, x + w, y + h, x, y + h]
    return [
        {**common, "id": 1, "segmentation": [outline], "keypoints": [x, y, 2, 0, 0, 0], "num_keypoints": 1},
        {**common, "id": 2, "segmentation": {"size": list(rle.size), "counts": rle.counts}, "iscrowd": 1},
        {**common, "id": 3, "segmentation": {"size": list(shown.shape), "counts": runs}, "iscrowd": 1},
        {**common, "id": 4, "segmentation": {"size": [7, 7], "counts": [49]}, "iscrowd": 1},
        {**common, "id": 5, "segmentation": {"size": list(shown.shape), "counts": [1, 2]}, "iscrowd": 1},
        {**common, "id": 6, "bbox": [x, y, -w, h]},
        {**common, "id": 7, "bbox": [x + 1000, y, w, h]},
    ]


def ingest_shown(folder: Path, orientation: int, *, size: tuple[int, int] | None = None):
    image, shown = picture(orientation)
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.png").write_bytes(image)
    width, height = size or shown.shape[::-1]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "annotations": annotations_of(shown),
        "categories": [{"id": 1, "name": "person", "keypoints": ["a", "b"]}],
    }
    (folder / "instances_val.json").write_text(json.dumps(document))
    source = open_source("coco", annotations=str(folder / "instances_val.json"), images=str(folder / "images"))
    version = ingest(source, str(folder / "dataset"))
    (record,) = open_dataset(version.reference).records()
    assert (record.width, record.height, record.image) == (*STORED, image)
    return version, record


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_the_upright_frame_are_turned_back(tmp_path: Path, orientation: int):
    version, record = ingest_shown(tmp_path, orientation)
    found = record.annotations
    assert found.ids.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(found.boxes_xywh, [BOX] * 5)
    np.testing.assert_array_equal(found.area, [59] * 5)
    for rle in found.rles[1:3]:
        np.testing.assert_array_equal(decode_mask(rle), stored_mask())
    (polygon,) = found.polygons[0]
    corners = {(float(x), float(y)) for x in (3, 13) for y in (5, 11)}
    assert set(zip(polygon[::2], polygon[1::2], strict=True)) == corners
    assert tuple(found.keypoints[0][0, :2].tolist()) in corners
    assert found.keypoints[0][1].tolist() == [0, 0, 0]
    # No masks of the picture in any frame: kept where nobody draws them.
    assert found.rles[3:] == (None, None)
    assert found.attributes[3]["segmentation"] == {"size": [7, 7], "counts": [49]}
    ledger = version.ledger
    assert ledger["images"] == {"seen": 1, "imported": 0, "mended": 1, "dropped": 0, "quarantined": 0}
    assert ledger["annotations"] == {"seen": 7, "imported": 0, "mended": 5, "dropped": 2, "quarantined": 0}
    assert ledger["reasons"][f"image mended: {TURNED}"] == 1
    details = [e.detail for e in read_ledger(version.reference).entries() if e.subject == "image"]
    assert details == [f"EXIF orientation {orientation}, stored as 40x24"]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_frames_of_one_size_are_taken_to_be_the_stored_one(tmp_path: Path, orientation: int):
    _, shown = picture(orientation)
    version, record = ingest_shown(tmp_path, orientation)
    expected = annotations_of(shown)
    assert record.annotations.boxes_xywh.tolist() == [list(map(float, a["bbox"])) for a in expected[:5]]
    assert version.ledger["images"]["imported"] == 1 and record.exif_orientation == orientation


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_the_stored_frame_stay(tmp_path: Path, orientation: int):
    """The file says the stored size: COCO's own way, which its tools read without turning."""
    version, _ = ingest_shown(tmp_path, orientation, size=STORED)
    assert version.ledger["images"]["imported"] == 1
    assert not any(TURNED in reason for reason in version.ledger["reasons"])
