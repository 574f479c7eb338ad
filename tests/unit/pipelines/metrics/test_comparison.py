"""A better model is told from a lucky one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.metrics.coco import evaluate_boxes
from pipelines.metrics.comparison import compare_models
from pipelines.metrics.matches import match_images
from pipelines.metrics.ranking import average_precisions, mean_over_classes, rankings
from tests.matched import SimulatedDetector, crowded_images, label_map

LABELS = label_map(4)
FAST = {"statistics": ("AP50",), "resamples": 150, "permutations": 150}


def test_equal_models_are_rarely_called_different() -> None:
    detector = SimulatedDetector(num_classes=1)
    rng = np.random.default_rng(3)
    p_values, covered = [], 0
    for _ in range(200):
        first = detector.table(rng, 60)
        found = compare_models(first, detector.table(rng, 60, of=first), **FAST).overall["AP50"]
        p_values.append(found.p_value)
        covered += found.low <= 0 <= found.high
    # Under no difference p-values are uniform; these bounds are 3 standard errors of 200 draws wide.
    for level in (0.1, 0.3, 0.5, 0.7):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 200))
    assert min(p_values) >= 1 / 151
    assert 0.89 <= covered / 200 <= 0.99


def test_a_better_model_is_found_out() -> None:
    rng = np.random.default_rng(4)
    first = SimulatedDetector(num_classes=3).table(rng, 150)
    second = SimulatedDetector(num_classes=3, skill=0.8).table(rng, 150, of=first)
    result = compare_models(first, second, **FAST)
    found = result.overall["AP50"]
    assert found.difference == found.second - found.first > 0.05
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(1 / 151)
    turned = compare_models(second, first, **FAST).overall["AP50"]
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p_value == found.p_value
    # Three classes are three chances to be wrong.
    smallest = min((of_class["AP50"] for of_class in result.per_class.values()), key=lambda d: d.p_value)
    assert smallest.p_adjusted == pytest.approx(3 * smallest.p_value)
    assert all(c["AP50"].p_adjusted >= c["AP50"].p_value for c in result.per_class.values())
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["num_images"] == 150


def test_values_are_coco_s_and_swapping_is_swapping() -> None:
    truths, found = crowded_images(1, tied=False)
    _, others = crowded_images(2, tied=False)
    first, second = match_images(truths, found, LABELS), match_images(truths, others, LABELS)
    result = compare_models(first, second, statistics=("AP", "AP75"), resamples=20, permutations=400, seed=5)
    metrics = [evaluate_boxes(truths, rows, LABELS) for rows in (found, others)]
    for name, difference in result.overall.items():
        assert difference.first == pytest.approx(metrics[0].stats[name], abs=1e-12)
        assert difference.second == pytest.approx(metrics[1].stats[name], abs=1e-12)
    # The same test with detections that are swapped for real, matched anew, and other coins.
    rng = np.random.default_rng(0)
    as_large = 0
    for _ in range(200):
        coins = rng.random(len(truths)) < 0.5
        mixed = [
            [b if coin else a for a, b, coin in zip(found, others, coins, strict=True)],
            [a if coin else b for a, b, coin in zip(found, others, coins, strict=True)],
        ]
        aps = [
            mean_over_classes(np.stack([average_precisions(r, np.ones((1, len(truths)))) for r in rankings(table)]))
            for table in (match_images(truths, rows, LABELS) for rows in mixed)
        ]
        as_large += abs(aps[0].mean() - aps[1].mean()) >= abs(result.overall["AP"].difference)
    assert result.overall["AP"].p_value == pytest.approx(as_large / 200, abs=0.13)  # 3 standard errors


def test_a_model_is_not_better_than_itself() -> None:
    table = match_images(*crowded_images(1), LABELS)
    found = compare_models(table, table, resamples=10, permutations=10).overall["AP"]
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    nothing = match_images([], [], LABELS)
    assert compare_models(nothing, nothing, resamples=3, permutations=3).overall["AP"].p_value is None


def test_refusals() -> None:
    truths, found = crowded_images(1)
    table = match_images(truths, found, LABELS)
    fewer = match_images(truths[:-1], found[:-1], LABELS)
    with pytest.raises(ValueError, match="different images \\('image 039' is in one alone"):
        compare_models(table, fewer)
    with pytest.raises(ValueError, match="different truth"):
        compare_models(table, replace(table, truth_ids=table.truth_ids + 1))
    with pytest.raises(ValueError, match="different classes"):
        compare_models(table, match_images(truths, found, label_map(5)))
    with pytest.raises(ValueError, match="different settings"):
        compare_models(table, replace(table, settings=replace(table.settings, max_detections=(1, 10))))
    with pytest.raises(ValueError, match="permutations must be 2 or more"):
        compare_models(table, table, permutations=0)
