"""What a validation measures: boxes always, masks and keypoints of detectors that give them."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.metrics.coco import STAT_NAMES, evaluate_boxes
from tests.evaluated import synthetic_records
from workers.validation import Validated, measure, metric_names


@pytest.fixture(scope="module")
def images():
    """Four images whose objects were all found; of one in three the mask was lost, as of every keypoint the place."""
    records, label_map = synthetic_records(0, 4)
    validated = []
    for record in records:
        truth = record.annotations
        n = len(truth)
        found = replace(
            truth,
            scores=np.linspace(0.9, 0.5, n),
            polygons=tuple(
                ((0.0, 0.0, 9.0, 0.0, 9.0, 9.0),) if i % 3 == 0 else p for i, p in enumerate(truth.polygons)
            ),
            keypoints=tuple(None if k is None else k + np.array([4.0, 0, 0]) for k in truth.keypoints),
        )
        validated.append(
            Validated(
                coco_image_id=record.coco_image_id,
                image_id=record.image_id,
                size=(record.height, record.width),
                truth=truth,
                found=found,
            )
        )
    return validated, label_map


def test_boxes_alone_are_the_twelve_numbers_of_any_evaluation(images):
    validated, label_map = images
    numbers = measure(validated, label_map, frozenset())
    assert tuple(numbers) == STAT_NAMES
    expected = evaluate_boxes(
        [(i.image_id, i.truth) for i in validated], [(i.image_id, i.found) for i in validated], label_map
    )
    assert numbers == expected.stats
    assert numbers["AP"] == pytest.approx(1.0)


def test_masks_and_keypoints_are_measured_beside_boxes(images):
    validated, label_map = images
    numbers = measure(validated, label_map, {"masks", "keypoints"})
    assert tuple(numbers) == metric_names()
    assert numbers["AP"] == pytest.approx(1.0)
    assert 0.3 < numbers["segm_AP"] < 0.9
    assert 0.1 < numbers["keypoints_AP"] < 1.0
    assert set(measure(validated, label_map, {"masks"})) == {n for n in metric_names() if "keypoints" not in n}


def test_images_without_all_of_their_masks_are_left_out_of_the_mask_numbers_alone(images):
    validated, label_map = images
    right = [replace(image, found=replace(image.truth, scores=image.found.scores)) for image in validated]
    half = replace(right[0].truth, polygons=(None, *right[0].truth.polygons[1:]))
    wrong_boxes = replace(right[0].found, boxes_xywh=right[0].found.boxes_xywh + 50.0)
    lacking = [replace(right[0], truth=half, found=wrong_boxes), *right[1:]]
    numbers = measure(lacking, label_map, {"masks"})
    assert numbers["segm_AP"] == pytest.approx(1.0)
    assert numbers["AP"] < 0.95
