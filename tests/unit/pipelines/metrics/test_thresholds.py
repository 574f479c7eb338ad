"""The best threshold is the best of all that there are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.metrics.matches import IGNORED, TRUE, MatchTable, match_images
from pipelines.metrics.thresholds import best_thresholds, operating_curve
from tests.matched import crowded_images, label_map


@pytest.fixture(scope="module")
def table() -> MatchTable:
    return match_images(*crowded_images(2, crowds=0.1), label_map(5))  # of which the last has no object


def kept(table: MatchTable, label: int, score: float) -> tuple[int, int, int]:
    """True, false and missed, counted one by one."""
    true = false = 0
    for row in range(table.num_detections):
        outcome = table.outcomes[row, 0, 0]
        if table.labels[row] == label and outcome != IGNORED and table.scores[row] >= score:
            true += outcome == TRUE
            false += outcome != TRUE
    truths = int((~table.truth_iscrowd[table.truth_labels == label]).sum())
    return int(true), int(false), truths - int(true)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_no_threshold_has_a_higher_f(table: MatchTable, beta: float) -> None:
    best = best_thresholds(table, beta=beta)
    for label in range(4):
        values = {}
        for score in np.unique(table.scores):
            true, false, missed = kept(table, label, score)
            if true:
                precision, recall = true / (true + false), true / (true + missed)
                values[score] = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        most = max(values.values())
        of_class = best.per_class[f"class {label}"]
        assert of_class.score == max(score for score, value in values.items() if value > most - 1e-12)
        assert (of_class.num_true, of_class.num_false, of_class.num_missed) == kept(table, label, of_class.score)
    assert best.per_class["class 4"].score is None
    assert best.overall.num_true + best.overall.num_missed == int((~table.truth_iscrowd).sum())
    json.dumps(best.to_json(), allow_nan=False)


def test_wanted_precision(table: MatchTable) -> None:
    best = best_thresholds(table, precision=0.5)
    for label in range(4):
        of_class = best.per_class[f"class {label}"]
        enough = [0]
        for score in np.unique(table.scores):
            true, false, _ = kept(table, label, score)
            enough += [true] if true >= false else []
        assert of_class.num_true == max(enough)
        assert of_class.precision is None or of_class.precision >= 0.5
    out_of_reach = best_thresholds(table, iou=0.95, precision=1.0).overall
    assert out_of_reach.score is None and out_of_reach.num_missed == int((~table.truth_iscrowd).sum())


def test_curve_in_json_keeps_its_ends(table: MatchTable) -> None:
    curve = operating_curve(table)
    assert (np.diff(curve.scores) < 0).all()
    points = curve.to_json(most=4)
    assert len(points["scores"]) == 4
    assert points["recall"][-1] == pytest.approx(curve.recall[-1], abs=1e-6)
    assert operating_curve(match_images([], [], label_map(1))).to_json()["scores"] == []


def test_refusals(table: MatchTable) -> None:
    with pytest.raises(ValueError, match="unknown class 'dog'; the classes are class 0"):
        operating_curve(table, "dog")
    with pytest.raises(ValueError, match="beta must be above 0"):
        best_thresholds(table, beta=0)
    with pytest.raises(ValueError, match="precision must be in"):
        best_thresholds(table, precision=50)
