"""Which score to ask for: precision and recall at every threshold, and the best one of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.metrics.matches import IGNORED, TRUE, MatchTable
from pipelines.metrics.ranking import threshold_index
from pipelines.records import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatingCurve:
    """What is found when only detections of some score or more are kept; nothing is interpolated.

    Attributes:
        name: of the class; None for all together.
        num_truths: that count.
        scores: (S,) the distinct scores, descending.
        num_true, num_false: (S,) int64 detections kept.
    """

    name: str | None
    num_truths: int
    scores: FloatArray
    num_true: np.ndarray
    num_false: np.ndarray

    @property
    def precision(self) -> FloatArray:
        """(S,) 0..1."""
        return np.asarray(self.num_true / (self.num_true + self.num_false), np.float64)

    @property
    def recall(self) -> FloatArray:
        """(S,) 0..1; zeros where there is no truth."""
        return np.asarray(self.num_true / max(self.num_truths, 1), np.float64)

    def f_score(self, beta: float = 1.0) -> FloatArray:
        """(S,) 0..1, recall weighing ``beta`` times as much as precision."""
        # In counts, so that nothing is divided by zero: a kept detection is true or false.
        weight = beta**2
        missed = self.num_truths - self.num_true
        return np.asarray(
            (1 + weight) * self.num_true / ((1 + weight) * self.num_true + weight * missed + self.num_false),
            np.float64,
        )

    def to_json(self, most: int = 201) -> dict[str, Any]:
        """At ``most`` points or fewer, evenly by their number, with the ends."""
        ends = (0, len(self.scores) - 1) if len(self.scores) else (0, -1)
        at = np.unique(np.linspace(*ends, most if len(self.scores) else 0).round().astype(np.int64))
        return {
            "name": self.name,
            "num_truths": self.num_truths,
            "scores": [round(float(v), 6) for v in self.scores[at]],
            "precision": [round(float(v), 6) for v in self.precision[at]],
            "recall": [round(float(v), 6) for v in self.recall[at]],
            "f1": [round(float(v), 6) for v in self.f_score()[at]],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BestThreshold:
    """Keep detections of this score or more.

    Attributes:
        score: None where no threshold does what was asked: no truth, nothing found, or precision out of reach.
        precision, recall, f1: with it, 0..1; None likewise.
        num_true, num_false, num_missed: with it; without a threshold nothing is kept and all truth is missed.
    """

    score: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    num_true: int
    num_false: int
    num_missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestThresholds:
    """By class, and one for all.

    Attributes:
        iou: a detection is true where it takes a truth at this IoU.
        wanted: what was asked for, in words.
        per_class: by name, in the label map's order.
        overall: one threshold for all classes together.
    """

    iou: float
    wanted: str
    per_class: Mapping[str, BestThreshold]
    overall: BestThreshold

    def to_json(self) -> dict[str, Any]:
        return {
            "iou": self.iou,
            "wanted": self.wanted,
            "overall": asdict(self.overall),
            "per_class": {name: asdict(best) for name, best in self.per_class.items()},
        }


def operating_curve(table: MatchTable, name: str | None = None, *, iou: float = 0.5) -> OperatingCurve:
    """Count what each score threshold keeps.

    Args:
        table: of matches.
        name: a class; None for all together.
        iou: one of the thresholds it was matched at.
    Raises:
        ValueError: an unknown class, or an IoU that was not matched at.
    """
    outcomes = table.outcomes[:, 0, threshold_index(table.settings, iou)]
    rows, truths = outcomes != IGNORED, ~table.truth_ignored[:, 0]
    if name is not None:
        if name not in table.label_map.names:
            raise ValueError(f"unknown class {name!r}; the classes are {', '.join(table.label_map.names)}")
        label = table.label_map.names.index(name)
        rows, truths = rows & (table.labels == label), truths & (table.truth_labels == label)
    return _curve(name, table.scores[rows], outcomes[rows] == TRUE, int(truths.sum()))


def best_thresholds(
    table: MatchTable, *, iou: float = 0.5, beta: float = 1.0, precision: float | None = None
) -> BestThresholds:
    """Find the score threshold of each class.

    Args:
        table: of matches.
        iou: one of the thresholds it was matched at.
        beta: the threshold is that of the highest F-beta; of equal ones the highest.
        precision: where given, the threshold is instead that of the highest recall at this precision or more.
    Raises:
        ValueError: an IoU that was not matched at, a beta that is not positive, a precision outside (0, 1].
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"precision must be in (0, 1], got {precision}")
    wanted = f"highest F{beta:g}" if precision is None else f"highest recall at precision {precision:g} or more"
    return BestThresholds(
        iou=iou,
        wanted=wanted,
        per_class={
            name: _best(operating_curve(table, name, iou=iou), beta, precision) for name in table.label_map.names
        },
        overall=_best(operating_curve(table, iou=iou), beta, precision),
    )


def _curve(name: str | None, scores: FloatArray, is_true: BoolArray, num_truths: int) -> OperatingCurve:
    order = np.argsort(-scores, kind="stable")
    scores, is_true = scores[order], is_true[order]
    # Detections of one score are kept or dropped together: only the last of them is a threshold.
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    true = np.cumsum(is_true)[last]
    return OperatingCurve(
        name=name, num_truths=num_truths, scores=scores[last], num_true=true, num_false=last + 1 - true
    )


def _best(curve: OperatingCurve, beta: float, precision: float | None) -> BestThreshold:
    value = curve.f_score(beta) if precision is None else np.where(curve.precision >= precision, curve.recall, 0.0)
    at = int(np.argmax(value)) if len(value) else 0
    if not len(value) or not value[at] > 0:
        return BestThreshold(
            score=None, precision=None, recall=None, f1=None, num_true=0, num_false=0, num_missed=curve.num_truths
        )
    return BestThreshold(
        score=float(curve.scores[at]),
        precision=float(curve.precision[at]),
        recall=float(curve.recall[at]),
        f1=float(curve.f_score()[at]),
        num_true=int(curve.num_true[at]),
        num_false=int(curve.num_false[at]),
        num_missed=curve.num_truths - int(curve.num_true[at]),
    )
