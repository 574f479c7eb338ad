"""Average precision of weighted images: what slices, resampling and "what if this error were mended" have in common.

A detection that is drawn twice counts twice, one that is left out counts zero: so a bootstrap sample, a slice of the
dataset and the whole of it are the same sum with other weights, and none of them matches anything again.

Shapes: D ranked detections of one class, G truths of it, I images, T IoU thresholds, R recall points, B weightings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.metrics.matches import IGNORED, TRUE, MatchTable
from pipelines.metrics.settings import RECALL_POINTS, MatchSettings
from pipelines.records import BoolArray, FloatArray, IntArray

_TINY = np.spacing(1.0)  # what pycocotools adds to the denominator of precision
_BLOCK = 1 << 20  # values of one block of weightings: 8 MB an array, of which a few are alive at once
_NEXT_POINTS = np.append(RECALL_POINTS[1:], np.inf)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """The detections of one class, best first, and its truths.

    Attributes:
        images: (D,) int64 in 0..I-1.
        scores: (D,) float64, descending; between equal ones the order decides that the table was made in.
        is_true: (T, D) bool, matched to a truth that counts.
        ignored: (T, D) bool, neither true nor false: matched to a crowd, or outside what is measured.
        truth_images: (G,) int64, of the truths that count.
    """

    images: IntArray
    scores: FloatArray
    is_true: BoolArray
    ignored: BoolArray
    truth_images: IntArray

    def at(self, thresholds: Sequence[int]) -> Ranking:
        """The same at some of the IoU thresholds, by their numbers."""
        rows = list(thresholds)
        return replace(self, is_true=self.is_true[rows], ignored=self.ignored[rows])


def rankings(table: MatchTable, area: str = "all") -> tuple[Ranking, ...]:
    """One a class, in the label map's order.

    Args:
        table: of matches.
        area: a range of the table's settings.
    Raises:
        ValueError: no such range.
    """
    at = table.settings.area_index(area)
    counted = ~table.truth_ignored[:, at]
    partakes = table.rank < table.settings.max_detections[-1]
    made = []
    for label in range(len(table.label_map)):
        rows = np.flatnonzero((table.labels == label) & partakes)
        outcomes = table.outcomes[rows, at].T
        truths = table.truth_images[counted & (table.truth_labels == label)]
        made.append(make_ranking(table.images[rows], table.scores[rows], outcomes == TRUE, outcomes == IGNORED, truths))
    return tuple(made)


def threshold_index(settings: MatchSettings, iou: float) -> int:
    """The number of an IoU threshold.

    Raises:
        ValueError: it was not matched at.
    """
    at = int(np.argmin(np.abs(np.array(settings.iou_thresholds) - iou)))
    if abs(settings.iou_thresholds[at] - iou) > 1e-6:
        known = ", ".join(f"{t:g}" for t in settings.iou_thresholds)
        raise ValueError(f"IoU {iou:g} was not matched at; choose one of {known}")
    return at


def make_ranking(
    images: IntArray, scores: FloatArray, is_true: BoolArray, ignored: BoolArray, truth_images: IntArray
) -> Ranking:
    """Rank detections by score; equal scores keep the order they come in."""
    order = np.argsort(-scores, kind="stable")
    return Ranking(
        images=images[order],
        scores=scores[order],
        is_true=is_true[:, order],
        ignored=ignored[:, order],
        truth_images=truth_images,
    )


def curve(ranking: Ranking, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Precision at COCO's recall points, to the last bit as pycocotools has it for weights of one.

    Args:
        ranking: of one class.
        weights: (I,) how often each image counts.
    Returns:
        ``(precision, scores)``, both (T, R); the scores are the least that reach each recall, 0 where none does.
        -1 throughout where no truth counts.
    """
    thresholds = len(ranking.is_true)
    num_truths = weights[ranking.truth_images].sum()
    if not num_truths:
        return np.full((thresholds, len(RECALL_POINTS)), -1.0), np.full((thresholds, len(RECALL_POINTS)), -1.0)
    precision = np.zeros((thresholds, len(RECALL_POINTS)))
    scores = np.zeros((thresholds, len(RECALL_POINTS)))
    of_detections = weights[ranking.images]
    for t in range(thresholds):
        counts = np.where(ranking.ignored[t], 0.0, of_detections)
        true = np.cumsum(np.where(ranking.is_true[t], counts, 0.0))
        false = np.cumsum(np.where(ranking.is_true[t], 0.0, counts))
        falling = np.maximum.accumulate((true / (true + false + _TINY))[::-1])[::-1]
        reached = np.searchsorted(true / num_truths, RECALL_POINTS, side="left")
        known = reached < len(falling)
        precision[t, known] = falling[reached[known]]
        scores[t, known] = ranking.scores[reached[known]]
    return precision, scores


