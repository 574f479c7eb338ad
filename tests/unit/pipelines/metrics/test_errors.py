"""Mistakes made on purpose are found again, and mending them gains what mended predictions gain."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.metrics.coco import evaluate_boxes
from pipelines.metrics.errors import ERROR_KINDS, ErrorKind, break_down_errors, find_errors
from pipelines.metrics.matches import match_images
from pipelines.records import Annotations
from tests.matched import Rows, label_map

LABELS = label_map(3)
PLACE = np.array([[100.0, 100, 80, 80]])
MADE: dict[str, int] = {
    "right": 25,
    "classification": 4,
    "localisation": 6,
    "both": 7,
    "duplicate": 5,
    "background": 8,
    "missed": 3,
}


def moved(pixels: float) -> np.ndarray:
    return PLACE + np.array([pixels, 0.0, 0, 0])


def known_mistakes(seed: int, *, mended: str | None = None) -> tuple[Rows, Rows]:
    """An image a mistake, with classes, scores and order by chance; one kind may be mended in what is predicted."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for kind in rng.permutation([kind for kind, count in MADE.items() for _ in range(count)]):
        category, score, better = int(rng.integers(1, 4)), float(rng.uniform(0.1, 1)), float(rng.uniform(0.1, 1))
        other = category % 3 + 1
        jitter = PLACE + rng.uniform(-4, 4, (1, 4))
        aside = moved(rng.uniform(35, 60))  # an IoU of 0.14 to 0.39
        right = (jitter, category, better)
        match str(kind):
            case "right":
                made = [right]
            case "classification":
                made = [(jitter, category if mended == kind else other, score)]
            case "localisation":
                made = [(PLACE if mended == kind else aside, category, score)]
            case "both":
                made = [right] if mended == kind else [right, (aside, other, score)]
            case "duplicate":
                made = [right] if mended == kind else [right, (PLACE, category, score * better)]
            case "background":
                made = [right] if mended == kind else [right, (moved(200), other, score)]
            case _:
                made = []
        name = f"image {len(truths):03}"
        asked = 0 if kind == mended == "missed" else 1
        truths.append((name, Annotations.from_boxes(PLACE[:asked], np.array([category][:asked], np.int64))))
        boxes = np.concatenate([np.zeros((0, 4)), *(box for box, _, _ in made)])
        categories = np.array([c for _, c, _ in made], np.int64)
        found.append((name, Annotations.from_boxes(boxes, categories, scores=np.array([s for *_, s in made]))))
    return truths, found


@pytest.mark.parametrize("seed", range(4))
def test_known_mistakes_are_counted_and_what_mending_gains(seed: int) -> None:
    truths, found = known_mistakes(seed)
    errors = break_down_errors(match_images(truths, found, LABELS))
    assert dict(errors.overall.counts) == {kind: MADE[kind] for kind in ERROR_KINDS}
    base = evaluate_boxes(truths, found, LABELS)
    assert errors.overall.ap == pytest.approx(base.stats["AP50"], abs=1e-12)
    for kind in ERROR_KINDS:
        better = evaluate_boxes(*known_mistakes(seed, mended=kind), LABELS)
        gain = better.stats["AP50"] - base.stats["AP50"]
        assert errors.overall.delta_ap[kind] == pytest.approx(gain, abs=1e-12)
        for name, of_class in errors.per_class.items():
            assert of_class.delta_ap[kind] == pytest.approx(
                better.per_class[name].AP50 - base.per_class[name].AP50, abs=1e-12
            )
    assert 0 < errors.overall.delta_false_positives < 1 - errors.overall.ap
    assert 0 < errors.overall.delta_false_negatives < 1 - errors.overall.ap
    assert sum(of_class.counts["duplicate"] for of_class in errors.per_class.values()) == MADE["duplicate"]
    assert json.loads(json.dumps(errors.to_json(), allow_nan=False))["overall"]["counts"]["both"] == MADE["both"]


def test_rows_of_a_kind_say_which_and_what_was_meant() -> None:
    table = match_images(*known_mistakes(1), LABELS)
    errors = find_errors(table)
    for row in errors.rows_of("classification"):
        meant = errors.truths[row]
        assert table.truth_images[meant] == table.images[row]
        assert table.truth_labels[meant] != table.labels[row]
        assert errors.not_found[meant] and not errors.missed[meant]
    for row in errors.rows_of("background"):
        assert errors.truths[row] == -1 and table.best_iou_any[row] == 0
    assert len(errors.rows_of("missed")) == MADE["missed"]
    assert errors.not_found.sum() == MADE["missed"] + MADE["localisation"] + MADE["classification"]


def test_of_two_that_mean_one_truth_the_better_score_is_mended() -> None:
    aside = moved(40)
    found = Annotations.from_boxes(np.concatenate([aside, PLACE]), np.array([1, 2]), scores=np.array([0.4, 0.8]))
    errors = break_down_errors(
        match_images([("a", Annotations.from_boxes(PLACE, np.array([1])))], [("a", found)], LABELS)
    )
    assert errors.overall.counts["classification"] == errors.overall.counts["localisation"] == 1
    assert errors.overall.delta_ap["classification"] == pytest.approx(1.0)
    assert errors.overall.delta_ap["localisation"] == 0.0


def test_crowds_excuse_and_are_not_missed() -> None:
    crowd = Annotations.from_boxes(np.array([[0.0, 0, 300, 300]]), np.array([1]))
    crowd.iscrowd[:] = True
    inside = Annotations.from_boxes(PLACE, np.array([1]), scores=np.array([0.9]))
    partly = Annotations.from_boxes(np.array([[260.0, 0, 100, 100]]), np.array([1]), scores=np.array([0.9]))
    errors = break_down_errors(match_images([("a", crowd), ("b", crowd)], [("a", inside), ("b", partly)], LABELS))
    # Four tenths of the second lie in the crowd: too little to be excused, and no truth that it could mean.
    assert dict(errors.overall.counts) == dict.fromkeys(ERROR_KINDS, 0) | {"background": 1}
    assert errors.overall.ap is None and errors.per_class["class 0"].delta_ap["background"] is None


def test_at_another_iou_other_mistakes() -> None:
    truths, found = known_mistakes(0)
    table = match_images(truths, found, LABELS)
    counts: dict[ErrorKind, int] = dict(break_down_errors(table, iou=0.95).overall.counts)
    assert counts["localisation"] > MADE["localisation"] and counts["background"] == MADE["background"]
    with pytest.raises(ValueError, match=r"IoU 0\.3 was not matched at"):
        find_errors(table, iou=0.3)
    with pytest.raises(ValueError, match=r"background_iou must be from 0 up to iou 0\.5, got 0\.7"):
        find_errors(table, background_iou=0.7)
    empty = break_down_errors(match_images([], [], LABELS))
    assert empty.overall.ap is None and not any(empty.overall.counts.values())
