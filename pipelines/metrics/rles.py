"""Masks as pycocotools and hotcoco take them: one compressed RLE an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipelines.records import FloatArray, IntArray, Polygons, Rle

RleDict = dict[str, Any]
"""``{"size": [height, width], "counts": bytes}``"""
_AREAS_AT_ONCE = 128  # mask.area of pycocotools raises above 255
_STRINGS_AT_ONCE = 4096


def to_rle(polygons: Polygons | None, rle: Rle | None, size: tuple[int, int] | None) -> RleDict:
    """One object's mask; the RLE where both are there.

    Args:
        polygons, rle: as the source has them.
        size: height and width of the image; needed for polygons, and compared with an RLE's where it is known.
    Raises:
        ValueError: neither is there, an RLE of another size, an uncompressed one whose runs do not fill it (see
            ``pixels_filled`` for compressed ones), polygons without a size or of fewer than three points.
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
    """(N,) float64, pixels."""
    parts = [coco_mask.area(list(masks[at : at + _AREAS_AT_ONCE])) for at in range(0, len(masks), _AREAS_AT_ONCE)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def mask_boxes(masks: Sequence[RleDict]) -> FloatArray:
    """(N, 4) float64 xywh, the least box around each mask; zeros around an empty one."""
    parts = [coco_mask.toBbox(list(masks[at : at + _AREAS_AT_ONCE])) for at in range(0, len(masks), _AREAS_AT_ONCE)]
    return np.concatenate([np.zeros((0, 4)), *parts]).astype(np.float64)


def pixels_filled(masks: Sequence[RleDict]) -> IntArray:
    """(N,) pixels that the runs of each mask fill; -1 for a string that is no RLE. All masks are read at once.

    The format: a run is a number of five bits a character, low bits first, signed; from the fourth run on it is the
    difference to the last but one.
    """
    parts = [_pixels_filled(masks[at : at + _STRINGS_AT_ONCE]) for at in range(0, len(masks), _STRINGS_AT_ONCE)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _pixels_filled(masks: Sequence[RleDict]) -> IntArray:
    strings = [mask["counts"] for mask in masks]
    lengths = np.array([len(s) for s in strings], np.int64)
    codes = np.frombuffer(b"".join(strings), np.uint8).astype(np.int16) - 48
    begins = np.cumsum(lengths) - lengths
    bad = lengths == 0
    last = (codes & 32) == 0
    # A string must end with the end of a run, and hold nothing but the format's 64 characters.
    bad[~bad] |= ~last[begins[~bad] + lengths[~bad] - 1]
    for at in np.flatnonzero((codes < 0) | (codes > 63)):
        bad[np.searchsorted(begins, at, side="right") - 1] = True
    if bad.any():
        found = np.full(len(masks), -1, np.int64)
        good = np.flatnonzero(~bad)
        if len(good):
            found[good] = _pixels_filled([masks[int(at)] for at in good])
        return found
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    # Runs of more than 2**40 pixels are of no image; capped, they still do not fill one.
    values = np.add.reduceat((codes & 31).astype(np.int64) << (5 * np.minimum(place, 8)), starts)
    values -= ((codes[ends] & 16) != 0).astype(np.int64) << (5 * (np.minimum(place[ends], 8) + 1))
    owner = np.searchsorted(begins, ends, side="right") - 1
    runs = np.bincount(owner, minlength=len(masks))
    first = np.cumsum(runs) - runs
    index = np.arange(len(values)) - first[owner]
    # Run i is the sum of the values of its parity up to i, the very first aside: each value counts once for every
    # later run of its parity.
    weight = np.where(index == 0, 1, (runs[owner] - 1 - index) // 2 + 1)
    filled = np.add.reduceat(values * weight, first)
    for parity in (0, 1):
        own = (index > 0) & (index % 2 == parity)
        total = np.cumsum(np.where(own, values, 0))
        run = total - (total[first] - np.where(own[first], values[first], 0))[owner]
        filled[owner[own & (run < 0)]] = -1
    filled[owner[(index == 0) & (values < 0)]] = -1
    return filled


def _compressed(rle: Rle) -> RleDict:
    height, width = rle.size
    if isinstance(rle.counts, str):
        return {"size": [height, width], "counts": rle.counts.encode("ascii", "replace")}
    if min(rle.counts, default=0) < 0 or sum(rle.counts) != height * width:
        raise ValueError(fills(sum(rle.counts), rle.size))
    mask: RleDict = coco_mask.frPyObjects({"size": [height, width], "counts": list(rle.counts)}, height, width)
    return mask


def fills(pixels: int, size: Sequence[int]) -> str:
    """What is wrong with an RLE whose runs fill other than its size."""
    if pixels < 0:
        return "its RLE is no run-length string"
    return f"the runs of its RLE fill {pixels} pixels, not {_told(size)} = {size[0] * size[1]}"


def _told(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
