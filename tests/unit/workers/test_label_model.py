"""How a job looks at images: resized once, in tiles, in several views; thresholds of classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detectors
from detectors.batching import fit_size, resize_image
from detectors.predicting import predictor
from detectors.structures import Prediction
from detectors.test_time import Views
from detectors.tiling import Tiling, predict_tiled
from pipelines.records import Category, LabelMap
from tests.integration.labelling import THRESHOLD, make_model
from tests.label_jobs import job_with
from workers.label_inputs import DecodedImage
from workers.label_job import LabelJob
from workers.label_model import LabelModel, load_for_labelling
from workers.label_readers import RawImage

CLASSES = LabelMap(categories=(Category(category_id=1, name="a"), Category(category_id=2, name="b")))


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> LabelJob:
    uri = make_model(tmp_path_factory.mktemp("model") / "model", CLASSES)
    return job_with(
        model_uri=uri,
        model_digest=detectors.load(Path(uri)).digest,
        categories=tuple(CLASSES.to_json()),
        thresholds=(THRESHOLD, THRESHOLD),
    )


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(0, 255, (3, 150, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def decoded(pixels: torch.Tensor, size: tuple[int, int]) -> DecodedImage:
    return DecodedImage(raw=RawImage(place=0), pixels=pixels, size=size)


def assert_same(found: Prediction, expected: Prediction) -> None:
    assert len(found) == len(expected) > 0 and found.size == expected.size
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_resized_image_is_predicted_in_its_stored_frame(job, image):
    model = LabelModel(job)
    assert (model.whole, model.batch_size) == (False, 2)
    resized = resize_image(image, fit_size(150, 200, model.detector.preprocessing))
    (found,) = model.predict([decoded(resized, (150, 200))])
    (expected,) = predictor(load_for_labelling(job))([image])
    assert_same(found, expected)
    assert found.boxes[:, 2].max() > 96, "not in model pixels"


def test_tiles_are_those_of_the_detectors(job, image):
    tiling = Tiling(size=96, overlap=0.25)
    model = LabelModel(replace(job, tiling=tiling))
    assert (model.whole, model.batch_size) == (True, 1)
    (found,) = model.predict([decoded(image, (150, 200))])
    assert_same(found, predict_tiled(predictor(load_for_labelling(job)), image, tiling, max_detections=50))


def test_views_are_fused(job, image):
    model = LabelModel(replace(job, views=Views(scales=(1.0, 1.5), horizontal_flip=True, max_detections=50)))
    assert (model.whole, model.batch_size) == (True, 2)
    (found,) = model.predict([decoded(image, (150, 200))])
    # Whatever is fused of an image and its mirror image is the same for the mirror image, mirrored.
    (mirrored,) = model.predict([decoded(image.flip(2), (150, 200))])
    torch.testing.assert_close(found.scores, mirrored.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes[:3, [1, 3]], mirrored.boxes[:3, [1, 3]], atol=0.1, rtol=0)
    torch.testing.assert_close(found.boxes[:3, [0, 2]], 200 - mirrored.boxes[:3, [2, 0]], atol=0.1, rtol=0)


def test_a_class_may_have_a_lower_threshold_than_the_others(job, image):
    pixels = resize_image(image, fit_size(150, 200, load_for_labelling(job).preprocessing))
    (low,) = LabelModel(job).predict([decoded(pixels, (150, 200))])
    strict = replace(job, thresholds=(1 - 1e-6, THRESHOLD))
    (found,) = LabelModel(strict).predict([decoded(pixels, (150, 200))])
    assert set(found.labels.tolist()) == {1} and set(low.labels.tolist()) == {0, 1}
    assert load_for_labelling(strict).options.score_threshold == THRESHOLD


@pytest.mark.parametrize(
    "looks",
    [
        {},
        {"tiling": Tiling(size=96, overlap=0.25)},
        {"views": Views(scales=(1.0,), horizontal_flip=True, max_detections=4)},
    ],
    ids=["once", "tiles", "views"],
)
def test_a_class_of_a_high_threshold_takes_no_place_of_others(job, image, looks):
    alike = LabelModel(replace(job, thresholds=(0.001, 0.001), max_detections=4, **looks))
    strict = LabelModel(replace(job, thresholds=(1 - 1e-6, 0.001), max_detections=4, **looks))
    pixels = image if looks else resize_image(image, fit_size(150, 200, alike.detector.preprocessing))
    (first,), (found,) = (model.predict([decoded(pixels, (150, 200))]) for model in (alike, strict))
    assert 0 in first.labels, "without a threshold of its own the first class takes places"
    assert found.labels.tolist() == [1] * 4
