"""Scores that tell the truth are calibrated, others are not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.metrics.calibration import measure_calibration
from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable
from tests.matched import SimulatedDetector


def right_as_often_as(precision: np.ndarray) -> MatchTable:
    """As many detections, with those scores; a tenth of them ignored, whatever they say."""
    table = SimulatedDetector(num_classes=3).table(np.random.default_rng(0), 3000)
    rng = np.random.default_rng(1)
    scores = rng.random(table.num_detections)
    outcomes = np.where(rng.random(len(scores)) < precision[np.minimum((scores * 10).astype(int), 9)], TRUE, FALSE)
    outcomes[rng.random(len(scores)) < 0.1] = IGNORED
    return replace(table, scores=scores, outcomes=outcomes.astype(np.uint8)[:, None, None])


def test_scores_that_tell_the_precision() -> None:
    table = right_as_often_as(np.arange(10) / 10 + 0.05)
    calibration = measure_calibration(table)
    assert calibration.overall.ece < 0.02 and abs(calibration.overall.overconfidence) < 0.01
    assert calibration.overall.count == (table.outcomes != IGNORED).sum()
    assert sum(b.count for b in calibration.bins) == calibration.overall.count
    for b in calibration.bins:
        assert b.low < b.mean_score < b.high
        assert b.precision == pytest.approx((b.low + b.high) / 2, abs=0.07)
    json.dumps(calibration.to_json(), allow_nan=False)


def test_a_model_that_promises_too_much() -> None:
    calibration = measure_calibration(right_as_often_as(np.full(10, 0.2)))
    # The gap is 0.75 in the last bin and 0.15 the other way in the first; their mean by hand:
    gaps = np.abs(np.arange(10) / 10 + 0.05 - 0.2)
    assert calibration.overall.ece == pytest.approx(gaps.mean(), abs=0.02)
    assert calibration.overall.mce == pytest.approx(gaps.max(), abs=0.03)
    assert calibration.overall.overconfidence == pytest.approx(0.3, abs=0.02)
    assert all(c.overconfidence == pytest.approx(0.3, abs=0.04) for c in calibration.per_class.values())


def test_bounds() -> None:
    table = right_as_often_as(np.full(10, 0.5))
    with pytest.raises(ValueError, match=r"scores in 0\.\.1, got -"):
        measure_calibration(replace(table, scores=table.scores - 0.5))
    with pytest.raises(ValueError, match="num_bins must be 1 or more"):
        measure_calibration(table, num_bins=0)
    ignored = replace(table, outcomes=np.full_like(table.outcomes, IGNORED))
    nothing = measure_calibration(ignored)
    assert nothing.overall.ece is None and nothing.bins[0].precision is None
    assert nothing.to_json()["overall"]["count"] == 0
