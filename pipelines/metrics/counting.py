"""From matches to precision and recall, exactly as pycocotools accumulates them, but from what was found alone.

Precision is looked up at recall levels, and recall rises only where a detection is right. So nothing is summed for
every detection, threshold and area range: the running count of detections is made once an area range, and corrected
at the few detections that take a truth.

Legend: N detections, D of them that take a truth at some threshold, K classes, A area ranges, T IoU thresholds,
M limits of detections, R recall points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.columns import ObjectColumns
from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable, areas_outside, outcomes_of, truths_ignored
from pipelines.metrics.matching import best_first, least_iou, match_pairs, ranks_in_images
from pipelines.metrics.settings import RECALL_POINTS, MatchSettings
from pipelines.metrics.similarity import similar_pairs
from pipelines.records import BoolArray, FloatArray, IntArray, LabelMap

NO_TRUTH = -1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """What the arrays need of the matches; the counts of shards come together by ``merge_counts``.

    Attributes:
        image_ids: of all images measured.
        image_numbers: (N,) int64; of equal scores the lower number is first.
        labels, rank: (N,) int64; ``rank`` is the place in image and class by score.
        scores: (N,) float64.
        outside: (N, A) detections whose area is outside the range, which do not count where they take no truth.
        rows: (D,) detections whose outcome is another than that of one that takes no truth.
        outcomes: (D, A, T) theirs.
        truths: (K, A) int64, those that count.
        truths_per_class, detections_per_class: (K,) int64, crowds left out.
    """

    image_ids: tuple[str, ...]
    image_numbers: IntArray
    labels: IntArray
    rank: IntArray
    scores: FloatArray
    outside: BoolArray
    rows: IntArray
    outcomes: NDArray[np.uint8]
    truths: IntArray
    truths_per_class: IntArray
    detections_per_class: IntArray


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


def count_columns(
    truth: ObjectColumns,
    found: ObjectColumns,
    label_map: LabelMap,
    settings: MatchSettings,
    *,
    unjudged: BoolArray | None = None,
) -> Counts:
    """Match and keep what counts; only detections that can come to count are compared with truth.

    Args:
        truth, found: with the masks or keypoints of ``settings.iou_type``.
        label_map, settings: of both.
        unjudged: (N,) detections that do not count where they take no truth, because not all truth is annotated.
    """
    thresholds = np.array(settings.iou_thresholds)
    groups = found.images * len(label_map) + found.labels
    rank = ranks_in_images(found.images, found.labels, found.scores)
    taking_part = np.flatnonzero(rank < settings.max_detections[-1])
    pairs = similar_pairs(truth, found, taking_part, label_map, settings, least=least_iou(thresholds))
    ignored = truths_ignored(truth, settings)
    matches = match_pairs(pairs, groups, rank, ignored, truth.iscrowd, thresholds)
    outside = areas_outside(found.area, settings)
    if unjudged is not None:
        outside |= unjudged[:, None]
    return Counts(
        image_ids=truth.image_ids,
        image_numbers=truth.image_numbers[found.images],
        labels=found.labels,
        rank=rank,
        scores=found.scores,
        outside=outside,
        rows=matches.rows,
        outcomes=outcomes_of(matches, outside),
        truths=_truths(truth.labels, ignored, len(label_map)),
        truths_per_class=truth.objects_per_class(len(label_map)),
        detections_per_class=found.objects_per_class(len(label_map)),
    )


def counts_of(table: MatchTable) -> Counts:
    """Of a match table, without matching again."""
    outside = areas_outside(table.area, table.settings)
    alone = np.where(outside, IGNORED, FALSE).astype(np.uint8)[:, :, None]
    taking_part = table.rank < table.settings.max_detections[-1]
    rows = np.flatnonzero((table.outcomes != alone).any(axis=(1, 2)) & taking_part)
    classes = len(table.label_map)
    return Counts(
        image_ids=table.image_ids,
        image_numbers=table.image_numbers[table.images],
        labels=table.labels,
        rank=table.rank,
        scores=table.scores,
        outside=outside,
        rows=rows,
        outcomes=table.outcomes[rows],
        truths=_truths(table.truth_labels, table.truth_ignored, classes),
        truths_per_class=np.bincount(table.truth_labels[~table.truth_iscrowd], minlength=classes).astype(np.int64),
        detections_per_class=np.bincount(table.labels, minlength=classes).astype(np.int64),
    )


def merge_counts(parts: Sequence[Counts]) -> Counts:
    """The counts of shards as if they had been counted at once; their order has no influence on any number.

    Raises:
        ValueError: no shard, an image in two shards.
    """
    if not parts:
        raise ValueError("no shards to merge; give at least one")
    seen: dict[str, int] = {}
    for at, part in enumerate(parts):
        for name in part.image_ids:
            other = seen.setdefault(name, at)
            if other != at:
                raise ValueError(
                    f"image {name!r} is in shards {other} and {at}; shards must not overlap, or it would count twice"
                )
    starts = np.cumsum([0, *(len(part.labels) for part in parts[:-1])])
    return Counts(
        image_ids=tuple(seen),
        image_numbers=np.concatenate([part.image_numbers for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        rank=np.concatenate([part.rank for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        outside=np.concatenate([part.outside for part in parts]),
        rows=np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=True)]),
        outcomes=np.concatenate([part.outcomes for part in parts]),
        truths=sum((part.truths for part in parts), np.zeros_like(parts[0].truths)),
        truths_per_class=sum((p.truths_per_class for p in parts), np.zeros_like(parts[0].truths_per_class)),
        detections_per_class=sum((p.detections_per_class for p in parts), np.zeros_like(parts[0].detections_per_class)),
    )


def accumulate(counts: Counts, settings: MatchSettings) -> EvaluationArrays:
    """Precision and recall of all classes, area ranges, thresholds and limits."""
    thresholds, (classes, areas), limits = len(settings.iou_thresholds), counts.truths.shape, settings.max_detections
    shape = (areas, len(limits), thresholds, classes, len(RECALL_POINTS))
    precision, scores = np.full(shape, NO_TRUTH), np.full(shape, NO_TRUTH)
    recall = np.full(shape[:-1], NO_TRUTH)
    needed = _needed(counts.truths)
    order = _order(counts)
    rank, inside = counts.rank[order], [~counts.outside[order, area] for area in range(areas)]
    every = _Takers.of(counts, order)
    for m, most in enumerate(limits):
        partake = rank < most
        takers = every.below(most)
        # A recall of nothing is reached by the first detection, right or wrong.
        best = np.zeros(classes)
        first = np.flatnonzero(partake)
        some, place = np.unique(counts.labels[order[first]], return_index=True)
        best[some] = counts.scores[order[first[place]]]
        for area in range(areas):
            running = np.cumsum(partake & inside[area], dtype=np.int32)
            own = np.flatnonzero(counts.truths[:, area])
            for threshold in range(thresholds):
                found = takers.at(area, threshold, running, needed[area])
                at = (area, m, threshold)
                precision[at][own], scores[at][own] = found.precision[own], found.scores[own]
                recall[at][own] = found.right[own] / counts.truths[own, area]
            scores[area, m][:, own, 0] = best[own]
    return EvaluationArrays(
        precision=precision.transpose(2, 4, 3, 0, 1),
        recall=recall.transpose(2, 3, 0, 1),
        scores=scores.transpose(2, 4, 3, 0, 1),
        engine="boxmill",
    )


def _order(counts: Counts) -> IntArray:
    """(N,) rows by class, then the best first."""
    # Rows of images in ascending order lie as ties are decided already, and sorting keeps equal ones as they lie.
    if (counts.image_numbers[1:] >= counts.image_numbers[:-1]).all():
        return best_first(counts.labels, counts.scores)
    return np.lexsort((counts.rank, counts.image_numbers, -counts.scores, counts.labels))


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
    rank: IntArray
    scores: FloatArray
    right: BoolArray
    change: NDArray[np.int8]
    first: IntArray
    first_place: IntArray

    @classmethod
    def of(cls, counts: Counts, order: IntArray) -> _Takers:
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        takers = np.argsort(place[counts.rows])
        rows = counts.rows[takers]
        outcomes = np.ascontiguousarray(counts.outcomes[takers].transpose(1, 2, 0))
        counted = (outcomes != IGNORED).view(np.int8)
        alone = ~counts.outside[rows].T
        classes = np.arange(len(counts.truths))
        return cls(
            place=place[rows],
            labels=counts.labels[rows],
            rank=counts.rank[rows],
            scores=counts.scores[rows],
            right=outcomes == TRUE,
            change=counted - alone[:, None, :].view(np.int8),
            first=np.searchsorted(counts.labels[rows], classes),
            first_place=np.searchsorted(counts.labels[order], classes),
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


def _truths(labels: IntArray, ignored: BoolArray, num_classes: int) -> IntArray:
    return np.column_stack([np.bincount(labels[~column], minlength=num_classes) for column in ignored.T])
