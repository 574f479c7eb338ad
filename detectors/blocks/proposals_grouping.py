"""Segments of an image grouped step by step, the two likest neighbours first: Uijlings et al. 2013, algorithm 1.

Shape legend: R segments, G = 2R - 1 segments and groups, E pairs of neighbours, D numbers of a histogram.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEASURES = "ctsf"
"""Letters of the measures of likeness: colour, texture, size, fill."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """The segments of an image and what they are compared by.

    Attributes:
        sizes: (R,) int64 pixels.
        boxes: (R, 4) int64 xyxy, pixels.
        colours, textures: (R, D) float64 histograms, each of sum 1.
        neighbours: (E, 2) int64 pairs, the lower number first.
    """

    sizes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    colours: NDArray[np.float64]
    textures: NDArray[np.float64]
    neighbours: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)


def merge_all(segments: Segments, measures: str) -> NDArray[np.int64]:
    """Groups neighbours, the likest two first, until one group is left.

    Likeness is the sum of the measures asked for, section 3.2 of the paper: of two histograms what they have in
    common; of sizes 1 less the part of the image that both fill; of fill 1 less the part of the image that their common
    box has beyond them. Of equally like pairs the one of lower numbers comes first.

    Args:
        segments: R of them, all connected.
        measures: letters of ``MEASURES``.
    Returns:
        (R - 1, 2) int64 which two made group R, R + 1, ..., the lower number first.
    """
    grouping = _Grouping(segments, measures)
    merges = np.empty((len(segments) - 1, 2), np.int64)
    for step in range(len(merges)):
        merges[step] = grouping.merge_likest()
    return merges


def boxes_of_hierarchy(boxes: NDArray[np.int64], merges: NDArray[np.int64]) -> NDArray[np.int64]:
    """(G, 4) boxes of (R, 4) segments and then of the groups that ``merge_all`` made of them."""
    count = len(boxes)
    every = np.concatenate([boxes, np.empty((len(merges), 4), np.int64)])
    for group, (a, b) in enumerate(merges.tolist(), start=count):
        every[group] = _common_box(every[a], every[b])
    return every


def _common_box(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """(..., 4) the box around both."""
    return np.concatenate([np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])], -1)


class _Grouping:
    """Segments and groups, who is beside whom, and how like each other they are."""

    def __init__(self, segments: Segments, measures: str) -> None:
        count = len(segments)
        self._next = count
        self._image_size = int(segments.sizes.sum())
        self._by_size, self._by_fill = "s" in measures, "f" in measures
        # Histograms side by side: what two have in common is one sum.
        parts = [h for letter, h in (("c", segments.colours), ("t", segments.textures)) if letter in measures]
        self._histograms = _with_room(np.concatenate([np.zeros((count, 0)), *parts], 1))
        self._sizes, self._boxes = _with_room(segments.sizes), _with_room(segments.boxes)
        self._beside: list[set[int]] = [set() for _ in range(2 * count - 1)]
        self._alive = [True] * count
        a, b = segments.neighbours.T
        for one, other in segments.neighbours.tolist():
            self._beside[one].add(other)
            self._beside[other].add(one)
        self._queue = list(zip((-self._likeness(a, b)).tolist(), a.tolist(), b.tolist()))
        heapq.heapify(self._queue)

    def merge_likest(self) -> tuple[int, int]:
        """Makes a group of the two likest; pairs of which one is in a group by now are passed over."""
        _, a, b = heapq.heappop(self._queue)
        while not (self._alive[a] and self._alive[b]):
            _, a, b = heapq.heappop(self._queue)
        group, self._next = self._next, self._next + 1
        sizes = self._sizes
        sizes[group] = sizes[a] + sizes[b]
        self._boxes[group] = _common_box(self._boxes[a], self._boxes[b])
        self._histograms[group] = (sizes[a] * self._histograms[a] + sizes[b] * self._histograms[b]) / sizes[group]
        self._alive[a] = self._alive[b] = False
        self._alive.append(True)
        beside = (self._beside[a] | self._beside[b]) - {a, b}
        self._beside[group] = beside
        for other in beside:
            self._beside[other] -= {a, b}
            self._beside[other].add(group)
        others = np.fromiter(beside, np.int64, len(beside))
        for likeness, other in zip(self._likeness(others, group).tolist(), others.tolist()):
            heapq.heappush(self._queue, (-likeness, other, group))
        return a, b

    def _likeness(self, a: NDArray[np.int64], b: NDArray[np.int64] | int) -> NDArray[np.float64]:
        likeness: NDArray[np.float64] = np.minimum(self._histograms[a], self._histograms[b]).sum(1)
        both = self._sizes[a] + self._sizes[b]
        if self._by_size:
            likeness += 1 - both / self._image_size
        if self._by_fill:
            common = _common_box(self._boxes[a], np.broadcast_to(self._boxes[b], (len(a), 4)))
            area = (common[:, 2] - common[:, 0]) * (common[:, 3] - common[:, 1])
            likeness += 1 - (area - both) / self._image_size
        return likeness


def _with_room(of_segments: NDArray[Any]) -> NDArray[Any]:
    """(R, ...) to (G, ...), the rest uninitialised."""
    room = np.empty((2 * len(of_segments) - 1, *of_segments.shape[1:]), of_segments.dtype)
    room[: len(of_segments)] = of_segments
    return room
