"""Exact polygons of a pixel mask: they run along the cracks between pixels and have the mask's very area."""

from __future__ import annotations

import numpy as np

from pipelines.records import BoolArray, Polygons

Corner = tuple[int, int]  # x, y of a pixel's corner


def mask_to_polygons(mask: BoolArray) -> Polygons:
    """Outlines of the mask's parts, one polygon each, without holes.

    COCO's polygons know no holes, so a part with a hole is cut in two through it.

    Args:
        mask: (H, W) bool.
    Returns:
        Flat x, y, ... polygons in pixels whose areas (shoelace) add up to ``mask.sum()``; parts are 4-connected.
    """
    loops = _trace(mask)
    hole = next((loop for loop in loops if _signed_area(loop) < 0), None)
    if hole is None:
        return tuple(tuple(float(v) for corner in loop for v in corner) for loop in loops)
    xs = [x for x, _ in hole]
    cut = (min(xs) + max(xs) + 1) // 2
    left, right = mask.copy(), mask.copy()
    left[:, cut:] = False
    right[:, :cut] = False
    return mask_to_polygons(left) + mask_to_polygons(right)


def _trace(mask: BoolArray) -> list[list[Corner]]:
    """Closed loops of corners with the inside at the right hand; loops around holes run the other way."""
    grid = np.pad(mask, 1).astype(np.int8)
    ends: dict[tuple[Corner, bool], list[tuple[Corner, int]]] = {}
    for horizontal, cells in ((True, grid), (False, grid.T)):
        # A crack is where two neighbours across it differ; runs of equal difference are one edge.
        steps = np.diff(cells, axis=0)[:, 1:]
        changes = np.diff(np.pad(steps, ((0, 0), (1, 0))), axis=1)
        lines, places = np.nonzero(changes)
        values = steps[lines, places].tolist()
        spots = list(zip(lines.tolist(), places.tolist()))
        for (line, a), (_, b), value in zip(spots[:-1], spots[1:], values):
            # A run of zeros, also the last one of a line, is no edge.
            if value == 0:
                continue
            # Inside below a horizontal edge: go right. Inside right of a vertical edge: go up.
            forward = value > 0 if horizontal else value < 0
            start, end = (a, b) if forward else (b, a)
            tail = (start, line) if horizontal else (line, start)
            head = (end, line) if horizontal else (line, end)
            ends.setdefault((tail, horizontal), []).append((head, 1 if forward else -1))
    return _join(ends)


def _join(ends: dict[tuple[Corner, bool], list[tuple[Corner, int]]]) -> list[list[Corner]]:
    loops = []
    while ends:
        corner, horizontal = start = next(iter(ends))
        loop: list[Corner] = []
        direction = 0
        while (corner, horizontal) in ends:
            ways = ends[(corner, horizontal)]
            # Where two pixels touch at a corner only, turn right: each pixel keeps its own loop.
            turn = -direction if horizontal else direction
            at = next((i for i, (_, d) in enumerate(ways) if d == turn), 0) if len(ways) > 1 else 0
            head, direction = ways.pop(at)
            if not ways:
                del ends[(corner, horizontal)]
            loop.append(corner)
            corner, horizontal = head, not horizontal
            if (corner, horizontal) == start:
                break
        loops.append(loop)
    return loops


def _signed_area(loop: list[Corner]) -> float:
    x, y = np.array(loop, np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
