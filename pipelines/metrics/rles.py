"""Masks as pycocotools and hotcoco take them: one compressed RLE an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
from pycocotools import mask as coco_mask

from pipelines.records import FloatArray, Polygons, Rle

RleDict = dict[str, Any]
"""``{"size": [height, width], "counts": bytes}``"""


class BrokenMask(ValueError):
    """``at`` is its place among the masks."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at


def to_rle(polygons: Polygons | None, rle: Rle | None, size: tuple[int, int] | None) -> RleDict:
    """One object's mask; the RLE where both are there.

    Args:
        polygons, rle: as the source has them.
        size: height and width of the image; needed for polygons, and compared with an RLE's where it is known.
    Raises:
        ValueError: neither is there, an RLE of another size, an uncompressed one whose runs are more than its pixels
            (see ``mask_areas`` for compressed ones), polygons without a size or of fewer than three points.
    """
    if rle is not None:
        if size is not None and tuple(rle.size) != tuple(size):
            raise ValueError(f"its RLE is {_told(rle.size)}, the image is {_told(size)} (height x width)")
        return _compressed(rle)
    if not polygons:
        raise ValueError("it has no mask; measure boxes with iou_type='bbox', or leave such objects out")
    if size is None:
        raise ValueError("the size of its image is not known; polygons need it: give sizes")
    if any(len(polygon) < 6 for polygon in polygons):
        raise ValueError(f"a polygon of {min(len(p) for p in polygons) // 2} points has no area; give three or more")
    merged: RleDict = coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in polygons], *size))
    return merged


def mask_areas(masks: Sequence[RleDict]) -> FloatArray:
    """(N,) float64, pixels.

    Raises:
        BrokenMask: the runs of one are more than its pixels, or its string is none; fewer leave the rest background.
    """
    try:
        return np.asarray(hotcoco.mask.area(list(masks)) if masks else [], np.float64)
    except ValueError:
        for at, mask in enumerate(masks):
            try:
                hotcoco.mask.area(mask)
            except ValueError as error:
                raise BrokenMask(at, str(error)) from None
        raise


def mask_boxes(masks: Sequence[RleDict]) -> FloatArray:
    """(N, 4) float64 xywh, the least box around each mask; zeros around an empty one."""
    return np.asarray(hotcoco.mask.to_bbox(list(masks)) if masks else [], np.float64).reshape(-1, 4)


def _compressed(rle: Rle) -> RleDict:
    height, width = rle.size
    if isinstance(rle.counts, str):
        if not rle.counts.isascii():
            raise ValueError(f"its RLE {rle.counts[:20]!r} is no run-length string, which has ASCII characters only")
        return {"size": [height, width], "counts": rle.counts.encode("ascii")}
    if min(rle.counts, default=0) < 0 or sum(rle.counts) > height * width:
        raise ValueError(f"the runs of its RLE fill {sum(rle.counts)} pixels, not {_told(rle.size)} = {height * width}")
    mask: RleDict = coco_mask.frPyObjects({"size": [height, width], "counts": list(rle.counts)}, height, width)
    return mask


def _told(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
