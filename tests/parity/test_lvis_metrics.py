"""LVIS's numbers and arrays against hotcoco's LVIS mode."""

from __future__ import annotations

import copy
from typing import Any

import hotcoco
import numpy as np
import pytest

from pipelines.metrics.lvis import LvisMetrics, evaluate_lvis
from pipelines.records import LabelMap
from tests.cocotools import Document, Results, as_detections, as_numbers, as_sizes, as_truths, jittered, name_of

CLASSES = 12


def made_up(seed: int) -> tuple[Document, Results]:
    """Each image is looked at for some classes only; detections are of any class."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(1, 31):
        present = rng.choice(np.arange(1, CLASSES + 1), 4, replace=False).tolist()
        images.append(
            {
                "id": i,
                "width": 200,
                "height": 160,
                "neg_category_ids": present[2:3],
                "not_exhaustive_category_ids": present[1:2] if i % 2 else [],
            }
        )
        for _ in range(int(rng.integers(1, 8))):
            x, y, w, h = (float(v) for v in rng.integers([0, 0, 8, 8], [90, 60, 110, 100]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(rng.choice(present[:2])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": c, "name": f"c{c}", "frequency": "rcf"[c % 3]} for c in range(1, CLASSES + 1)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, jittered(truth, seed + 1, masks=True) * 2 + crowded(rng)


def crowded(rng: np.random.Generator) -> Results:
    """More than 300 detections in one image, of equal scores too."""
    return [
        {
            "image_id": 4,
            "category_id": int(rng.integers(1, CLASSES + 1)),
            "bbox": [float(v) for v in rng.integers([0, 0, 8, 8], [90, 60, 110, 100])],
            "score": float(rng.integers(1, 30)) / 30,
            "segmentation": {"size": [160, 200], "counts": [0, 900, 160 * 200 - 900]},
        }
        for _ in range(360)
    ]


def measure(truth: Document, results: Results, iou_type: str) -> LvisMetrics:
    label_map = LabelMap.from_json([{**c, "extra": {"frequency": c["frequency"]}} for c in truth["categories"]])
    federated = {
        key: {name_of(image["id"]): image[f"{key}_category_ids"] for image in truth["images"]}
        for key in ("neg", "not_exhaustive")
    }
    return evaluate_lvis(
        as_truths(truth),
        as_detections(results),
        label_map,
        iou_type=iou_type,  # type: ignore[arg-type]
        sizes=as_sizes(truth),
        numbers=as_numbers(truth),
        **federated,
    )


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_hotcoco(seed: int, iou_type: str) -> None:
    truth, results = made_up(seed)
    found = measure(truth, results, iou_type)
    given = copy.deepcopy(results)
    if iou_type == "segm":
        for result in given:
            result.pop("bbox", None)  # a box would give its area
    dataset = hotcoco.COCO(copy.deepcopy(truth))
    expected = hotcoco.COCOeval(dataset, hotcoco.LVISResults(dataset, given, 300), iou_type, lvis_style=True)
    expected.run()
    assert expected.eval is not None
    for name in ("precision", "recall"):
        theirs = np.asarray(expected.eval[name])
        np.testing.assert_array_equal(getattr(found.coco, name).reshape(theirs.shape), theirs, err_msg=name)
    numbers = expected.get_results()
    ours = dict(zip(expected.metric_keys(), found.stats.values(), strict=True))
    assert ours == pytest.approx({name: numbers[name] for name in ours}, abs=1e-12)
    assert all(0 < found.stats[f"AP_{group}"] < 1 for group in "rcf")
    assert found.num_unjudged > 50
    assert found.num_cut >= 60
    assert found.to_json()["stats"]["AP_r"] == found.stats["AP_r"]


def test_keypoints_and_unknown_images_are_refused() -> None:
    label_map = LabelMap.from_json([{"id": 1, "name": "c"}])
    with pytest.raises(ValueError, match="LVIS measures boxes and masks"):
        evaluate_lvis([], [], label_map, neg={}, not_exhaustive={}, iou_type="keypoints")
    with pytest.raises(ValueError, match="'x' has verified categories"):
        evaluate_lvis([], [], label_map, neg={"x": [1]}, not_exhaustive={})
