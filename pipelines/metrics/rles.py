"""Masks as pycocotools and hotcoco take them: one compressed RLE an object.

hotcoco measures them; where it cannot be loaded pycocotools does, with the same numbers, but slower.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipelines.records import FloatArray, IntArray, Polygons, Rle

RleDict = dict[str, Any]
"""``{"size": [height, width], "counts": bytes}``"""
_WIDER = 2**31  # than any image
_AT_ONCE = 2**12


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredMasks(Sequence[RleDict]):
    """Masks as they lie in label files: one becomes a dictionary only when it is asked for.

    Attributes:
        texts: N compressed RLEs, binary.
        sizes: (N, 2) int64 height and width.
    """

    texts: pa.ChunkedArray
    sizes: IntArray

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, at: int) -> RleDict: ...
    @overload
    def __getitem__(self, at: slice) -> list[RleDict]: ...
    def __getitem__(self, at: int | slice) -> RleDict | list[RleDict]:
        if not isinstance(at, slice):
            return self[at : at + 1][0]
        first, stop, step = at.indices(len(self))
        assert step == 1
        return _made(self.texts.slice(first, stop - first), self.sizes[first:stop])

    def __iter__(self) -> Iterator[RleDict]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self[first : first + _AT_ONCE]

    def take(self, rows: IntArray) -> StoredMasks:
        return StoredMasks(texts=self.texts.take(pa.array(rows)), sizes=self.sizes[rows])


def _made(texts: pa.ChunkedArray, sizes: IntArray) -> list[RleDict]:
    codes, which = np.unique(sizes[:, 0] * _WIDER + sizes[:, 1], return_inverse=True)
    shared = [[int(code // _WIDER), int(code % _WIDER)] for code in codes]
    return [{"size": shared[at], "counts": text} for at, text in zip(which.tolist(), texts.to_pylist(), strict=True)]


def pick_masks(masks: Sequence[RleDict], rows: IntArray) -> list[RleDict]:
    """Some of the masks, at once where that is cheaper."""
    return list(masks.take(rows)) if isinstance(masks, StoredMasks) else [masks[at] for at in rows.tolist()]


def mask_areas(masks: Sequence[RleDict]) -> FloatArray:
    """(N,) float64, pixels.

    Raises:
        BrokenMask: the runs of one are more than its pixels, or its string is none; fewer leave the rest background.
    """
    kernels, areas = _kernels(), np.empty(len(masks))
    # A few at once: dictionaries that die young cost neither memory nor the time of the garbage collector.
    for first in range(0, len(masks), _AT_ONCE):
        some = list(masks[first : first + _AT_ONCE])
        try:
            areas[first : first + len(some)] = kernels.area(some)
        except ValueError:
            for at, mask in enumerate(some):
                try:
                    kernels.area([mask])
                except ValueError as error:
                    raise BrokenMask(first + at, str(error)) from None
            raise
    return areas


def mask_boxes(masks: Sequence[RleDict]) -> FloatArray:
    """(N, 4) float64 xywh, the least box around each mask; zeros around an empty one."""
    return np.asarray(_kernels().to_bbox(list(masks)) if masks else [], np.float64).reshape(-1, 4)


def mask_ious(found: list[RleDict], truths: list[RleDict], iscrowd: list[bool]) -> FloatArray:
    """(D, G) float64 of masks that ``mask_areas`` has measured; with a crowd the part that lies inside it."""
    return np.asarray(_kernels().iou(found, truths, iscrowd), np.float64)


def decode_mask(mask: RleDict) -> NDArray[np.uint8]:
    """(height, width) of zeros and ones.

    Raises:
        ValueError: its runs are more than its pixels, or its string is none.
    """
    return np.asarray(_kernels().decode(mask), np.uint8)


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The module that measures masks."""
    hotcoco = load_hotcoco()
    if hotcoco is not None:
        return hotcoco.mask
    warnings.warn(
        "hotcoco cannot be loaded: pycocotools measures masks, with the same numbers but slower; pip install hotcoco",
        RuntimeWarning,
        stacklevel=4,
    )
    from pipelines.metrics import slow_masks

    return slow_masks


def load_hotcoco() -> Any:
    """The library, or None where it is not there or does not fit this machine."""
    try:
        import hotcoco
    except (ImportError, OSError):
        return None
    return hotcoco


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
