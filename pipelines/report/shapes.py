"""Masks and skeletons as SVG, in the image's own pixels.

Nothing finer than a pixel of the small copy is drawn: corners that lie closer together are one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.exports.outlines import outlines
from pipelines.records import Category, FloatArray, Polygons, Rle
from pipelines.sources.drawn import decode_mask

_FEWEST_CORNERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """Labelled keypoints and the lines between them.

    Attributes:
        joints: (x, y, hidden) each; hidden ones are labelled but not visible.
        bones: (x1, y1, x2, y2) each, of which both ends are labelled.
    """

    joints: tuple[tuple[float, float, bool], ...]
    bones: tuple[tuple[float, float, float, float], ...]


def outline_path(polygons: Polygons | None, rle: Rle | None, grain: float) -> str:
    """An object's mask as the ``d`` of an SVG path, '' where it has none.

    Args:
        polygons: its outline, if it has one.
        rle: its bitmap, if it has one; drawn where there are no polygons.
        grain: image pixels in one pixel of the picture that is shown; at least 1 is taken.
    """
    grain = max(1.0, grain)
    if polygons is None:
        polygons = () if rle is None else _traced(rle, grain)
    return "".join(_closed(polygon, grain) for polygon in polygons)


def _traced(rle: Rle, grain: float) -> Polygons:
    """Outer borders of a bitmap, of every so many-th pixel of it."""
    step = max(1, round(grain))
    mask = decode_mask(rle)[::step, ::step]
    if not mask.any():
        return ()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    parts = outlines(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    shift = (left, top)
    return tuple(tuple((v + shift[at % 2]) * step for at, v in enumerate(part)) for part in parts)


def _closed(polygon: tuple[float, ...], grain: float) -> str:
    kept: list[tuple[float, float]] = []
    for x, y in zip(polygon[::2], polygon[1::2], strict=False):
        if not kept or math.hypot(x - kept[-1][0], y - kept[-1][1]) >= grain:
            kept.append((x, y))
    if len(kept) < _FEWEST_CORNERS:
        return ""
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in kept) + "Z"


def skeleton(keypoints: FloatArray | None, category: Category) -> Skeleton | None:
    """Of one object; None where it has no labelled keypoint.

    Args:
        keypoints: (K, 3) x, y, visibility: 0 not labelled, 1 hidden, 2 visible.
        category: says which keypoints are joined.
    """
    if keypoints is None or not (keypoints[:, 2] > 0).any():
        return None
    points = keypoints.round(1).tolist()
    pairs = [(a, b) for a, b in category.skeleton if max(a, b) < len(points)]
    return Skeleton(
        joints=tuple((x, y, seen < 2) for x, y, seen in points if seen > 0),
        bones=tuple((*points[a][:2], *points[b][:2]) for a, b in pairs if points[a][2] > 0 and points[b][2] > 0),
    )
