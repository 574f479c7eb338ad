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
from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable, outcomes_of, truths_ignored
from pipelines.metrics.matching import best_first, least_iou, match_pairs, ranks_in_groups
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
    rank = ranks_in_groups(groups, found.scores)
    taking_part = np.flatnonzero(rank < settings.max_detections[-1])
    pairs = similar_pairs(truth, found, taking_part, label_map, settings, least=least_iou(thresholds))
    ignored = truths_ignored(truth, settings)
    rows, takes = match_pairs(pairs, groups, rank, ignored, truth.iscrowd, thresholds)
    outside = np.column_stack([(found.area < area.low) | (found.area > area.high) for area in settings.areas])
    if unjudged is not None:
        outside = outside | unjudged[:, None]
    alone = np.where(outside[rows], IGNORED, FALSE).astype(np.uint8)[:, :, None]
    return Counts(
        image_ids=truth.image_ids,
        image_numbers=truth.image_numbers[found.images],
        labels=found.labels,
        rank=rank,
        scores=found.scores,
        outside=outside,
        rows=rows,
        outcomes=np.where(takes >= 0, outcomes_of(takes, ignored), alone),
        truths=_truths(truth.labels, ignored, len(label_map)),
        truths_per_class=truth.objects_per_class(len(label_map)),
        detections_per_class=found.objects_per_class(len(label_map)),
    )


def counts_of(table: MatchTable) -> Counts:
    """Of a match table, without matching again."""
    areas = table.settings.areas
    outside = np.column_stack([(table.area < area.low) | (table.area > area.high) for area in areas])
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
    classes, areas = counts.truths.shape
    shape = (len(settings.iou_thresholds), len(RECALL_POINTS), classes, areas, len(settings.max_detections))
    precision, scores = np.full(shape, NO_TRUTH), np.full(shape, NO_TRUTH)
    recall = np.full((shape[0], *shape[2:]), NO_TRUTH)
    # Rows of images in ascending order lie as ties are decided already, and sorting keeps equal ones as they lie.
    ascending = bool((counts.image_numbers[1:] >= counts.image_numbers[:-1]).all())
    if ascending:
        order = best_first(counts.labels, counts.scores)
    else:
        order = np.lexsort((counts.rank, counts.image_numbers, -counts.scores, counts.labels))
    needed = _needed(counts.truths)
    known = counts.truths > 0
    for m, most in enumerate(settings.max_detections):
        kept = order[counts.rank[order] < most]
        at_most = _accumulate(counts, kept, needed)
        precision[..., m] = np.where(known, at_most.precision, NO_TRUTH)
        scores[..., m] = np.where(known, at_most.scores, NO_TRUTH)
        recall[..., m] = np.where(known, at_most.recall, NO_TRUTH)
    return EvaluationArrays(precision=precision, recall=recall, scores=scores, engine="boxmill")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _AtMost:
    precision: FloatArray  # (T, R, K, A)
    scores: FloatArray
    recall: FloatArray  # (T, K, A)


def _accumulate(counts: Counts, order: IntArray, needed: IntArray) -> _AtMost:
    """Of the detections ``order``, which lie by class and descending score."""
    classes, areas = counts.truths.shape
    labels = counts.labels[order]
    first = np.searchsorted(labels, np.arange(classes + 1))
    place = np.full(len(counts.labels), -1, np.int64)
    place[order] = np.arange(len(order))
    takers = np.flatnonzero(place[counts.rows] >= 0)
    takers = takers[np.argsort(place[counts.rows[takers]])]
    rows = counts.rows[takers]
    at, own = place[rows], counts.labels[rows]
    outcomes = np.ascontiguousarray(counts.outcomes[takers].transpose(1, 2, 0))  # (A, T, D)
    right = outcomes == TRUE
    area, threshold, taker = np.nonzero(right)
    segment = (area * outcomes.shape[1] + threshold) * classes + own[taker]
    num_right = np.bincount(segment, minlength=areas * outcomes.shape[1] * classes)
    begins = np.cumsum(num_right) - num_right
    tp = np.arange(1, len(segment) + 1) - begins[segment]

    # Detections that count, up to each taker: as if none took a truth, and what the takers change.
    inside = ~counts.outside[order]
    running = np.concatenate([np.zeros((1, areas), np.int64), np.cumsum(inside, axis=0)])
    change = (outcomes != IGNORED).astype(np.int8) - inside[at].T[:, None, :].astype(np.int8)
    changed = np.cumsum(change, axis=2, dtype=np.int32)
    changed = np.concatenate([np.zeros((*changed.shape[:2], 1), np.int32), changed], axis=2)
    first_taker = np.searchsorted(at, first[:-1])
    counted = running[at[taker] + 1, area] - running[first[own[taker]], area]
    counted += changed[area, threshold, taker + 1] - changed[area, threshold, first_taker[own[taker]]]

    fp = (counted - tp).astype(np.float64)
    envelope = tp / (fp + tp + np.spacing(1))
    for start, length in zip(begins[num_right > 1], num_right[num_right > 1], strict=True):
        backwards = envelope[start : start + length][::-1]
        np.maximum.accumulate(backwards, out=backwards)

    by_class = (areas, outcomes.shape[1], classes)
    num_right, begins = num_right.reshape(by_class), begins.reshape(by_class)
    reached = needed[:, None] < num_right[..., None]  # (A, T, K, R)
    wanted = np.where(reached, begins[..., None] + needed[:, None], -1)
    # The last entry stands for a recall that is not reached.
    precision = np.append(envelope, 0.0)[wanted]
    scores = np.append(counts.scores[rows[taker]], 0.0)[wanted]
    # A recall of nothing is reached by the first detection, right or wrong.
    some = first[1:] > first[:-1]
    scores[:, :, some, 0] = counts.scores[order[first[:-1][some]]]
    recall = num_right / np.maximum(counts.truths.T[:, None, :], 1)
    return _AtMost(
        precision=precision.transpose(1, 3, 2, 0), scores=scores.transpose(1, 3, 2, 0), recall=recall.transpose(1, 2, 0)
    )


def _needed(truths: IntArray) -> IntArray:
    """(A, K, R) how many right detections must come before the one that reaches each recall point."""
    levels = {n: np.searchsorted(np.arange(1, n + 1) / n, RECALL_POINTS) for n in np.unique(truths).tolist() if n}
    nothing = np.zeros(len(RECALL_POINTS), np.int64)
    return np.array([[levels.get(n, nothing) for n in row] for row in truths.T.tolist()], np.int64).reshape(
        truths.shape[1], truths.shape[0], len(RECALL_POINTS)
    )


def _truths(labels: IntArray, ignored: BoolArray, num_classes: int) -> IntArray:
    return np.column_stack([np.bincount(labels[~column], minlength=num_classes) for column in ignored.T])
