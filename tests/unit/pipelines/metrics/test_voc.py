"""VOC's average precision by hand, and against a loop over detections with the development kit's corners."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.metrics.voc import evaluate_voc
from pipelines.records import Annotations, LabelMap

LABELS = LabelMap.from_json([{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])
Images = list[tuple[str, Annotations]]


def objects(
    boxes: list[list[float]], *, scores: list[float] | None = None, difficult: tuple[int, ...] = ()
) -> Annotations:
    made = Annotations.from_boxes(
        np.array(boxes).reshape(-1, 4),
        np.ones(len(boxes), np.int64),
        scores=None if scores is None else np.array(scores),
    )
    return replace(made, attributes=tuple({"difficult": at in difficult} for at in range(len(boxes))))


def test_a_worked_example() -> None:
    """Four truths; right, wrong, right, right by score: precision 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 1/2, 3/4."""
    boxes = [[0.0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10], [60, 0, 10, 10]]
    found = objects([boxes[0], [0, 50, 10, 10], boxes[1], boxes[2]], scores=[0.9, 0.8, 0.7, 0.6])
    voc07 = evaluate_voc([("a", objects(boxes))], [("a", found)], LABELS)
    # Recall 0, .1, .2 are reached at precision 1; .3 to .7 at best at 3/4; .8 to 1 never.
    assert voc07.per_class["cat"] == pytest.approx((3 * 1 + 5 * 0.75) / 11, abs=1e-15)
    voc10 = evaluate_voc([("a", objects(boxes))], [("a", found)], LABELS, protocol="voc10")
    assert voc10.per_class["cat"] == pytest.approx(0.25 * 1 + 0.5 * 0.75, abs=1e-15)
    assert voc10.curves[0].precision.tolist() == [1, 1 / 2, 2 / 3, 3 / 4]
    assert voc10.per_class["dog"] == -1.0
    assert voc10.stats == {"mAP": voc10.per_class["cat"]}
    assert json.loads(json.dumps(voc10.to_json()))["per_class"]["dog"]["AP"] is None


def test_difficult_objects_are_neither_missed_nor_found() -> None:
    boxes = [[0.0, 0, 10, 10], [20, 0, 10, 10]]
    both = objects(boxes, scores=[0.9, 0.8])
    metrics = evaluate_voc([("a", objects(boxes, difficult=(0,)))], [("a", both)], LABELS, protocol="voc10")
    assert metrics.per_class["cat"] == 1.0
    assert (metrics.curves[0].num_truths, metrics.curves[0].num_difficult, len(metrics.curves[0].scores)) == (1, 1, 1)
    only = evaluate_voc([("a", objects(boxes, difficult=(0, 1)))], [("a", both)], LABELS)
    assert only.per_class["cat"] == only.stats["mAP"] == -1.0


def test_a_taken_truth_is_not_replaced_by_the_next_best() -> None:
    """Where COCO would give the second detection the second truth."""
    truth = objects([[0.0, 0, 10, 10], [0, 3, 10, 10]])
    found = objects([[0.0, 0, 10, 10], [0, 1, 10, 10]], scores=[0.9, 0.8])
    assert evaluate_voc([("a", truth)], [("a", found)], LABELS, protocol="voc10").per_class["cat"] == 0.5


def test_pixels_count_with_both_ends() -> None:
    """Corners 1..10 and 1..5: 50 of 100 pixels, exactly the threshold; without the ones it would be 36 of 81."""
    truth, found = objects([[0.0, 0, 10, 10]]), objects([[0.0, 0, 10, 5]], scores=[1.0])
    assert evaluate_voc([("a", truth)], [("a", found)], LABELS, protocol="voc10").per_class["cat"] == 1.0


def test_nothing_found_and_no_truth() -> None:
    truth = [("a", objects([[0.0, 0, 10, 10]]))]
    assert evaluate_voc(truth, [], LABELS).stats["mAP"] == 0.0
    assert evaluate_voc([], [], LABELS).stats["mAP"] == -1.0
    with pytest.raises(ValueError, match="choose one of voc07, voc10"):
        evaluate_voc(truth, [], LABELS, protocol="voc12")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="IoU thresholds"):
        evaluate_voc(truth, [], LABELS, iou_threshold=0.0)


def by_loops(truths: Images, detections: Images, label: int, protocol: str) -> float:
    """The development kit's way: one detection after the other, corners that belong to the box."""
    corners = lambda box: (box[0] + 1, box[1] + 1, box[0] + box[2], box[1] + box[3])  # noqa: E731
    found = [
        (float(a.scores[i]), name, corners(a.boxes_xywh[i]))
        for name, a in detections
        for i in range(len(a))
        if a.scores is not None and a.category_ids[i] == label + 1
    ]
    own = {
        name: [
            [corners(a.boxes_xywh[i]), a.attributes[i]["difficult"], False]
            for i in range(len(a))
            if a.category_ids[i] == label + 1
        ]
        for name, a in truths
    }
    positives = sum(not t[1] for objects in own.values() for t in objects)
    tp, fp = [], []
    for _, name, box in sorted(found, key=lambda one: -one[0]):
        best, chosen = -np.inf, None
        for t in own[name]:
            width = min(box[2], t[0][2]) - max(box[0], t[0][0]) + 1
            height = min(box[3], t[0][3]) - max(box[1], t[0][1]) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, t[0])]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best:
                    best, chosen = overlap, t
        right = chosen is not None and best >= 0.5
        if right and chosen is not None and chosen[1]:
            continue
        tp.append(int(right and not chosen[2]))  # type: ignore[index]
        fp.append(1 - tp[-1])
        if right:
            chosen[2] = True  # type: ignore[index]
    recall = np.cumsum(tp) / positives
    precision = np.cumsum(tp) / (np.cumsum(tp) + np.cumsum(fp))
    if protocol == "voc07":
        return sum(max(precision[recall >= t], default=0.0) for t in np.arange(0, 1.1, 0.1)) / 11
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(np.diff(recall))
    return float(sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in steps))


