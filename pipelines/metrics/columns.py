"""Annotations of many images as flat columns: the form in which every metric takes them.

Shapes: N objects of all images together, I images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.records import Annotations, BoolArray, FloatArray, IntArray, LabelMap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxColumns:
    """Objects in image order, within an image in the order they came.

    Attributes:
        numbers: image key to its number, 1..I by order of appearance.
        image_numbers: (N,) int64.
        labels: (N,) int64 in 0..C-1.
        boxes_xywh: (N, 4) float64, pixels.
        area: (N,) float64, square pixels; width x height where the source gives none.
        iscrowd: (N,) bool.
        scores: (N,) float64; zeros for truth.
    """

    numbers: Mapping[str, int]
    image_numbers: IntArray
    labels: IntArray
    boxes_xywh: FloatArray
    area: FloatArray
    iscrowd: BoolArray
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.labels)

    def objects_per_class(self, num_classes: int) -> IntArray:
        """(num_classes,) counts without crowds."""
        return np.bincount(self.labels[~self.iscrowd], minlength=num_classes).astype(np.int64)


def truth_columns(images: Iterable[tuple[str, Annotations]], label_map: LabelMap) -> BoxColumns:
    """Number the images and flatten their truth.

    Raises:
        ValueError: an image given twice, an unknown category id, a box that is not finite.
    """
    numbers: dict[str, int] = {}
    parts = []
    for image_id, objects in images:
        if image_id in numbers:
            raise ValueError(f"image {image_id!r} is in the truth twice; image ids must be unique")
        numbers[image_id] = len(numbers) + 1
        _check_boxes(image_id, objects, "truth")
        parts.append((numbers[image_id], objects))
    return _flatten(parts, numbers, label_map)


def detection_columns(
    images: Iterable[tuple[str, Annotations]], label_map: LabelMap, numbers: Mapping[str, int]
) -> BoxColumns:
    """Flatten detections, in the order of the images' numbers.

    Raises:
        ValueError: an image given twice or without truth, detections without finite scores, an unknown category id.
    """
    parts: dict[int, Annotations] = {}
    for image_id, objects in images:
        number = numbers.get(image_id)
        if number is None:
            raise ValueError(
                f"detections on image {image_id!r}, which has no truth; leave out images that are not measured"
            )
        if number in parts:
            raise ValueError(f"image {image_id!r} is in the detections twice; image ids must be unique")
        if objects.scores is None and len(objects):
            raise ValueError(f"detections on image {image_id!r} have no scores; is this a truth label set?")
        _check_boxes(image_id, objects, "detections")
        parts[number] = objects
    return _flatten(sorted(parts.items(), key=lambda part: part[0]), numbers, label_map)


def _check_boxes(image_id: str, annotations: Annotations, what: str) -> None:
    values = [annotations.boxes_xywh.ravel()]
    if annotations.scores is not None:
        values.append(annotations.scores)
    if not np.isfinite(np.concatenate(values)).all():
        raise ValueError(f"the {what} of image {image_id!r} hold a box or a score that is not finite")


def _flatten(parts: list[tuple[int, Annotations]], numbers: Mapping[str, int], label_map: LabelMap) -> BoxColumns:
    # One empty part gives the columns their types when there is nothing at all.
    parts = [*parts, (0, Annotations.empty())]
    boxes = np.concatenate([a.boxes_xywh for _, a in parts]).astype(np.float64)
    area = np.concatenate([a.area for _, a in parts]).astype(np.float64)
    scores = [np.zeros(len(a)) if a.scores is None else a.scores for _, a in parts]
    return BoxColumns(
        numbers=numbers,
        image_numbers=np.repeat([number for number, _ in parts], [len(a) for _, a in parts]).astype(np.int64),
        labels=label_map.to_labels(np.concatenate([a.category_ids for _, a in parts])),
        boxes_xywh=boxes,
        area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
        iscrowd=np.concatenate([a.iscrowd for _, a in parts]).astype(np.bool_),
        scores=np.concatenate(scores).astype(np.float64),
    )
