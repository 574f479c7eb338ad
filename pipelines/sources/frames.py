"""The frame a viewer shows and the frame the file stores: EXIF orientation turns one into the other.

Labelling tools draw on the upright picture; the dataset keeps boxes in the stored, unrotated one. Turning by quarters
and mirroring is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipelines.checks import BadImage
from pipelines.records import Annotations, BoolArray, FloatArray, ImageRecord, Rle
from pipelines.sources.drawn import decode_mask, encode_mask, to_pixels

_Points = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
# Where a point (u, v) of the upright picture, in fractions of its sides, lies in the stored one.
_TO_STORED: dict[int, _Points] = {
    2: lambda u, v: (1 - u, v),
    3: lambda u, v: (1 - u, 1 - v),
    4: lambda u, v: (u, 1 - v),
    5: lambda u, v: (v, u),
    6: lambda u, v: (v, 1 - u),
    7: lambda u, v: (1 - v, 1 - u),
    8: lambda u, v: (1 - v, u),
}
_MASK_TO_STORED: dict[int, Callable[[BoolArray], BoolArray]] = {
    2: np.fliplr,
    3: lambda m: m[::-1, ::-1],
    4: np.flipud,
    5: lambda m: m.T,
    6: lambda m: np.rot90(m, 1),
    7: lambda m: m[::-1, ::-1].T,
    8: lambda m: np.rot90(m, -1),
}


def upright_to_stored(annotations: Annotations, orientation: int) -> Annotations:
    """Move annotations from the frame that a viewer shows to the stored one.

    Args:
        annotations: in fractions of the upright picture's sides; RLEs of its size.
        orientation: EXIF, 1 to 8.
    Returns:
        The same in fractions of the stored picture's sides.
    """
    if orientation not in _TO_STORED:
        return annotations
    move, turn = _TO_STORED[orientation], _MASK_TO_STORED[orientation]

    def polygon(flat: tuple[float, ...]) -> tuple[float, ...]:
        points = np.array(flat, np.float64).reshape(-1, 2)
        return tuple(np.stack(move(points[:, 0], points[:, 1]), axis=1).reshape(-1).tolist())

    def points(keypoints: FloatArray) -> FloatArray:
        x, y = move(keypoints[:, 0], keypoints[:, 1])
        there = keypoints[:, 2:] > 0  # an absent keypoint is 0, 0 in every frame
        return np.where(there, np.stack([x, y, keypoints[:, 2]], axis=1), keypoints)

    def mask(rle: Rle) -> Rle:
        return encode_mask(turn(decode_mask(rle)))

    boxes = annotations.boxes
    x0, y0 = move(boxes[:, 0], boxes[:, 1])
    x1, y1 = move(boxes[:, 2], boxes[:, 3])
    low = np.stack([np.minimum(x0, x1), np.minimum(y0, y1)], axis=1)
    high = np.stack([np.maximum(x0, x1), np.maximum(y0, y1)], axis=1)
    return replace(
        annotations,
        boxes_xywh=np.concatenate([low, high - low], axis=1),
        polygons=tuple(None if p is None else tuple(map(polygon, p)) for p in annotations.polygons),
        keypoints=tuple(None if k is None else points(k) for k in annotations.keypoints),
        rles=tuple(None if r is None else mask(r) for r in annotations.rles),
    )


def drawn_on(annotations: Annotations, shown: tuple[int, int] | None, record: ImageRecord) -> Annotations:
    """Annotations in pixels of what a tool showed, in pixels of the stored frame.

    Args:
        annotations: in pixels.
        shown: width and height that the tool says it showed; None where it does not say: the stored frame.
        record: the image as its header has it.
    Raises:
        BadImage: the tool showed a picture of another size: not this one.
    """
    width, height = record.width, record.height
    upright = (height, width) if record.exif_orientation >= 5 else (width, height)
    if shown is None or (shown == (width, height) and (record.exif_orientation == 1 or shown != upright)):
        return annotations
    if shown != upright:
        raise BadImage(
            f"the annotations are of an image of {shown[0]}x{shown[1]} pixels, the file has {width}x{height}"
        )
    fractions = to_pixels(annotations, 1 / upright[0], 1 / upright[1])
    return to_pixels(upright_to_stored(fractions, record.exif_orientation), width, height)


def stored_to_upright(annotations: Annotations, orientation: int) -> Annotations:
    """The inverse of ``upright_to_stored``: what a viewer shows. Every turn but a quarter is its own inverse."""
    return upright_to_stored(annotations, {6: 8, 8: 6}.get(orientation, orientation))
