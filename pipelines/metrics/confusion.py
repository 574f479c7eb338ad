"""Which class is taken for which, and what is made of background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.metrics.matches import FALSE, TRUE, MatchTable
from pipelines.metrics.ranking import threshold_index
from pipelines.records import FloatArray, IntArray

BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConfusionMatrix:
    """Truth by detection.

    Attributes:
        names: C classes in the label map's order.
        iou, score_threshold: what counts as found, and which detections count.
        counts: (C + 1, C + 1) int64, rows of truth, columns of detections; the last row is of detections where
            nothing is, the last column of truths that were not found. Their common cell is 0.
    """

    names: tuple[str, ...]
    iou: float
    score_threshold: float
    counts: IntArray

    @property
    def shares(self) -> FloatArray:
        """(C + 1, C + 1) each row as shares of its sum, zeros where it has nothing."""
        sums = self.counts.sum(1, keepdims=True)
        return np.asarray(self.counts / np.maximum(sums, 1), np.float64)

    def most_confused(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """(truth, taken for, how often) of the commonest mistakes between two classes, background left out."""
        between = self.counts[:-1, :-1] * (1 - np.eye(len(self.names), dtype=np.int64))
        order = np.argsort(-between, axis=None, kind="stable")[:limit]
        pairs = [divmod(int(at), len(self.names)) for at in order]
        return [(self.names[t], self.names[d], int(between[t, d])) for t, d in pairs if between[t, d]]

    def to_json(self) -> dict[str, Any]:
        return {
            "names": [*self.names, BACKGROUND],
            "iou": self.iou,
            "score_threshold": self.score_threshold,
            "counts": self.counts.tolist(),
            "most_confused": [{"truth": t, "found": d, "count": n} for t, d, n in self.most_confused()],
        }


def confusion_matrix(table: MatchTable, *, iou: float = 0.5, score_threshold: float = 0.0) -> ConfusionMatrix:
    """Count truths by what was found in their place.

    What COCO's matching pairs is right, and stands on the diagonal. A detection that is left over is laid to the
    truth of another class that it overlaps most, if by ``iou`` or more and if that truth was left over too; of several
    such detections the one of the highest score has it. All others found background, and are duplicates or false
    alarms. Crowds and what is ignored take no part.

    Args:
        table: of matches.
        iou: one of the thresholds it was matched at.
        score_threshold: detections below it are left out.
    Raises:
        ValueError: an IoU that was not matched at.
    """
    at = threshold_index(table.settings, iou)
    num_classes = len(table.label_map)
    outcomes = table.outcomes[:, 0, at]
    kept = table.scores >= score_threshold
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    right = np.flatnonzero(kept & (outcomes == TRUE))
    np.add.at(counts, (table.labels[right], table.labels[right]), 1)
    free = ~table.truth_ignored[:, 0]
    free[table.matched[right, at]] = False

    left = np.flatnonzero(kept & (outcomes == FALSE))
    left = left[np.argsort(-table.scores[left], kind="stable")]
    near = left[table.best_iou_other[left] >= table.settings.iou_thresholds[at]]
    near = near[free[table.best_truth_other[near]]]
    truths, first = np.unique(table.best_truth_other[near], return_index=True)
    np.add.at(counts, (table.truth_labels[truths], table.labels[near[first]]), 1)
    free[truths] = False

    false = np.setdiff1d(left, near[first], assume_unique=True)
    counts[-1, :-1] = np.bincount(table.labels[false], minlength=num_classes)
    counts[:-1, -1] = np.bincount(table.truth_labels[free], minlength=num_classes)
    return ConfusionMatrix(names=table.label_map.names, iou=iou, score_threshold=score_threshold, counts=counts)
