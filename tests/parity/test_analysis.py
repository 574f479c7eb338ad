"""The analyses of the match table against pycocotools and hotcoco, which match for themselves."""

from __future__ import annotations

from typing import Any

import hotcoco
import numpy as np
import pytest

from pipelines.metrics.calibration import measure_calibration
from pipelines.metrics.coco import evaluate_boxes
from pipelines.metrics.errors import ErrorKind, break_down_errors
from pipelines.metrics.matches import match_images
from pipelines.metrics.ranking import average_precisions, curve, rankings
from tests.matched import Rows, crowded_images, label_map

LABELS = label_map(4)
AREAS = ("all", "small", "medium", "large")
KINDS: dict[ErrorKind, str] = {
    "classification": "Cls",
    "localisation": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}


def hotcoco_evaluation(truths: Rows, found: Rows) -> Any:
    objects = [(number, a) for number, (_, a) in enumerate(truths, 1)]
    dataset = hotcoco.COCO.from_arrays(
        [{"id": number, "width": 400, "height": 400} for number, _ in objects],
        [{"id": c.category_id, "name": c.name} for c in LABELS.categories],
        np.repeat([number for number, _ in objects], [len(a) for _, a in objects]),
        np.concatenate([a.category_ids for _, a in objects]),
        np.concatenate([a.boxes_xywh for _, a in objects]),
        ids=np.arange(1, 1 + sum(len(a) for _, a in objects)),
        area=np.concatenate([a.area for _, a in objects]),
        iscrowd=np.concatenate([a.iscrowd for _, a in objects]).astype(np.int64),
    )
    rows = [
        np.column_stack([np.full(len(a), number), a.boxes_xywh, a.scores, a.category_ids])
        for number, (_, a) in enumerate(found, 1)
    ]
    evaluation = hotcoco.COCOeval(dataset, dataset.load_res(np.concatenate(rows).astype(np.float64)), "bbox")
    evaluation.evaluate()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_pycocotools_s_to_the_last_bit(seed: int) -> None:
    truths, found = crowded_images(seed, crowds=0.15)
    expected = evaluate_boxes(truths, found, LABELS, engine="pycocotools")
    table = match_images(truths, found, LABELS)
    for a, area in enumerate(AREAS):
        for k, ranking in enumerate(rankings(table, area)):
            precision, scores = curve(ranking, np.ones(table.num_images))
            np.testing.assert_array_equal(precision, expected.precision[:, :, k, a, -1])
            np.testing.assert_array_equal(scores, expected.scores[:, :, k, a, -1])
            fast = average_precisions(ranking, np.ones((1, table.num_images)))[0]
            with_truth = np.where(precision[:, 0] < 0, np.nan, precision.mean(1))
            np.testing.assert_allclose(fast, with_truth, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_errors_are_hotcoco_s(seed: int) -> None:
    # Without crowds: hotcoco lets a detection mean one, TIDE's own code does not.
    truths, found = crowded_images(seed, tied=False)
    expected = hotcoco_evaluation(truths, found).tide_errors()
    errors = break_down_errors(match_images(truths, found, LABELS)).overall
    assert errors.ap == pytest.approx(expected["ap_base"], abs=1e-12)
    for ours, theirs in KINDS.items():
        assert errors.counts[ours] == expected["counts"][theirs] > 0
        assert errors.delta_ap[ours] == pytest.approx(expected["delta_ap"][theirs], abs=1e-12)
    assert errors.delta_false_positives == pytest.approx(expected["delta_ap"]["FP"], abs=1e-12)
    assert errors.delta_false_negatives == pytest.approx(expected["delta_ap"]["FN"], abs=1e-12)


def test_calibration_is_hotcoco_s_own_from_objects() -> None:
    truths, found = crowded_images(5, crowds=0.15)
    expected = hotcoco_evaluation(truths, found).calibration(n_bins=7, iou_threshold=0.75)
    ours = measure_calibration(match_images(truths, found, LABELS), iou=0.75, num_bins=7)
    assert ours.overall.count == expected["num_detections"] > 100
    assert ours.overall.ece == pytest.approx(expected["ece"], abs=1e-12)
    assert ours.overall.mce == pytest.approx(expected["mce"], abs=1e-12)
    assert [b.count for b in ours.bins] == [b["count"] for b in expected["bins"]]
    for name, ece in expected["per_category"].items():
        assert ours.per_class[name].ece == pytest.approx(ece, abs=1e-12)
