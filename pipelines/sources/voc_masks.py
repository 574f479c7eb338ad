"""The instance masks of VOC: palette PNGs whose index n is the n-th object, 0 background and 255 its border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pycocotools import mask as coco_mask

from pipelines.records import ImageRecord, Rle
from pipelines.sources.mask_png import read_mask_png, segment_masks

MASKS, CLASS_MASKS = "SegmentationObject", "SegmentationClass"
_NO_OBJECT = (0, 255)


def with_masks(record: ImageRecord, uri: str) -> ImageRecord:
    """Give each object of a record its mask and the mask's area; objects without pixels keep their boxes alone.

    Args:
        record: with annotations in the order of the XML file.
        uri: of the PNG.
    Returns:
        The record; ``extra`` lists indices that no object has under ``unlisted_segments``.
    Raises:
        BadImage: the PNG cannot be read, or is of another size.
    """
    found = record.annotations
    assert found is not None
    masks = segment_masks(read_mask_png(uri, (record.height, record.width), mode="P"))
    rles = tuple(masks.get(number) for number in range(1, len(found) + 1))
    area = [given if rle is None else _area(rle) for rle, given in zip(rles, found.area.tolist(), strict=True)]
    unlisted = [n for n in sorted(masks) if n > len(found) and n not in _NO_OBJECT]
    extra = {**record.extra, "unlisted_segments": unlisted} if unlisted else record.extra
    return replace(record, annotations=replace(found, rles=rles, area=np.array(area, np.float64)), extra=extra)


def _area(rle: Rle) -> float:
    return float(coco_mask.area({"size": list(rle.size), "counts": str(rle.counts).encode()}))
