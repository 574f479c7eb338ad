"""Test-time augmentation: an image is looked at mirrored and in other sizes too, and what is found is fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detectors.base import Detector
from detectors.fusion import IOU_THRESHOLD
from detectors.joining import fuse_predictions
from detectors.predicting import Predict, predictor
from detectors.structures import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How often, and how, a detector looks at an image.

    Attributes:
        scales: of the model's own size; each is a view.
        horizontal_flip: each scale mirrored as well.
        iou_threshold: of the fusion, see ``detectors.fusion.fuse_boxes``.
        max_detections: most that are given back of an image.
    """

    scales: tuple[float, ...] = (1.0,)
    horizontal_flip: bool = True
    iou_threshold: float = IOU_THRESHOLD
    max_detections: int = 300

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise ValueError(f"scales={self.scales}: give one or more, each above 0 and at most 8")
        if len(set(self.scales)) != len(self.scales):
            raise ValueError(f"scales={self.scales}: each may be there once")
        if not 0 < self.iou_threshold < 1:
            raise ValueError(f"iou_threshold={self.iou_threshold} must lie between 0 and 1")
        if self.max_detections < 1:
            raise ValueError(f"max_detections={self.max_detections} must be at least 1")

    def __len__(self) -> int:
        return len(self.scales) * (1 + self.horizontal_flip)


def views_predictor(
    detector: Detector, views: Views, *, batch_size: int = 8, device: torch.device | str = "cpu"
) -> Predict:
    """A detector that looks at every image in all views.

    Args:
        detector: in eval mode, on ``device``. One of keypoints says by its option ``keypoint_flip`` which index each
            takes in a mirror image.
        views: to take.
        batch_size: most images a batch.
        device: where batches go.
    Returns:
        Fused predictions, on the CPU.
    Raises:
        ValueError: another scale than 1 of a model of one fixed input.
    """
    size = detector.preprocessing.size
    predictors = [
        predictor(detector, size=max(1, round(size * scale)), batch_size=batch_size, device=device)
        for scale in views.scales
    ]
    return fused_views(predictors, views, keypoint_flip=tuple(detector.spec.options.get("keypoint_flip", ())))


def fused_views(predictors: Sequence[Predict], views: Views, *, keypoint_flip: Sequence[int] = ()) -> Predict:
    """The views of several predictors, one a scale, fused.

    Args:
        predictors: what looks at an image in each of ``views.scales``.
        views: see there.
        keypoint_flip: K indices, the one that each keypoint takes in a mirror image; empty where left and right are
            not told apart.
    Raises:
        ValueError: not as many predictors as scales.
    """
    if len(predictors) != len(views.scales):
        raise ValueError(f"{len(predictors)} predictors for the scales {views.scales}; give one a scale")

    def predict(images: Sequence[Tensor]) -> list[Prediction]:
        found: list[list[Prediction]] = [[] for _ in images]
        for one in predictors:
            for of_image, seen in zip(found, one(images), strict=True):
                of_image.append(seen)
            if views.horizontal_flip:
                for of_image, seen in zip(found, one([image.flip(2) for image in images]), strict=True):
                    of_image.append(mirrored(seen, keypoint_flip))
        return [
            fuse_predictions(of_image, iou_threshold=views.iou_threshold, max_detections=views.max_detections)
            for of_image in found
        ]

    return predict


def mirrored(prediction: Prediction, keypoint_flip: Sequence[int] = ()) -> Prediction:
    """A prediction of the mirrored image as one of the image itself, and the other way round."""
    width = prediction.size[1]
    x1, y1, x2, y2 = prediction.boxes.unbind(1)
    keypoints = prediction.keypoints
    if keypoints is not None:
        keypoints = keypoints[:, list(keypoint_flip)] if keypoint_flip else keypoints
        x, y, score = keypoints.unbind(2)
        keypoints = torch.stack([width - x, y, score], 2)
    return replace(
        prediction,
        boxes=torch.stack([width - x2, y1, width - x1, y2], 1),
        masks=None if prediction.masks is None else prediction.masks.flip(2),
        keypoints=keypoints,
    )
