"""Anchors of YOLOv3 for a dataset, beside those it has by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detectors.models.yolo_v3 import COCO_ANCHORS
from pipelines.anchors import AnchorFit, find_anchors, fit_of, read_sizes
from pipelines.storage import redact
from pipelines.versions import open_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorReport:
    """Anchors that were found.

    Attributes:
        reference: of the dataset version.
        splits: that were looked at; None: all.
        image_size: longer side of the images that the anchors are for, pixels.
        num_images, num_boxes: that were looked at.
        num_left_out: crowd regions and boxes without area.
        anchors: width, height, width, height, ... by ascending area, pixels: the option ``anchors`` of YOLOv3.
        fit: of these.
        default_anchors, default_fit: of YOLOv3's own, which come from COCO at 416 pixels.
    """

    reference: str
    splits: tuple[str, ...] | None
    image_size: int
    num_images: int
    num_boxes: int
    num_left_out: int
    anchors: tuple[float, ...]
    fit: AnchorFit
    default_anchors: tuple[float, ...]
    default_fit: AnchorFit


def anchors_for(
    reference: str,
    *,
    num: int = 9,
    image_size: int = 416,
    splits: Sequence[str] | None = ("train",),
    seed: int = 0,
    restarts: int = 5,
) -> AnchorReport:
    """Finds the anchors that fit a dataset's boxes best; reads label files alone, no image.

    Args:
        reference: of a dataset version.
        num: how many.
        image_size: longer side of the images after the model's resize, pixels.
        splits: whose boxes count; None: all.
        seed, restarts: see ``find_anchors``.
    Raises:
        ValueError: an unknown split, no boxes, fewer different boxes than anchors, or a size below 1.
    """
    if image_size < 1 or restarts < 1:
        raise ValueError(f"image_size={image_size}, restarts={restarts} must be at least 1")
    dataset = open_dataset(reference)
    found = read_sizes(dataset, splits, image_size=image_size)
    # Rounded first, so that the figures are those of the anchors that are handed out.
    anchors = np.maximum(find_anchors(found.sizes, num, seed=seed, restarts=restarts).round(1), 0.1)
    default = np.asarray(COCO_ANCHORS, np.float64).reshape(-1, 2)
    return AnchorReport(
        reference=redact(dataset.reference),
        splits=None if splits is None else tuple(splits),
        image_size=image_size,
        num_images=found.num_images,
        num_boxes=len(found.sizes),
        num_left_out=found.num_left_out,
        anchors=tuple(float(side) for side in anchors.ravel()),
        fit=fit_of(anchors, found.sizes),
        default_anchors=tuple(float(side) for side in COCO_ANCHORS),
        default_fit=fit_of(default, found.sizes),
    )
