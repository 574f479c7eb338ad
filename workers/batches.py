"""Where Arrow meets tensors: encoded images and annotations into what detectors take, and predictions back.

Boxes are in the stored frame of an image, so EXIF rotation is never applied here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.batching import resize_image
from detectors.structures import Prediction, Target
from detectors.transforms import fit_size
from pipelines.bitmaps import compress_runs, rasterise
from pipelines.checks import BadImage
from pipelines.decoding import decode_rgb
from pipelines.records import Annotations, FloatArray, ImageRecord, LabelMap
from pipelines.sources.drawn import VISIBLE, count_visible

_SCORE_DIGITS = 4


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


def to_target(
    annotations: Annotations,
    label_map: LabelMap,
    *,
    size: tuple[int, int] | None = None,
    at: tuple[int, int] | None = None,
    needs: Collection[str] = (),
) -> Target:
    """The objects of an image as a detector's target.

    Args:
        annotations: truth, or another model's predictions.
        label_map: gives the labels; its order is the model's.
        size: height and width of the stored image; masks are drawn in it.
        at: height and width that the image was resized to, and the target with it; None is ``size``.
        needs: of ``masks`` and ``keypoints``, what to decode beside boxes.
    Raises:
        ValueError: a broken mask, or keypoints of another number than the label map's.
    """
    at = at or size
    scale = np.ones(2) if size is None or at is None else np.array([at[1] / size[1], at[0] / size[0]])
    masks = known = keypoints = None
    if "masks" in needs:
        assert size is not None, "masks are drawn in an image of some size"
        masks, known = rasterise(annotations, size, at=at)
    if "keypoints" in needs:
        keypoints = _keypoints(annotations, len(label_map.keypoint_flip()), scale)
    return Target(
        boxes=torch.from_numpy(annotations.boxes * np.tile(scale, 2)).float().reshape(-1, 4),
        labels=torch.from_numpy(label_map.to_labels(annotations.category_ids)),
        iscrowd=torch.from_numpy(np.asarray(annotations.iscrowd, np.bool_)),
        masks=None if masks is None else torch.from_numpy(masks),
        keypoints=None if keypoints is None else torch.from_numpy(keypoints),
        mask_valid=None if known is None or known.all() else torch.from_numpy(known),
    )


def _keypoints(annotations: Annotations, count: int, scale: FloatArray) -> NDArray[np.float32]:
    """(N, count, 3) x, y, visibility; zeros where an object has none."""
    points = np.zeros((len(annotations), count, 3), np.float32)
    for i, found in enumerate(annotations.keypoints):
        if found is None:
            continue
        if len(found) != count:
            raise ValueError(
                f"object {int(annotations.ids[i])} has {len(found)} keypoints, its category has {count}; mend the "
                "source or leave the object out"
            )
        labelled = found[:, 2:] > 0  # what is not labelled has no place, whatever its source wrote there
        points[i] = np.where(labelled, found * np.append(scale, 1.0), 0.0)
    return points


def to_image_and_target(
    record: ImageRecord, label_map: LabelMap, *, needs: Collection[str] = (), longest: int | None = None
) -> tuple[Tensor, Target]:
    """A labelled record as (3, H, W) uint8 and its target.

    Args:
        record: with annotations.
        label_map, needs: see ``to_target``.
        longest: pixels of the longer side that are more than enough. Where masks are needed a larger image is brought
            to it first: as many bitmaps of a photograph's own size would be gigabytes.
    Raises:
        ValueError: an image that cannot be read or an object that cannot be drawn, with the image's name.
    """
    assert record.annotations is not None, f"{record.image_id} is unlabelled; the reader gives labelled ones"
    image = decode_image(record.image, name=record.image_id)
    size = at = (image.shape[1], image.shape[2])
    if "masks" in needs and longest is not None and max(size) > longest:
        at = fit_size(*size, longest)
        image = resize_image(image, at)
    try:
        return image, to_target(record.annotations, label_map, size=size, at=at, needs=needs)
    except ValueError as error:
        raise ValueError(f"{record.image_id}: {error}") from None


def to_annotations(prediction: Prediction, label_map: LabelMap) -> Annotations:
    """A prediction as annotations with scores and the source's category ids.

    Masks become RLEs of the original image, and the objects' areas are theirs. Keypoints are kept of the categories
    that have some, all as visible ones (the network does not say which are hidden), and their scores, in the order of
    the keypoints, become the attribute ``keypoint_scores``.
    """
    boxes = prediction.boxes.detach().double().cpu().numpy().reshape(-1, 4)
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    annotations = Annotations.from_boxes(
        boxes_xywh,
        label_map.to_category_ids(prediction.labels.cpu().numpy()),
        scores=prediction.scores.detach().double().cpu().numpy(),
    )
    if prediction.masks is not None:
        annotations = _with_masks(annotations, prediction)
    if prediction.keypoints is not None:
        annotations = _with_keypoints(annotations, prediction, label_map)
    return annotations


def _with_masks(annotations: Annotations, prediction: Prediction) -> Annotations:
    runs = prediction.rle()
    return replace(
        annotations,
        rles=tuple(compress_runs(counts, prediction.size) for counts in runs),
        area=np.array([counts[1::2].sum() for counts in runs], np.float64),
    )


def _with_keypoints(annotations: Annotations, prediction: Prediction, label_map: LabelMap) -> Annotations:
    assert prediction.keypoints is not None
    found = prediction.keypoints.detach().double().cpu().numpy()
    keypoints: list[FloatArray | None] = []
    attributes: list[dict[str, Any]] = []
    for points, label in zip(found, prediction.labels.tolist(), strict=True):
        category = label_map.categories[label]
        if not category.keypoints:
            keypoints.append(None)
            attributes.append({})
            continue
        if len(category.keypoints) != len(points):
            raise ValueError(
                f"the model gives {len(points)} keypoints, and category {category.name!r} has "
                f"{len(category.keypoints)}; the model was trained on other keypoints"
            )
        keypoints.append(np.column_stack([points[:, :2], np.full(len(points), VISIBLE)]))
        attributes.append({"keypoint_scores": points[:, 2].round(_SCORE_DIGITS).tolist()})
    return replace(
        annotations,
        keypoints=tuple(keypoints),
        num_keypoints=np.array([count_visible(points) for points in keypoints], np.int64),
        attributes=tuple(attributes),
    )
