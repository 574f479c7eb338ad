"""Bitmaps as outlines, for formats that know polygons only."""

from __future__ import annotations

import numpy as np

from pipelines.records import BoolArray, Polygons
from pipelines.sources.drawn import polygon_area

_Point = tuple[int, int]


def outlines(mask: BoolArray) -> Polygons:
    """The outer borders of a (H, W) bitmap's parts along the edges of pixels, the largest first; holes are filled.

    Pixels that touch at a corner only are of two parts.
    """
    found = [_corners(loop) for loop in _loops(_edges(mask))]
    outer = [tuple(float(v) for point in loop for v in point) for loop in found if _signed_area(loop) > 0]
    return tuple(sorted(outer, key=polygon_area, reverse=True))


def joined(polygons: Polygons) -> tuple[float, ...]:
    """Several outlines as one, tied together by lines there and back that enclose nothing."""
    first = polygons[0]
    if len(polygons) == 1:
        return first
    home = first[:2]
    rest = tuple(v for polygon in polygons[1:] for v in (*polygon, *polygon[:2], *home))
    return (*first, *home, *rest)


def _edges(mask: BoolArray) -> dict[_Point, list[_Point]]:
    """Border edges as start -> ends, clockwise around the set pixels (y points down)."""
    inside = np.pad(mask, 1)
    edges: dict[_Point, list[_Point]] = {}
    # Neighbour that must be unset, and the edge's start and end relative to the pixel.
    for (dy, dx), start, end in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        border = inside & ~np.roll(inside, (-dy, -dx), axis=(0, 1))
        for y, x in np.argwhere(border[1:-1, 1:-1]).tolist():
            edges.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    return edges


def _loops(edges: dict[_Point, list[_Point]]) -> list[list[_Point]]:
    loops = []
    while edges:
        start = next(iter(edges))
        loop, here, came = [start], start, (0, 0)
        while True:
            ends = edges[here]
            # Where two parts touch, turning right stays with the same one.
            right = (here[0] - came[1], here[1] + came[0])
            there = right if right in ends else ends[0]
            ends.remove(there)
            if not ends:
                del edges[here]
            came, here = (there[0] - here[0], there[1] - here[1]), there
            if here == start:
                break
            loop.append(here)
        loops.append(loop)
    return loops


def _corners(loop: list[_Point]) -> list[_Point]:
    """Without the points in the middle of straight lines."""
    kept = []
    for i, (x, y) in enumerate(loop):
        (x0, y0), (x1, y1) = loop[i - 1], loop[(i + 1) % len(loop)]
        if (x - x0) * (y1 - y) != (y - y0) * (x1 - x):
            kept.append((x, y))
    return kept


def _signed_area(loop: list[_Point]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1])) / 2
