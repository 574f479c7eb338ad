"""What box metrics refuse, and the order that decides between equal scores."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from pipelines.metrics.coco import CocoMetrics, evaluate_boxes
from pipelines.records import Annotations, LabelMap

LABELS = LabelMap.from_json([{"id": 5, "name": "cell"}, {"id": 2, "name": "platelet"}])
BOX = np.array([[10.0, 10, 20, 20]])
FAR = np.array([[100.0, 100, 20, 20]])


def found(boxes: np.ndarray, scores: list[float], category: int = 5) -> Annotations:
    return Annotations.from_boxes(boxes, np.full(len(boxes), category), scores=np.array(scores))


def truth(category: int = 5) -> Annotations:
    return Annotations.from_boxes(BOX, np.array([category]))


def measure(*boxes: np.ndarray) -> CocoMetrics:
    return evaluate_boxes([("a", truth())], [("a", found(np.concatenate(boxes), [0.5] * len(boxes)))], LABELS)


def test_equal_scores_keep_the_detector_s_order() -> None:
    assert measure(BOX, FAR).stats["AP50"] == pytest.approx(1.0)
    assert measure(FAR, BOX).stats["AP50"] == pytest.approx(0.5)


def test_classes_follow_the_label_map_not_the_ids() -> None:
    metrics = evaluate_boxes(
        [("a", truth(5)), ("b", truth(2))], [("b", found(BOX, [0.9], 2)), ("a", found(FAR, [0.9], 5))], LABELS
    )
    assert list(metrics.per_class) == ["cell", "platelet"]
    assert [c.AP for c in metrics.per_class.values()] == pytest.approx([0.0, 1.0])
    assert [c.num_truths for c in metrics.per_class.values()] == [1, 1]
    assert pytest.approx(1.0) == metrics.pr_curve(0.75, "platelet").AP
    assert metrics.pr_curve(0.5).precision == pytest.approx(np.full(101, 0.5))
    assert json.loads(json.dumps(metrics.to_json()))["stats"]["AP"] == pytest.approx(0.5)


def test_unknown_area_is_the_box_s_own() -> None:
    large = Annotations.from_boxes(np.array([[0.0, 0, 200, 200]]), np.array([5]))
    large.area[:] = np.nan
    metrics = evaluate_boxes([("a", large)], [("a", found(large.boxes_xywh, [1.0]))], LABELS)
    assert metrics.stats["AP_large"] == pytest.approx(1.0)
    assert metrics.stats["AP_small"] == -1.0


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # an import of it fails
    assert measure(BOX).engine == "boxmill"
    with pytest.raises(ValueError, match="pip install hotcoco"):
        evaluate_boxes([], [], LABELS, engine="hotcoco")
    with pytest.raises(ValueError, match="unknown engine 'cocoapi'; choose one of auto, boxmill"):
        evaluate_boxes([], [], LABELS, engine="cocoapi")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("truths", "detections", "message"),
    [
        ([("a", truth()), ("a", truth())], [], "'a' is in the truth twice"),
        ([("a", truth())], [("a", found(BOX, [1.0])), ("a", found(BOX, [1.0]))], "'a' is in the detections twice"),
        ([("a", truth())], [("b", found(BOX, [1.0]))], "'b', which has no truth"),
        ([("a", truth())], [("a", truth())], "have no scores"),
        ([("a", truth())], [("a", found(BOX, [float("nan")]))], "not finite"),
        ([("a", truth(9))], [], "category id 9"),
    ],
)
def test_refusals(
    truths: list[tuple[str, Annotations]], detections: list[tuple[str, Annotations]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_boxes(truths, detections, LABELS)


def test_curve_of_an_unknown_class_or_threshold() -> None:
    with pytest.raises(ValueError, match="the classes are cell, platelet"):
        measure(BOX).pr_curve(0.5, "dog")
    with pytest.raises(ValueError, match=r"IoU 0\.6123"):
        measure(BOX).pr_curve(0.6123)
