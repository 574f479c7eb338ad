"""Masks of an image's objects as bitmaps, at its own size or at a smaller one that a network sees.

Shapes: N objects, H x W pixels of the stored image, h x w pixels of the bitmaps.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from pipelines.metrics.rles import RleDict, decode_mask, mask_boxes, to_rle
from pipelines.records import Annotations, BoolArray, IntArray, Polygons, Rle

LEAST_OUTLINE = 6
"""Numbers of a polygon that encloses something: three points."""


def rasterise(
    annotations: Annotations, size: tuple[int, int], *, at: tuple[int, int] | None = None
) -> tuple[BoolArray, BoolArray]:
    """The masks of an image's objects.

    Outlines are scaled and then drawn as COCO draws them, which is truer than a smaller copy of what was drawn; RLEs
    (crowds, mostly) are sampled at the centres of the smaller pixels. Only the objects' own regions are ever copied.

    Args:
        annotations: of one image; its RLE counts where an object has both.
        size: height and width of the stored image.
        at: height and width of the bitmaps; None is ``size``.
    Returns:
        (N, h, w) bitmaps, empty where there is no mask, and (N,) whether there is one.
    Raises:
        ValueError: an RLE that is broken or of another size, with the object's id.
    """
    height, width = at or size
    masks = np.zeros((len(annotations), height, width), np.bool_)
    known = np.zeros(len(annotations), np.bool_)
    for i, (polygons, rle) in enumerate(zip(annotations.polygons, annotations.rles, strict=True)):
        outlines = None if rle is not None else _drawable(polygons)
        if rle is None and not outlines:
            continue
        known[i] = True
        try:
            if outlines:
                _place(masks[i], to_rle(_scaled(outlines, width / size[1], height / size[0]), None, (height, width)))
            else:
                _place(masks[i], to_rle(None, rle, size))
        except ValueError as error:
            raise ValueError(f"the mask of object {int(annotations.ids[i])}: {error}") from None
    return masks, known


def compress_runs(counts: IntArray, size: tuple[int, int]) -> Rle:
    """COCO's string of run lengths, which is a tenth of their numbers.

    Args:
        counts: lengths of runs of 0, 1, 0, ... down the columns; they fill the size.
        size: height and width.
    """
    found = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return Rle(size=size, counts=found["counts"].decode("ascii"))


def has_masks(annotations: Annotations) -> bool:
    """Whether ``rasterise`` finds a mask of every object."""
    return all(
        rle is not None or _drawable(outline)
        for outline, rle in zip(annotations.polygons, annotations.rles, strict=True)
    )


def count_masks(objects: pa.StructArray) -> int:
    """How many objects ``rasterise`` would find a mask of, without drawing one.

    Args:
        objects: rows of the labels table, with at least the leaves ``polygons`` and ``rle``.
    """
    polygons, rles = (pc.list_flatten(pc.struct_field(objects, name)) for name in ("polygons", "rle"))
    has_mask = rles.is_valid().to_numpy(zero_copy_only=False)
    drawable = pc.greater_equal(pc.list_value_length(pc.list_flatten(polygons)), LEAST_OUTLINE)
    has_mask[pc.list_parent_indices(polygons).filter(drawable).to_numpy()] = True
    return int(has_mask.sum())


def _drawable(polygons: Polygons | None) -> Polygons:
    return tuple(polygon for polygon in polygons or () if len(polygon) >= LEAST_OUTLINE)


def _scaled(polygons: Polygons, x: float, y: float) -> Polygons:
    if x == y == 1:
        return polygons
    return tuple(tuple((np.reshape(polygon, (-1, 2)) * (x, y)).ravel().tolist()) for polygon in polygons)


def _place(canvas: BoolArray, mask: RleDict) -> None:
    """Draws a mask into an empty (h, w) bitmap; one of another size is sampled.

    COCO's bitmaps run down the columns: turning more than the object's own region would cost more than drawing it.
    """
    x, y, width, height = (int(v) for v in mask_boxes([mask])[0])
    pixels = decode_mask(mask)
    top, rows = _samples(canvas.shape[0], pixels.shape[0], y, y + height)
    left, columns = _samples(canvas.shape[1], pixels.shape[1], x, x + width)
    canvas[top : top + len(rows), left : left + len(columns)] = pixels[np.ix_(rows, columns)]


def _samples(count: int, full: int, low: int, high: int) -> tuple[int, IntArray]:
    """Of ``count`` cells over ``full`` pixels: the first with its centre in ``low`` to ``high``, and their pixels."""
    centres = ((np.arange(count) + 0.5) * (full / count)).astype(np.int64)
    first, last = np.searchsorted(centres, (low, high))
    return int(first), centres[first:last]
