"""Whether an RLE that somebody else wrote says what it must: runs that fill the image."""

from __future__ import annotations

import numpy as np

from pipelines.records import IntArray, Rle

_FIRST, _MORE, _SIGN, _DIGITS = 48, 0x20, 0x10, 0x1F  # of COCO's strings: letters from "0" on, five bits each
_MOST_LETTERS = 12  # of one number, below 2**60


def fills_its_size(rle: Rle) -> bool:
    """Whether no run is negative and their sum is height times width; False, too, of a string that is none of COCO's.

    Source: ``rleFrString`` of pycocotools, which trusts what it is given.
    """
    runs = _runs_of_string(rle.counts) if isinstance(rle.counts, str) else np.asarray(rle.counts, np.float64)
    return (
        runs is not None and bool((runs >= 0).all()) and float(runs.sum(dtype=np.float64)) == rle.size[0] * rle.size[1]
    )


def _runs_of_string(counts: str) -> IntArray | None:
    """Lengths of runs; None where the string cannot be read."""
    letters = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8).astype(np.int64) - _FIRST
    if not len(letters):
        return np.zeros(0, np.int64)
    ends = (letters & _MORE) == 0
    if (letters < 0).any() or (letters > _MORE | _DIGITS).any() or not ends[-1]:
        return None
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first >= _MOST_LETTERS).any():
        return None
    places = np.arange(len(letters)) - np.repeat(first, last - first + 1)
    runs = np.add.reduceat((letters & _DIGITS) << (5 * places), first)
    negative = (letters[last] & _SIGN) != 0
    runs[negative] -= np.int64(1) << (5 * (last - first + 1)[negative])
    # From the fourth number on they are told as differences from the one before the last.
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
