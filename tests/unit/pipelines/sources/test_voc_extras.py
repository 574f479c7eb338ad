"""What VOC has beside boxes: parts, actions and segmentation PNGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.checks import BadImage
from pipelines.ledger_listing import read_ledger
from pipelines.sources import open_source
from pipelines.sources.drawn import decode_mask
from tests.hostile.case import encoded, jpeg, picture
from tests.scenes import read_source
from workers.ingest import ingest

_OBJECT = (
    "<object><name>person</name><bndbox><xmin>{0}</xmin><ymin>3</ymin><xmax>{1}</xmax><ymax>15</ymax></bndbox>"
    "{2}</object>"
)
_PART = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>6</xmax><ymax>7</ymax></bndbox></part>"


def make(root: Path, mask: bytes | None, extra: str = "") -> dict[str, str]:
    for folder in ("Annotations", "JPEGImages", "SegmentationObject"):
        (root / folder).mkdir(exist_ok=True)
    (root / "JPEGImages/a.jpg").write_bytes(jpeg(1))
    objects = _OBJECT.format(2, 10, extra) + _OBJECT.format(12, 20, "")
    (root / "Annotations/a.xml").write_text(
        f"<annotation><size><width>32</width><height>24</height></size>{objects}</annotation>"
    )
    if mask is not None:
        (root / "SegmentationObject/a.png").write_bytes(mask)
    return {"root": str(root)}


def palette(indices: np.ndarray) -> bytes:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    return encoded(image, "PNG")


def test_parts_and_actions_are_attributes(tmp_path):
    extra = _PART + "<part><name>hand</name></part><actions><jumping>1</jumping><riding>0</riding></actions>"
    _, records, entries = read_source("voc", **make(tmp_path, None, extra))
    first, second = records["JPEGImages/a.jpg"].annotations.attributes
    assert first["parts"] == [{"name": "head", "bbox": [2, 2, 4, 5]}, {"name": "hand", "bbox": None}]
    assert first["actions"] == ["jumping"] and "parts" not in second and not entries


def test_segmentation_gives_each_object_its_mask(tmp_path):
    indices = np.zeros((24, 32), np.int64)
    indices[3:14, 2:9], indices[5:9, 30:], indices[0] = 1, 9, 255
    _, records, _ = read_source("voc", **make(tmp_path, palette(indices)))
    found = records["JPEGImages/a.jpg"].annotations
    assert (decode_mask(found.rles[0]) == (indices == 1)).all() and found.rles[1] is None
    assert found.area.tolist() == [77, 9 * 13]
    assert records["JPEGImages/a.jpg"].extra["unlisted_segments"] == [9]


@pytest.mark.parametrize("mask", [b"", jpeg(2), encoded(picture(1), "PNG"), palette(np.zeros((9, 9)))], ids=range(4))
def test_a_bad_mask_file_is_told_of(tmp_path, mask):
    source = open_source("voc", **make(tmp_path, mask))
    (item,) = source.scan()
    with pytest.raises(BadImage, match=r"SegmentationObject/a\.png"):
        source.load(item)


def test_a_mask_of_classes_alone_is_told_of(tmp_path):
    options = make(tmp_path, None)
    indices = np.ones((24, 32), np.int64)
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass/a.png").write_bytes(palette(indices))
    version = ingest(open_source("voc", **options), str(tmp_path / "dataset"))
    assert version.ledger["annotations"] == {"seen": 3, "imported": 2, "mended": 0, "dropped": 1, "quarantined": 0}
    (entry,) = read_ledger(version.reference).entries()
    assert (entry.image_id, entry.detail) == ("JPEGImages/a.jpg", "SegmentationClass/a.png")
    # Beside the objects' masks it says nothing that these do not.
    (tmp_path / "SegmentationObject/a.png").write_bytes(palette(indices))
    assert read_source("voc", **options)[2] == []
