"""From counts to precision and recall, exactly as pycocotools accumulates them, but from what was found alone.

Precision is looked up at recall levels, and recall rises only where a detection is right. So nothing is summed for
every detection, threshold and area range: the running count of detections is made once an area range, and corrected
at the few detections that take a truth. Classes know nothing of each other: some at a time fit the processor's cache,
and others can be in other threads.

Legend: N detections, D of them that take a truth at some threshold, K classes, A area ranges, T IoU thresholds,
M limits of detections, R recall points.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, starmap

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.counting import Counts, ShortArray
from pipelines.metrics.matches import IGNORED, TRUE
from pipelines.metrics.matching import by_key
from pipelines.metrics.settings import RECALL_POINTS, MatchSettings
from pipelines.records import BoolArray, FloatArray, IntArray

NO_TRUTH = -1.0
_AT_ONCE = 500_000  # detections; the classes of so many are done together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationArrays:
    """pycocotools's three arrays.

    Attributes:
        precision, scores: (T, R, K, A, M) float64.
        recall: (T, K, A, M) float64.
        engine: name and version of what counted.
    """

    precision: FloatArray
    recall: FloatArray
    scores: FloatArray
    engine: str


def accumulate(counts: Counts, settings: MatchSettings, *, threads: int = 1) -> EvaluationArrays:
    """Precision and recall of all classes, area ranges, thresholds and limits; the same for any number of threads."""
    classes = _ByClass.of(counts)
    ranges = list(pairwise(classes.cuts(max(threads, -(-len(counts.labels) // _AT_ONCE)))))
    if threads > 1 and len(ranges) > 1:
        with ThreadPoolExecutor(threads) as pool:
            made = list(pool.map(lambda cut: _accumulate(classes.part(*cut), settings), ranges))
    else:
        made = [_accumulate(part, settings) for part in starmap(classes.part, ranges)]
    precision, scores, recall = (np.concatenate(arrays, axis=3) for arrays in zip(*made, strict=True))
    return EvaluationArrays(
        precision=precision.transpose(2, 4, 3, 0, 1),
        recall=recall.transpose(2, 3, 0, 1),
        scores=scores.transpose(2, 4, 3, 0, 1),
        engine="boxmill",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ByClass:
    """All detections by class.

    Attributes:
        counts: of all.
        order: (N,) rows by class; those of one class in the order in which ties are decided.
        begins: (K + 1,) where each class begins in ``order``, and the end.
        takers: (D,) places of ``counts.rows`` in ``order``.
    """

    counts: Counts
    order: IntArray
    begins: IntArray
    takers: IntArray

    @classmethod
    def of(cls, counts: Counts) -> _ByClass:
        # Of equal scores the image of the lower number is first, and in an image what lies before.
        images = counts.image_numbers
        lie_so = bool((images[1:] >= images[:-1]).all())
        order = by_key(counts.labels, None if lie_so else by_key(images - images.min()))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        of_classes = np.bincount(counts.labels, minlength=len(counts.truths))
        return cls(
            counts=counts,
            order=order,
            begins=np.append(0, np.cumsum(of_classes)),
            takers=place[counts.rows],
        )

    def cuts(self, parts: int) -> list[int]:
        """First classes of at most so many parts with about as many detections each, and the number of classes."""
        wanted = np.linspace(0, self.begins[-1], parts + 1)[1:-1]
        inner = np.searchsorted(self.begins, wanted)
        return np.unique([0, *inner, len(self.counts.truths)]).tolist()

    def part(self, first: int, last: int) -> _Part:
        """Of classes ``first`` to ``last``, without it."""
        counts, begins = self.counts, self.begins[first : last + 1] - self.begins[first]
        start, end = self.begins[first], self.begins[last]
        rows = self.order[start:end]
        scores = counts.scores[rows]
        best = [np.argsort(-scores[a:b], kind="stable") + a for a, b in pairwise(begins.tolist())]
        order = np.concatenate([np.zeros(0, np.int64), *best])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        mine = np.flatnonzero((self.takers >= start) & (self.takers < end))
        places = place[self.takers[mine] - start]
        by_place = np.argsort(places)
        rows = rows[order]
        return _Part(
            rank=counts.rank[rows],
            scores=scores[order],
            outside=counts.outside[rows],
            begins=begins,
            places=places[by_place],
            outcomes=counts.outcomes[mine[by_place]],
            truths=counts.truths[first:last],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """Detections of some classes, by class and the best first.

    Attributes:
        rank, scores: (N,)
        outside: (N, A)
        begins: (K + 1,) where each class begins, and the end.
        places: (D,) ascending, of those whose outcome is another than that of one that takes no truth.
        outcomes: (D, A, T) theirs.
        truths: (K, A) that count.
    """

    rank: ShortArray
    scores: FloatArray
    outside: BoolArray
    begins: IntArray
    places: IntArray
    outcomes: NDArray[np.uint8]
    truths: IntArray


def _accumulate(part: _Part, settings: MatchSettings) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision and scores (A, M, T, K, R), recall (A, M, T, K)."""
    thresholds, (classes, areas), limits = len(settings.iou_thresholds), part.truths.shape, settings.max_detections
    shape = (areas, len(limits), thresholds, classes, len(RECALL_POINTS))
    precision, scores = np.full(shape, NO_TRUTH), np.full(shape, NO_TRUTH)
    recall = np.full(shape[:-1], NO_TRUTH)
    needed = _needed(part.truths)
    inside = np.ascontiguousarray(~part.outside.T)
    every = _Takers.of(part)
    for m, most in enumerate(limits):
        partake = part.rank < most
        takers = every.below(most)
        # A recall of nothing is reached by the first detection, right or wrong.
        taking = np.flatnonzero(partake)
        first = np.searchsorted(taking, part.begins)
        some = np.flatnonzero(first[:-1] < first[1:])
        best = np.zeros(classes)
        best[some] = part.scores[taking[first[some]]]
        for area in range(areas):
            running = np.cumsum(partake & inside[area], dtype=np.int32)
            own = np.flatnonzero(part.truths[:, area])
            for threshold in range(thresholds):
                found = takers.at(area, threshold, running, needed[area])
                at = (area, m, threshold)
                precision[at][own], scores[at][own] = found.precision[own], found.scores[own]
                recall[at][own] = found.right[own] / part.truths[own, area]
            scores[area, m][:, own, 0] = best[own]
    return precision, scores, recall


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """Of one area range, threshold and limit: precision and scores (K, R), and (K,) how many detections are right."""

    precision: FloatArray
    scores: FloatArray
    right: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Takers:
    """The D detections whose outcome is not that of one that takes no truth, by class and the best first.

    Attributes:
        place: (D,) int64 of each in the order of all.
        labels, rank, scores: (D,)
        right: (A, T, D) bool.
        change: (A, T, D) int8, what each adds to the number of those that count, as if it took no truth.
        first, first_place: (K,) where each class begins, here and in the order of all.
    """

    place: IntArray
    labels: IntArray
    rank: ShortArray
    scores: FloatArray
    right: BoolArray
    change: NDArray[np.int8]
    first: IntArray
    first_place: IntArray

    @classmethod
    def of(cls, part: _Part) -> _Takers:
        outcomes = np.ascontiguousarray(part.outcomes.transpose(1, 2, 0))
        counted = (outcomes != IGNORED).view(np.int8)
        alone = ~part.outside[part.places].T
        first = np.searchsorted(part.places, part.begins)
        return cls(
            place=part.places,
            labels=np.repeat(np.arange(len(part.truths)), np.diff(first)),
            rank=part.rank[part.places],
            scores=part.scores[part.places],
            right=outcomes == TRUE,
            change=counted - alone[:, None, :].view(np.int8),
            first=first[:-1],
            first_place=part.begins[:-1],
        )

    def below(self, most: int) -> _Takers:
        """Those of a lower rank."""
        kept = np.flatnonzero(self.rank < most)
        if len(kept) == len(self.rank):
            return self
        return _Takers(
            place=self.place[kept],
            labels=self.labels[kept],
            rank=self.rank[kept],
            scores=self.scores[kept],
            right=self.right[:, :, kept],
            change=self.change[:, :, kept],
            first=np.searchsorted(self.labels[kept], np.arange(len(self.first))),
            first_place=self.first_place,
        )

    def at(self, area: int, threshold: int, running: NDArray[np.int32], needed: IntArray) -> _Found:
        """Precision at recall points.

        Args:
            area, threshold: by number.
            running: (N,) how many detections count up to each, in the order of all.
            needed: (K, R) see ``_needed``.
        """
        classes, points = needed.shape
        changed = np.cumsum(self.change[area, threshold], dtype=np.int32)
        at = np.flatnonzero(self.right[area, threshold])
        own = self.labels[at]
        right = np.bincount(own, minlength=classes)
        begins = np.cumsum(right) - right
        before = _before(running, self.first_place) + _before(changed, self.first)
        counted = running[self.place[at]] + changed[at] - before[own]
        tp = np.arange(1, len(at) + 1) - begins[own]
        fp = (counted - tp).astype(np.float64)
        precise = tp / (fp + tp + np.spacing(1))

        precision, scores = np.zeros((2, classes, points))
        reached = needed < right[:, None]
        wanted = (begins[:, None] + needed)[reached]
        if len(wanted):
            # The first point of a class is its first detection: so each stretch ends where the next one begins.
            precision[reached] = np.maximum.reduceat(precise, wanted)
            backwards = precision[:, ::-1]
            np.maximum.accumulate(backwards, axis=1, out=backwards)
            scores[reached] = self.scores[at[wanted]]
        return _Found(precision=precision, scores=scores, right=right)


def _before(running: NDArray[np.int32], first: IntArray) -> NDArray[np.int32]:
    """(K,) the sum up to where each class begins."""
    if not len(running):
        return np.zeros(len(first), np.int32)
    return np.where(first > 0, running[first - 1], np.int32(0))


def _needed(truths: IntArray) -> IntArray:
    """(A, K, R) how many right detections must come before the one that reaches each recall point."""
    levels = {n: np.searchsorted(np.arange(1, n + 1) / n, RECALL_POINTS) for n in np.unique(truths).tolist() if n}
    nothing = np.zeros(len(RECALL_POINTS), np.int64)
    return np.array([[levels.get(n, nothing) for n in row] for row in truths.T.tolist()], np.int64).reshape(
        truths.shape[1], truths.shape[0], len(RECALL_POINTS)
    )
