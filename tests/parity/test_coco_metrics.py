"""Our box metrics against pycocotools run on COCO files as anybody would run it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.metrics.coco import STAT_NAMES, evaluate_boxes
from pipelines.records import Annotations, LabelMap

ENGINES = ("boxmill", "hotcoco", "pycocotools")


def oracle(truth: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    """pycocotools from dictionaries, by its own loadRes."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def as_truths(truth: dict[str, Any]) -> list[tuple[str, Annotations]]:
    rows = []
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        base = Annotations.from_boxes(
            np.array([a["bbox"] for a in own]).reshape(-1, 4), np.array([a["category_id"] for a in own], np.int64)
        )
        base.area[:] = [a["area"] for a in own]
        base.iscrowd[:] = [bool(a["iscrowd"]) for a in own]
        base.ids[:] = [a["id"] for a in own]
        rows.append((f"folder/{image['id']:012d}.jpg", base))
    return rows


def as_detections(results: list[dict[str, Any]]) -> list[tuple[str, Annotations]]:
    rows = []
    for image in dict.fromkeys(r["image_id"] for r in results):
        own = [r for r in results if r["image_id"] == image]
        found = Annotations.from_boxes(
            np.array([r["bbox"] for r in own]),
            np.array([r["category_id"] for r in own], np.int64),
            scores=np.array([r["score"] for r in own]),
        )
        rows.append((f"folder/{image:012d}.jpg", found))
    return rows


def as_label_map(truth: dict[str, Any]) -> LabelMap:
    # pycocotools orders classes by id.
    return LabelMap.from_json(sorted(truth["categories"], key=lambda c: c["id"]))


def jittered(truth: dict[str, Any], seed: int, *, ties: bool) -> list[dict[str, Any]]:
    """Truth moved a little, some of it lost or of another class, crowds found many times, and false alarms."""
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in truth["categories"]]
    results = []
    for a in truth["annotations"]:
        for _ in range(6 if a["iscrowd"] else int(rng.integers(0, 3))):
            x, y, w, h = a["bbox"]
            dx, dy, dw, dh = rng.normal(0, 0.12, 4)
            category = a["category_id"] if rng.random() < 0.85 else int(rng.choice(ids))
            score = float(rng.integers(1, 6)) / 5 if ties else float(rng.random())
            box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
            results.append(
                {
                    "image_id": a["image_id"],
                    "category_id": category,
                    "bbox": [float(v) for v in box],
                    "score": score,
                }
            )
    order = rng.permutation(len(results))
    return [results[at] for at in order]


def assert_equal(truth: dict[str, Any], results: list[dict[str, Any]], engine: str) -> None:
    expected = oracle(truth, results)
    found = evaluate_boxes(as_truths(truth), as_detections(results), as_label_map(truth), engine=engine)
    assert found.engine.startswith(engine)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(found, name), expected.eval[name], err_msg=name)
    np.testing.assert_allclose([found.stats[name] for name in STAT_NAMES], expected.stats, rtol=0, atol=1e-15)


@pytest.fixture(scope="module")
def coco_mini(boxmill_data: Path) -> dict[str, Any]:
    path = boxmill_data / "coco-mini/annotations/instances_val2017.json"
    truth = json.loads(path.read_text())
    assert any(a["iscrowd"] for a in truth["annotations"])
    return truth


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct scores", "tied scores"])
def test_equal_on_real_images_with_crowds(coco_mini: dict[str, Any], engine: str, ties: bool) -> None:
    results = jittered(coco_mini, 3, ties=ties)
    assert len(results) > 300
    assert_equal(coco_mini, results, engine)


def made_up(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    images = [{"id": i, "width": 200, "height": 200} for i in range(12)]
    annotations = []
    for n in range(60):
        w, h = (float(v) for v in rng.uniform(4, 150, 2))
        annotations.append(
            {
                "id": n + 1,
                "image_id": int(rng.integers(12)),
                "category_id": int(rng.choice([0, 3, 90])),
                "bbox": [float(rng.uniform(0, 50)), float(rng.uniform(0, 50)), w, h],
                "area": w * h * float(rng.uniform(0.5, 1)),
                "iscrowd": int(rng.random() < 0.1),
            }
        )
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"c{i}"} for i in (0, 3, 17, 90)],
    }
    return truth, jittered(truth, seed + 1, ties=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(4))
def test_equal_on_made_up_scenes(seed: int, engine: str) -> None:
    """Category id 0, a class without truth, image id 0, images without objects, areas that are not box areas."""
    assert_equal(*made_up(seed), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_than_a_hundred_detections_an_image(engine: str) -> None:
    truth, _ = made_up(9)
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": 3,
            "category_id": 3,
            "bbox": [float(v) for v in rng.uniform(1, 100, 4)],
            "score": float(rng.integers(1, 4)) / 3,
        }
        for _ in range(250)
    ]
    assert_equal(truth, results, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_truth_of_id_0_can_be_found(engine: str) -> None:
    box, scores = np.array([[10.0, 10, 20, 20]]), np.array([0.9])
    truth = Annotations.from_boxes(box, np.array([7]))
    truth.ids[:] = 0
    label_map = LabelMap.from_json([{"id": 7, "name": "cell"}])
    found = Annotations.from_boxes(box, np.array([7]), scores=scores)
    assert evaluate_boxes([("a", truth)], [("a", found)], label_map, engine=engine).stats["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detections_is_zero_and_no_truth_is_minus_one(engine: str) -> None:
    label_map = LabelMap.from_json([{"id": 0, "name": "cell"}, {"id": 4, "name": "platelet"}])
    truth = Annotations.from_boxes(np.array([[1.0, 1, 10, 10]]), np.array([0]))
    found = Annotations.from_boxes(np.array([[1.0, 1, 10, 10]]), np.array([4]), scores=np.array([0.5]))

    nothing_found = evaluate_boxes([("a", truth)], [], label_map, engine=engine)
    assert nothing_found.stats["AP"] == 0.0
    assert nothing_found.stats["AP_large"] == -1.0
    assert nothing_found.to_json()["stats"]["AP_large"] is None
    assert nothing_found.per_class["platelet"].AP == -1.0
    assert nothing_found.pr_curve(0.5, "platelet").AP == -1.0

    no_truth = evaluate_boxes([("a", Annotations.empty())], [("a", found)], label_map, engine=engine)
    assert set(no_truth.stats.values()) == {-1.0}
    assert no_truth.pr_curve(0.5).AP == -1.0

    assert set(evaluate_boxes([], [], label_map, engine=engine).stats.values()) == {-1.0}
