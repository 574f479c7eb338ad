"""What hotcoco does with masks, by pycocotools: the fallback.

pycocotools trusts every run length, and reads and writes past the end of an image that a mask is longer than; so runs
are added up here first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipelines.metrics.rles import RleDict
from pipelines.records import FloatArray, IntArray

_AT_ONCE = 200  # it refuses more than 255
_CONTINUES, _NEGATIVE = 0x20, 0x10


def area(masks: list[RleDict]) -> FloatArray:
    """(N,) pixels.

    Raises:
        ValueError: a string that is no run lengths, or more of them than pixels.
    """
    for mask in masks:
        _check(mask)
    parts = [coco_mask.area(masks[at : at + _AT_ONCE]) for at in range(0, len(masks), _AT_ONCE)]
    return np.concatenate([np.zeros(0), *parts])


def to_bbox(masks: list[RleDict]) -> FloatArray:
    """(N, 4) xywh."""
    parts = [coco_mask.toBbox(masks[at : at + _AT_ONCE]) for at in range(0, len(masks), _AT_ONCE)]
    return np.concatenate([np.zeros((0, 4)), *parts])


def iou(found: list[RleDict], truths: list[RleDict], iscrowd: list[bool]) -> FloatArray:
    """(D, G)"""
    rows = []
    for first in range(0, len(found), _AT_ONCE):
        own = found[first : first + _AT_ONCE]
        columns = [
            np.reshape(coco_mask.iou(own, truths[at : at + _AT_ONCE], iscrowd[at : at + _AT_ONCE]), (len(own), -1))
            for at in range(0, len(truths), _AT_ONCE)
        ]
        rows.append(np.concatenate([np.zeros((len(own), 0)), *columns], axis=1))
    return np.concatenate([np.zeros((0, len(truths))), *rows])


def decode(mask: RleDict) -> NDArray[np.uint8]:
    """(height, width)

    Raises:
        ValueError: see ``area``.
    """
    _check(mask)
    return np.asarray(coco_mask.decode(mask), np.uint8)


def _check(mask: RleDict) -> None:
    height, width = mask["size"]
    runs = runs_of(mask["counts"])
    if len(runs) and (runs.min() < 0 or runs.sum() > height * width):
        raise ValueError(
            f"invalid RLE: total counts {runs.sum()} of {len(runs)} runs, the least of {runs.min()}, do not fit "
            f"{height} x {width} pixels"
        )


def runs_of(counts: bytes) -> IntArray:
    """Run lengths of a compressed RLE: five bits a character, from the third on as differences from the last but one.

    Raises:
        ValueError: a character that is none of the code, or a number without an end.
    Source: rleFrString of the COCO API.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if len(digits) and (digits.min() < 0 or digits[-1] & _CONTINUES):
        raise ValueError(f"invalid RLE: {counts[:20]!r} is no string of run lengths")
    ends = np.flatnonzero(digits & _CONTINUES == 0)
    starts = np.concatenate([[0], ends + 1])[:-1]
    if not len(ends):
        return np.zeros(0, np.int64)
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 11:
        raise ValueError(f"invalid RLE: {counts[:20]!r} has a run length of more than 60 bits")
    values = np.add.reduceat((digits & 0x1F) << (5 * places), starts)
    values -= np.where(digits[ends] & _NEGATIVE, 1 << (5 * (ends - starts + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
