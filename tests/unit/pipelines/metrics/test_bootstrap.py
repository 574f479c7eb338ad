"""Intervals are sums of weighted images: the same as drawing them for real, and as wide as they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.metrics.bootstrap import bootstrap_intervals, draw_images
from pipelines.metrics.coco import evaluate_boxes
from pipelines.metrics.matches import match_images
from pipelines.metrics.ranking import average_precisions, mean_over_classes, rankings
from tests.matched import SimulatedDetector, crowded_images, label_map


def test_intervals_cover_the_true_ap_as_often_as_they_say() -> None:
    detector = SimulatedDetector(num_classes=2)
    rng = np.random.default_rng(2)
    # What the detector reaches on ever more images; the spread of the mean of these is 0.0005.
    many = [bootstrap_intervals(detector.table(rng, 20_000), statistics=("AP50",), resamples=2) for _ in range(4)]
    true = np.mean([result.overall["AP50"].value for result in many])
    assert 0.6 < true < 0.7
    covered, widths = 0, []
    for _ in range(500):
        interval = bootstrap_intervals(detector.table(rng, 120), statistics=("AP50",), resamples=250).overall["AP50"]
        covered += interval.low <= true <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.91 <= covered / 500 <= 0.98
    # An interval of everything would cover too.
    assert np.mean(widths) < 0.15


def test_a_weighting_is_as_the_images_drawn_for_real() -> None:
    truths, found = crowded_images(3, num_images=25, crowds=0.1, tied=False)
    labels = label_map(4)
    (_, weights), *_ = draw_images(25, 3, seed=5)
    table = match_images(truths, found, labels)
    ours = mean_over_classes(np.stack([average_precisions(ranking, weights) for ranking in rankings(table)]))
    for drawn, of_thresholds in zip(weights.astype(int), ours, strict=True):
        assert drawn.sum() == 25 and drawn.max() > 1
        copies = [at for at, times in enumerate(drawn) for _ in range(times)]
        metrics = evaluate_boxes(
            [(f"{n}", truths[at][1]) for n, at in enumerate(copies)],
            [(f"{n}", found[at][1]) for n, at in enumerate(copies)],
            labels,
        )
        assert of_thresholds.mean() == pytest.approx(metrics.stats["AP"], abs=1e-12)
        assert of_thresholds[0] == pytest.approx(metrics.stats["AP50"], abs=1e-12)


def test_values_are_coco_s_and_a_seed_decides_the_rest() -> None:
    truths, found = crowded_images(4)
    table = match_images(truths, found, label_map(4))
    metrics = evaluate_boxes(truths, found, label_map(4))
    one = bootstrap_intervals(table, statistics=("AP", "AP50", "AP75"), resamples=60, seed=1)
    for name, interval in one.overall.items():
        assert interval.value == pytest.approx(metrics.stats[name], abs=1e-12)
        assert interval.low < interval.high
    for name, of_class in one.per_class.items():
        assert of_class["AP75"].value == pytest.approx(metrics.per_class[name].AP75, abs=1e-12)
    assert one == bootstrap_intervals(table, statistics=("AP", "AP50", "AP75"), resamples=60, seed=1)
    assert one != bootstrap_intervals(table, statistics=("AP", "AP50", "AP75"), resamples=60, seed=2)
    assert json.loads(json.dumps(one.to_json(), allow_nan=False))["overall"]["AP"]["value"] == one.overall["AP"].value
    large = bootstrap_intervals(table, statistics=("AP",), resamples=2, area="large")
    assert large.overall["AP"].value == pytest.approx(metrics.stats["AP_large"], abs=1e-12)


def test_nothing_to_measure_has_no_interval() -> None:
    table = match_images([], [], label_map(2))
    assert bootstrap_intervals(table, resamples=3).overall["AP"].value is None
    # A class without truth has none either, and does not lower the mean.
    truths, found = crowded_images(4, num_classes=2)
    table = match_images(truths, found, label_map(3))
    made = bootstrap_intervals(table, statistics=("AP50",), resamples=20)
    assert made.per_class["class 2"]["AP50"].low is None
    assert made.overall["AP50"].value == pytest.approx(
        np.mean([made.per_class[f"class {k}"]["AP50"].value for k in range(2)])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "resamples must be 2 or more"),
        ({"confidence": 95}, "between 0 and 1, got 95"),
        ({"statistics": ("AP12",)}, "AP12 needs matches at IoU 0.12"),
        ({"statistics": ("mAP",)}, "unknown statistic 'mAP'"),
        ({"area": "tiny"}, "no area range 'tiny'"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    table = match_images(*crowded_images(1, num_images=3), label_map(4))
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(table, **options)
