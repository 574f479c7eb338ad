"""The quick sum over many weightings against the curve of each."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.metrics.matches import match_images
from pipelines.metrics.ranking import (
    RECALL_POINTS,
    _recall_points_up_to,
    average_precisions,
    curve,
    final_recall,
    make_ranking,
    threshold_index,
)
from tests.matched import label_map


@pytest.mark.parametrize("seed", range(5))
def test_each_weighting_has_the_area_of_its_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for num_detections, num_truths in ((0, 3), (3, 0), (1, 1), (60, 25), (300, 40)):
        images = rng.integers(0, 12, num_detections)
        truth_images = rng.integers(0, 12, num_truths)
        is_true = np.zeros((3, num_detections), np.bool_)
        for of_threshold in is_true:
            # A truth is taken once at most, by a detection of its image.
            for image in range(12):
                own = np.flatnonzero(images == image)
                most = min(len(own), int((truth_images == image).sum()))
                of_threshold[rng.permutation(own)[: rng.integers(0, most + 1)]] = True
        ignored = rng.random(is_true.shape) < 0.2
        ranking = make_ranking(images, rng.integers(0, 9, num_detections) / 9, is_true, ignored, truth_images)
        weights = np.vstack([np.ones(12), rng.integers(0, 2, (3, 12)), rng.integers(0, 5, (600, 12)), np.zeros(12)])
        quick = average_precisions(ranking, weights.astype(np.float64))
        for row in [0, 1, 2, 3, 4, 511, 512, 513, -1]:
            precision, _ = curve(ranking, weights[row].astype(np.float64))
            if precision[0, 0] < 0:
                assert np.isnan(quick[row]).all()
                assert (final_recall(ranking, weights[row].astype(np.float64)) == -1).all()
            else:
                np.testing.assert_allclose(quick[row], precision.mean(1), rtol=0, atol=1e-14)
    assert np.isnan(quick[-1]).all() and not np.isnan(quick[0]).any()


def test_recall_points_are_searched_without_searching() -> None:
    for num_truths in range(1, 400):
        recall = np.arange(num_truths + 1) / num_truths
        np.testing.assert_array_equal(
            _recall_points_up_to(recall), np.searchsorted(RECALL_POINTS, recall, side="right")
        )


def test_thresholds_are_found_by_value() -> None:
    settings = match_images([], [], label_map(1)).settings
    assert [threshold_index(settings, iou) for iou in (0.5, 0.55, 0.7, 0.95)] == [0, 1, 4, 9]
    with pytest.raises(ValueError, match=r"IoU 0\.52 was not matched at; choose one of 0\.5, 0\.55"):
        threshold_index(settings, 0.52)
