"""The frame a viewer shows and the frame the file stores: EXIF orientation turns one into the other.

Labelling tools draw on the upright picture; the dataset keeps boxes in the stored, unrotated one. Turning by quarters
and mirroring is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from pipelines.checks import BadImage
from pipelines.records import Annotations, BoolArray, FloatArray, ImageRecord, Rle
from pipelines.sources.drawn import decode_mask, encode_mask

_Points = Callable[[FloatArray, FloatArray, float, float], tuple[FloatArray, FloatArray]]
# Where a point (x, y) of the upright picture, of width w and height h, lies in the stored one.
_TO_STORED: dict[int, _Points] = {
    2: lambda x, y, w, h: (w - x, y),
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, w, h: (x, h - y),
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (y, w - x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (h - y, x),
}
_QUARTER = 5
"""EXIF orientations from here on exchange width and height."""
_MASK_TO_STORED: dict[int, Callable[[BoolArray], BoolArray]] = {
    2: np.fliplr,
    3: lambda m: m[::-1, ::-1],
    4: np.flipud,
    5: lambda m: m.T,
    6: lambda m: np.rot90(m, 1),
    7: lambda m: m[::-1, ::-1].T,
    8: lambda m: np.rot90(m, -1),
}


class Framed(Protocol):
    """A picture's stored size and how EXIF turns it; an ``ImageRecord`` is one."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def exif_orientation(self) -> int: ...


def upright_to_stored(
    annotations: Annotations, orientation: int, sides: tuple[float, float] = (1.0, 1.0)
) -> Annotations:
    """Move annotations from the frame that a viewer shows to the stored one.

    Args:
        annotations: in the units of ``sides``; RLEs are of the upright picture's pixels.
        orientation: EXIF, 1 to 8.
        sides: width and height of the upright picture; as they are, annotations are fractions of them.
    Returns:
        The same of the stored picture. A box without area has none afterwards.
    Raises:
        ValueError: an RLE that is no mask.
    """
    if orientation not in _TO_STORED:
        return annotations
    move, turn = _TO_STORED[orientation], _MASK_TO_STORED[orientation]

    def polygon(flat: tuple[float, ...]) -> tuple[float, ...]:
        points = np.array(flat, np.float64).reshape(-1, 2)
        return tuple(np.stack(move(points[:, 0], points[:, 1], *sides), axis=1).reshape(-1).tolist())

    def points(keypoints: FloatArray) -> FloatArray:
        x, y = move(keypoints[:, 0], keypoints[:, 1], *sides)
        there = keypoints[:, 2:] > 0  # an absent keypoint is 0, 0 in every frame
        return np.where(there, np.stack([x, y, keypoints[:, 2]], axis=1), keypoints)

    def mask(rle: Rle) -> Rle:
        return encode_mask(turn(decode_mask(rle)))

    boxes = annotations.boxes
    x0, y0 = move(boxes[:, 0], boxes[:, 1], *sides)
    x1, y1 = move(boxes[:, 2], boxes[:, 3], *sides)
    low = np.stack([np.minimum(x0, x1), np.minimum(y0, y1)], axis=1)
    size = annotations.boxes_xywh[:, 2:]
    size = size[:, ::-1] if orientation >= _QUARTER else size
    return replace(
        annotations,
        boxes_xywh=np.concatenate([low, size], axis=1),
        polygons=tuple(None if p is None else tuple(map(polygon, p)) for p in annotations.polygons),
        keypoints=tuple(None if k is None else points(k) for k in annotations.keypoints),
        rles=tuple(None if r is None else mask(r) for r in annotations.rles),
    )


def drawn_on(annotations: Annotations, shown: tuple[int, int] | None, record: Framed) -> Annotations:
    """Annotations in pixels of what a tool showed, in pixels of the stored frame.

    Args:
        annotations: in pixels.
        shown: width and height that the tool says it showed; None where it does not say: the stored frame.
        record: the image as its header has it.
    Raises:
        BadImage: the tool showed a picture of another size: not this one.
    """
    width, height = record.width, record.height
    upright = upright_size(width, height, record.exif_orientation)
    if shown is None or (shown == (width, height) and (record.exif_orientation == 1 or shown != upright)):
        return annotations
    if shown != upright:
        raise BadImage(
            f"the annotations are of an image of {shown[0]}x{shown[1]} pixels, the file has {width}x{height}"
        )
    return upright_to_stored(annotations, record.exif_orientation, upright)


def is_of_upright(record: ImageRecord, declared_size: tuple[int, int] | None) -> bool:
    """Whether annotations lie in the upright frame of a picture that EXIF turns by a quarter: its size tells.

    Annotations of mirrored, upside-down and square pictures have the same size in both frames: nothing tells them
    apart, and they are taken to lie in the stored one.
    """
    turned = record.exif_orientation >= _QUARTER and record.width != record.height
    return turned and declared_size == (record.height, record.width)


def turned_to_stored(record: ImageRecord) -> ImageRecord:
    """A record whose annotations lie in the upright frame, in pixels: now in the stored one.

    An RLE that is no mask of the upright picture stays as it is: the checks set it aside, for its size is wrong.
    """
    found = record.annotations
    if found is None:
        return record
    upright = (record.height, record.width)
    masks = tuple(None if rle is None or not _is_mask(rle, upright[::-1]) else rle for rle in found.rles)
    moved = upright_to_stored(replace(found, rles=masks), record.exif_orientation, upright)
    rles = tuple(new or old for new, old in zip(moved.rles, found.rles, strict=True))
    return replace(record, annotations=replace(moved, rles=rles))


def _is_mask(rle: Rle, size: tuple[int, int]) -> bool:
    if rle.size != size:
        return False
    try:
        decode_mask(rle)
    except ValueError:
        return False
    return True


def stored_to_upright(
    annotations: Annotations, orientation: int, sides: tuple[float, float] = (1.0, 1.0)
) -> Annotations:
    """The inverse of ``upright_to_stored``: what a viewer shows. Every turn but a quarter is its own inverse.

    Args:
        annotations: in the units of ``sides``.
        orientation: EXIF, 1 to 8.
        sides: width and height of the stored picture.
    """
    return upright_to_stored(annotations, {6: 8, 8: 6}.get(orientation, orientation), sides)


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of a stored picture as a viewer shows it."""
    return (height, width) if orientation >= _QUARTER else (width, height)