@pytest.mark.parametrize("protocol", ["voc07", "voc10"])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_loops(seed: int, protocol: str) -> None:
    """Whole pixels, so that overlaps are exact and many are equal; scores with ties."""
    rng = np.random.default_rng(seed)

    def made(n: int, *, scored: bool) -> Annotations:
        boxes = np.concatenate([rng.integers(0, 30, (n, 2)), rng.integers(8, 24, (n, 2))], axis=1).astype(float)
        one = Annotations.from_boxes(boxes, rng.integers(1, 3, n), scores=rng.integers(0, 8, n) / 8 if scored else None)
        return replace(one, attributes=tuple({"difficult": bool(flag)} for flag in rng.random(n) < 0.2))

    truths = [(str(i), made(int(rng.integers(0, 8)), scored=False)) for i in range(12)]
    detections = []
    for name, truth in truths:
        false, kept = made(5, scored=True), np.flatnonzero(rng.random(len(truth)) < 0.8)
        moved = truth.boxes_xywh[kept] + rng.integers(-2, 3, (len(kept), 4))
        found = Annotations.from_boxes(
            np.concatenate([false.boxes_xywh, moved]),
            np.concatenate([false.category_ids, truth.category_ids[kept]]),
            scores=rng.integers(0, 8, 5 + len(kept)) / 8,
        )
        detections.append((name, found))
    metrics = evaluate_voc(truths, detections, LABELS, protocol=protocol)  # type: ignore[arg-type]
    for label, name in enumerate(LABELS.names):
        assert metrics.per_class[name] == pytest.approx(by_loops(truths, detections, label, protocol), abs=1e-12)
        assert 0.1 < metrics.per_class[name] < 0.9
