"""Where Arrow meets tensors: encoded images and annotations into what detectors take, and predictions back.

Boxes are in the stored frame of an image, so EXIF rotation is never applied here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detectors.structures import Prediction, Target
from pipelines.checks import BadImage
from pipelines.decoding import decode_rgb
from pipelines.records import Annotations, ImageRecord, LabelMap


def decode_image(image: bytes, *, name: str = "image") -> Tensor:
    """Pixels of an encoded image.

    Args:
        image: JPEG, PNG or anything else that Pillow reads. (torchvision's decoders give the same pixels and save
            0.2 ms on a 640 x 480 JPEG, but are deprecated.)
        name: how to call the image in an error.
    Returns:
        (3, H, W) uint8 RGB in the stored, unrotated frame, channels last in memory; see ``decode_rgb``.
    Raises:
        ValueError: the bytes are no readable image.
    """
    try:
        pixels = np.array(decode_rgb(image))
    except BadImage as error:
        raise ValueError(f"{name} {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_target(annotations: Annotations, label_map: LabelMap) -> Target:
    """The boxes of an image as a detector's target, in stored pixels.

    Args:
        annotations: truth, or another model's predictions.
        label_map: gives the labels; its order is the model's.
    """
    return Target(
        boxes=torch.from_numpy(annotations.boxes).float().reshape(-1, 4),
        labels=torch.from_numpy(label_map.to_labels(annotations.category_ids)),
        iscrowd=torch.from_numpy(np.asarray(annotations.iscrowd, np.bool_)),
    )


def to_image_and_target(record: ImageRecord, label_map: LabelMap) -> tuple[Tensor, Target]:
    """A labelled record as (3, H, W) uint8 and its target."""
    assert record.annotations is not None, f"{record.image_id} is unlabelled; the reader gives labelled ones"
    return decode_image(record.image, name=record.image_id), to_target(record.annotations, label_map)


def to_annotations(prediction: Prediction, label_map: LabelMap) -> Annotations:
    """A prediction as annotations with scores and the source's category ids."""
    boxes = prediction.boxes.detach().double().cpu().numpy().reshape(-1, 4)
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return Annotations.from_boxes(
        boxes_xywh,
        label_map.to_category_ids(prediction.labels.cpu().numpy()),
        scores=prediction.scores.detach().double().cpu().numpy(),
    )
