"""Does a score of 0.8 mean right four times of five? Reliability bins and calibration errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.metrics.matches import IGNORED, TRUE, MatchTable
from pipelines.metrics.ranking import threshold_index
from pipelines.records import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Detections with scores in [low, high), the last bin also those of 1.

    Attributes:
        mean_score, precision: 0..1; None where the bin is empty.
    """

    low: float
    high: float
    count: int
    mean_score: float | None
    precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCalibration:
    """One class's share.

    Attributes:
        ece, mce: see ``Calibration``; None without detections.
        overconfidence: mean score less precision: above 0 the model promises too much; None without detections.
    """

    count: int
    ece: float | None
    mce: float | None
    overconfidence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well scores tell the precision.

    Attributes:
        iou: a detection is right where it takes a truth at this IoU.
        bins: of equal width over 0..1.
        overall: of all classes together; ``ece`` is the mean gap of score and precision over the bins, weighted by
            their detections (expected calibration error), ``mce`` the largest.
        per_class: by name, in the label map's order.
    """

    iou: float
    bins: tuple[ReliabilityBin, ...]
    overall: ClassCalibration
    per_class: Mapping[str, ClassCalibration]

    def to_json(self) -> dict[str, Any]:
        return {
            "iou": self.iou,
            "bins": [asdict(b) for b in self.bins],
            "overall": asdict(self.overall),
            "per_class": {name: asdict(c) for name, c in self.per_class.items()},
        }


def measure_calibration(table: MatchTable, *, iou: float = 0.5, num_bins: int = 10) -> Calibration:
    """Compare scores with how often they are right; detections that are ignored take no part.

    Args:
        table: of matches.
        iou: one of the thresholds it was matched at.
        num_bins: of equal width.
    Raises:
        ValueError: an IoU that was not matched at, no bins, or scores outside 0..1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be 1 or more, got {num_bins}")
    outcomes = table.outcomes[:, 0, threshold_index(table.settings, iou)]
    counted = outcomes != IGNORED
    scores, right, labels = table.scores[counted], outcomes[counted] == TRUE, table.labels[counted]
    strange = scores[(scores < 0) | (scores > 1)]
    if len(strange):
        raise ValueError(f"calibration needs scores in 0..1, got {strange[0]:g}; apply the model's sigmoid or softmax")
    return Calibration(
        iou=iou,
        bins=_bins(scores, right, num_bins),
        overall=_errors(scores, right, num_bins),
        per_class={
            name: _errors(scores[labels == label], right[labels == label], num_bins)
            for label, name in enumerate(table.label_map.names)
        },
    )


def _bins(scores: FloatArray, right: BoolArray, num_bins: int) -> tuple[ReliabilityBin, ...]:
    counts, score_sums, right_sums = _sums(scores, right, num_bins)
    return tuple(
        ReliabilityBin(
            low=at / num_bins,
            high=(at + 1) / num_bins,
            count=int(count),
            mean_score=float(score_sums[at] / count) if count else None,
            precision=float(right_sums[at] / count) if count else None,
        )
        for at, count in enumerate(counts)
    )


def _errors(scores: FloatArray, right: BoolArray, num_bins: int) -> ClassCalibration:
    if not len(scores):
        return ClassCalibration(count=0, ece=None, mce=None, overconfidence=None)
    counts, score_sums, right_sums = _sums(scores, right, num_bins)
    some = counts > 0
    gaps = np.abs(right_sums[some] - score_sums[some]) / counts[some]
    return ClassCalibration(
        count=len(scores),
        ece=float((gaps * counts[some]).sum() / len(scores)),
        mce=float(gaps.max()),
        overconfidence=float(np.mean(scores) - np.mean(right)),
    )


def _sums(scores: FloatArray, right: BoolArray, num_bins: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """(num_bins,) detections, sums of their scores, and how many of them are right; a score of 1 is in the last bin."""
    at = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(at, minlength=num_bins).astype(np.int64)
    score_sums, right_sums = (np.bincount(at, weights=of, minlength=num_bins) for of in (scores, right))
    return counts, score_sums.astype(np.float64), right_sums.astype(np.float64)
