"""Views of an image, and the way from pixels to predictions that they share with tiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import detectors
from detectors.batching import make_batch
from detectors.predicting import predictor
from detectors.structures import Prediction
from detectors.test_time import Views, fused_views, mirrored, views_predictor


def find_square(images: Sequence[Tensor]) -> list[Prediction]:
    """Finds the bright square of an image; its left half is the mask, its corners the keypoints left and right."""
    return [_find(image) for image in images]


def _find(image: Tensor) -> Prediction:
    y, x = (image[0] > 100).nonzero().unbind(1)
    x1, y1, x2, y2 = int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
    bright_left = bool(image[0, y1, x1] > image[0, y1, x2 - 1])
    mask = torch.zeros(28, 28)
    mask[:, slice(0, 14) if bright_left else slice(14, 28)] = 1
    return Prediction(
        boxes=torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32),
        labels=torch.tensor([2]),
        scores=torch.tensor([0.8]),
        size=(image.shape[1], image.shape[2]),
        masks=mask[None],
        # A detector that calls the first "left" whatever it is: what is left in a mirror image is the other one.
        keypoints=torch.tensor([[[x1, y1, 0.9], [x2, y1, 0.7]]], dtype=torch.float32),
    )


def square() -> Tensor:
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[:, 10:30, 20:30] = 255
    image[:, 10:30, 30:44] = 150
    return image


def test_a_mirror_image_finds_the_same() -> None:
    plain = find_square([square()])[0]
    fused = fused_views([find_square], Views(), keypoint_flip=(1, 0))([square()])[0]
    for name in ("boxes", "labels", "scores", "masks"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name))
    torch.testing.assert_close(fused.keypoints[..., :2], plain.keypoints[..., :2])
    torch.testing.assert_close(fused.keypoints[..., 2], torch.tensor([[0.8, 0.8]])), "the mean of both views"
    assert fused.size == (60, 100)


def test_without_a_swap_keypoints_keep_their_places() -> None:
    plain = find_square([square()])[0]
    back = mirrored(mirrored(plain, (1, 0)), (1, 0))
    assert torch.equal(back.keypoints, plain.keypoints) and torch.equal(back.masks, plain.masks)
    assert mirrored(plain).keypoints[0, :, 0].tolist() == [80, 56]
    assert mirrored(plain, (1, 0)).keypoints[0, :, 0].tolist() == [56, 80]
    assert mirrored(replace(plain, masks=None, keypoints=None)).boxes.tolist() == [[56, 10, 80, 30]]


def test_what_one_view_alone_sees_counts_less() -> None:
    def blind(images: Sequence[Tensor]) -> list[Prediction]:
        return [p.take(torch.zeros(0, dtype=torch.int64)) for p in find_square(images)]

    fused = fused_views([find_square, blind], Views(scales=(1.0, 2.0), horizontal_flip=False))([square()])[0]
    assert fused.scores.tolist() == pytest.approx([0.4])


def test_every_view_is_taken_once() -> None:
    taken = []

    def counting(images: Sequence[Tensor]) -> list[Prediction]:
        taken.append([image[0, 10, 20].item() for image in images])
        return find_square(images)

    views = Views(scales=(1.0, 1.5))
    assert len(fused_views([counting, counting], views)([square(), square()])) == 2
    assert taken == [[255, 255], [0, 0]] * 2 and len(views) == 4


@pytest.fixture(scope="module")
def detector() -> detectors.Detector:
    torch.manual_seed(0)
    return detectors.create("retinanet_lite0", num_classes=3, score_threshold=0.0).eval()


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in ((60, 80), (80, 60), (60, 80), (33, 80))
    ]


def test_a_predictor_is_make_batch_and_predict(detector: detectors.Detector) -> None:
    found = predictor(detector, size=64, batch_size=2)(images())
    small = replace(detector.preprocessing, size=64)
    for image, got in zip(images(), found, strict=True):
        with torch.inference_mode():
            alone = detector.predict(make_batch([image], small))[0]
        assert got.size == tuple(image.shape[1:])
        torch.testing.assert_close(got.boxes, alone.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(got.scores, alone.scores, atol=1e-5, rtol=1e-5)


def test_views_of_a_real_detector(detector: detectors.Detector) -> None:
    small = 64 / detector.preprocessing.size
    views = Views(scales=(small, 1.5 * small), max_detections=20)
    found = views_predictor(detector, views)(images()[:1])[0]
    assert len(found) == 20 and (found.scores.diff() <= 0).all()
    # The scene mirrored has the same views in another order.
    other = mirrored(views_predictor(detector, views)([images()[0].flip(2)])[0])
    torch.testing.assert_close(found.scores, other.scores, atol=1e-4, rtol=1e-4)


def test_a_model_of_one_size_has_no_scales() -> None:
    fixed = detectors.create("ssd_grid_lite0", num_classes=2)
    with pytest.raises(ValueError, match="takes 224 x 224 pixels alone"):
        views_predictor(fixed, Views(scales=(1.0, 1.5)))


def test_bad_settings_are_refused(detector: detectors.Detector) -> None:
    for bad in (
        {"scales": ()},
        {"scales": (0.0,)},
        {"scales": (1.0, 1.0)},
        {"iou_threshold": 1.0},
        {"max_detections": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Views(**bad)
    with pytest.raises(ValueError, match="one a scale"):
        fused_views([], Views())
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor(detector, batch_size=0)
