"""All that is asked of one match table, together: what a report shows beside the headline numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.metrics.bootstrap import BootstrapIntervals, bootstrap_intervals
from pipelines.metrics.calibration import Calibration, measure_calibration
from pipelines.metrics.comparison import Comparison, compare_models
from pipelines.metrics.confusion import ConfusionMatrix, confusion_matrix
from pipelines.metrics.errors import ErrorBreakdown, ErrorTable, break_down_errors, find_errors
from pipelines.metrics.grouping import SIZE
from pipelines.metrics.matches import MatchTable
from pipelines.metrics.slices import Slices, measure_sizes, measure_slices
from pipelines.metrics.thresholds import BestThresholds, best_thresholds

NO_THRESHOLD = 0.5  # where no score can be said to be the best, as with nothing found


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """What is known beyond the headline numbers; all of it at IoU .5 where nothing else is said.

    Attributes:
        table: that all of it is made of.
        thresholds: the score of the highest F1, of each class and of all.
        confusion: of detections at or above the best score of all.
        calibration: None where scores lie outside 0..1.
        intervals: None where none were asked for.
        slices: by size first, then by whatever was asked for.
        comparison: with another model's predictions; None without.
    """

    table: MatchTable
    mistakes: ErrorTable
    errors: ErrorBreakdown
    thresholds: BestThresholds
    confusion: ConfusionMatrix
    calibration: Calibration | None
    intervals: BootstrapIntervals | None
    slices: tuple[Slices, ...]
    comparison: Comparison | None

    @property
    def score_threshold(self) -> float:
        """The best for all classes together."""
        best = self.thresholds.overall.score
        return NO_THRESHOLD if best is None else best

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; null for what was not asked for or has nothing to be measured on."""
        return {
            "errors": self.errors.to_json(),
            "thresholds": self.thresholds.to_json(),
            "confusion": self.confusion.to_json(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "intervals": None if self.intervals is None else self.intervals.to_json(),
            "slices": [part.to_json() for part in self.slices],
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }


def analyse(
    table: MatchTable,
    *,
    groups: Sequence[tuple[str, Mapping[str, str | None]]] = (),
    other: MatchTable | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Ask everything of a match table.

    Args:
        table: of matches, IoU .5 among its thresholds.
        groups: name of a column with each image's value, see ``grouping``; ``size`` is measured in any case.
        other: another model's matches on the same truth, to compare this one with.
        resamples: of intervals and comparison; 0 leaves out intervals.
        seed: of their draws.
    Raises:
        ValueError: see ``compare_models`` and ``measure_slices``; a comparison without resamples.
    """
    if other is not None and resamples < 2:
        raise ValueError(f"a comparison needs resamples, got {resamples}; 1000 are usual")
    thresholds = best_thresholds(table)
    overall = thresholds.overall.score
    in_range = not len(table.scores) or bool(table.scores.min() >= 0 and table.scores.max() <= 1)
    sizes = measure_sizes(table)
    return Analysis(
        table=table,
        mistakes=find_errors(table),
        errors=break_down_errors(table),
        thresholds=thresholds,
        confusion=confusion_matrix(table, score_threshold=NO_THRESHOLD if overall is None else overall),
        calibration=measure_calibration(table) if in_range else None,
        intervals=bootstrap_intervals(table, resamples=resamples, seed=seed) if resamples else None,
        slices=(sizes, *(measure_slices(table, of, by=by) for by, of in groups if by != SIZE)),
        comparison=None
        if other is None
        else compare_models(other, table, resamples=resamples, permutations=resamples, seed=seed),
    )