def final_recall(ranking: Ranking, weights: FloatArray) -> FloatArray:
    """(T,) the share of the truths that is found at all; -1 where no truth counts."""
    num_truths = weights[ranking.truth_images].sum()
    if not num_truths:
        return np.full(len(ranking.is_true), -1.0)
    counts = ranking.is_true & ~ranking.ignored
    return np.asarray((counts * weights[ranking.images]).sum(1) / num_truths, np.float64)


def average_precisions(ranking: Ranking, weights: FloatArray, truth_weights: FloatArray | None = None) -> FloatArray:
    """The average precision of one class under many weightings at once.

    Only true positives can be where precision falls to its next step, so that curves are held at those alone.

    Args:
        ranking: of one class.
        weights: (B, I) how often the detections of each image count; whole numbers.
        truth_weights: (B, I) how often its truths count, where that differs.
    Returns:
        (B, T); NaN where no truth counts. Equal to the mean of ``curve``'s precision but for the order of the sum.
    """
    num_truths = (weights if truth_weights is None else truth_weights)[:, ranking.truth_images].sum(1)
    found = np.zeros((len(weights), len(ranking.is_true)))
    counts = ranking.is_true & ~ranking.ignored
    ends = np.flatnonzero(counts.any(0))
    # Whole numbers of this size are exact in single precision, which is twice as fast to fetch.
    exact = np.float32 if len(ranking.images) * weights.max(initial=0) < 2**24 else np.float64
    for rows in _blocks(len(weights), len(ranking.images)) if len(ends) else ():
        # A row an image: rows are fetched many times faster than columns.
        of_images = np.ascontiguousarray(weights[rows].T.astype(exact))
        ranks = _ranks(of_images, ranking.images, ends)
        for t in range(len(counts)):
            at = np.flatnonzero(counts[t, ends])
            if len(at):
                true = np.cumsum(of_images[ranking.images[ends[at]]], axis=0, dtype=np.float64)
                ignored = np.flatnonzero(ranking.ignored[t, : ends[-1] + 1])
                before = np.cumsum(of_images[ranking.images[ignored]], axis=0, dtype=np.float64)
                excused = np.searchsorted(ignored, ends[at])
                counted = ranks[at]
                counted[excused > 0] -= before[excused[excused > 0] - 1]
                found[rows, t] = _area(true, counted, num_truths[rows])
    found[num_truths == 0] = np.nan
    return found


def mean_over_classes(values: FloatArray) -> FloatArray:
    """The mean of (C, ...) over the classes that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0.0).sum(0)
    return np.where(known.any(0), sums / np.maximum(known.sum(0), 1), np.nan)


def _ranks(of_images: np.ndarray, images: IntArray, ends: IntArray) -> FloatArray:
    """(P, b) the weight of all detections up to each of ``ends``."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    between = np.add.reduceat(of_images[images[: ends[-1] + 1]], starts, axis=0)
    return np.cumsum(between, axis=0, dtype=np.float64)


def _area(true: FloatArray, counted: FloatArray, num_truths: FloatArray) -> FloatArray:
    """(b,) mean precision at the recall points of (P, b) curves through true positives."""
    precision = true / (counted + _TINY)
    falling = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    reached = _recall_points_up_to(true / np.maximum(num_truths, _TINY))
    falling[1:] *= np.diff(reached, axis=0)
    falling[0] *= reached[0]
    return np.asarray(falling.sum(0) / len(RECALL_POINTS), np.float64)


def _recall_points_up_to(recall: FloatArray) -> IntArray:
    """How many recall points are not above each recall in [0, 1]: a search without searching."""
    guess = (recall * 100).astype(np.int64)
    np.minimum(guess, 100, out=guess)
    # Products and points are rounded: the guess is off by one at most.
    guess -= RECALL_POINTS[guess] > recall
    guess += _NEXT_POINTS[guess] <= recall
    return guess + 1


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = min(max(_BLOCK // max(columns, 1), 16), 512)
    for start in range(0, rows, step):
        yield slice(start, start + step)
