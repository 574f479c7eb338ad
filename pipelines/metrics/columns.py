"""Annotations of many images as flat columns: the form in which every metric takes them.

Shapes: N objects of all images together, I images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.metrics.rles import BrokenMask, RleDict, mask_areas, pick_masks, to_rle
from pipelines.metrics.settings import IouType
from pipelines.records import Annotations, BoolArray, FloatArray, IntArray, LabelMap

Size = tuple[int, int]
"""Height and width of an image in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectColumns:
    """Objects in image order, within an image in the order they came.

    Attributes:
        image_ids: I names in the order that decides between equal scores.
        image_numbers: (I,) int64, ascending where the caller gave them; what brings shards together in order.
        images: (N,) int64 in 0..I-1.
        ids: (N,) int64, the source's.
        labels: (N,) int64 in 0..C-1.
        boxes_xywh: (N, 4) float64, pixels.
        area: (N,) float64, square pixels; that of the mask, or width x height, where the source gives none.
            Of a detection: that of its mask for ``segm``, of what its keypoints span for ``keypoints``.
        iscrowd: (N,) bool.
        ignored: (N,) bool; crowds, and for ``keypoints`` objects without a labelled one.
        scores: (N,) float64; zeros for truth.
        masks: N compressed RLEs for ``segm``, else None.
        keypoints: N arrays (K, 3) of x, y, visibility for ``keypoints``, else None.
    """

    image_ids: tuple[str, ...]
    image_numbers: IntArray
    images: IntArray
    ids: IntArray
    labels: IntArray
    boxes_xywh: FloatArray
    area: FloatArray
    iscrowd: BoolArray
    ignored: BoolArray
    scores: FloatArray
    masks: Sequence[RleDict] | None = None
    keypoints: tuple[FloatArray, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: IntArray) -> ObjectColumns:
        """Some of the objects, of all images."""
        masks = None if self.masks is None else tuple(pick_masks(self.masks, rows))
        plain = ("images", "ids", "labels", "boxes_xywh", "area", "iscrowd", "ignored", "scores")
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in plain},
            masks=masks,
            keypoints=None if self.keypoints is None else tuple(self.keypoints[at] for at in rows),
        )

    def objects_per_class(self, num_classes: int) -> IntArray:
        """(num_classes,) counts without crowds."""
        return np.bincount(self.labels[~self.iscrowd], minlength=num_classes).astype(np.int64)


def truth_columns(
    images: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    iou_type: IouType = "bbox",
    sizes: Mapping[str, Size] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> ObjectColumns:
    """Number the images and flatten their truth.

    Args:
        images: names and objects; their order is that of images unless ``numbers`` says otherwise.
        label_map: their categories.
        iou_type: ``segm`` needs masks and, for polygons, ``sizes``.
        sizes: of images, by name.
        numbers: COCO image ids by name, unique; images are sorted by them.
    Raises:
        ValueError: an image given twice, an unknown category id, a box that is not finite, a mask that is missing or
            of another size than its image.
    """
    parts: dict[str, Annotations] = {}
    for image_id, objects in images:
        if image_id in parts:
            raise ValueError(f"image {image_id!r} is in the truth twice; image ids must be unique")
        _check_numbers(image_id, objects, "truth")
        parts[image_id] = objects
    if numbers is not None:
        _check_image_numbers(parts, numbers)
        parts = {name: parts[name] for name in sorted(parts, key=lambda name: numbers[name])}
    names = tuple(parts)
    order = np.array([numbers[n] for n in names] if numbers is not None else range(1, len(names) + 1), np.int64)
    columns = _flatten(list(enumerate(parts.values())), names, order, label_map)
    match iou_type:
        case "bbox":
            return columns
        case "segm":
            masks = _masks(columns, list(parts.values()), sizes or {}, "truth")
            unknown = np.isnan(np.concatenate([a.area for a in parts.values()] or [np.zeros(0)]))
            return replace(columns, masks=masks, area=np.where(unknown, _areas(columns, masks, "truth"), columns.area))
        case "keypoints":
            return _with_truth_keypoints(columns, list(parts.values()))


def detection_columns(
    images: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    truth: ObjectColumns,
    *,
    iou_type: IouType = "bbox",
    sizes: Mapping[str, Size] | None = None,
) -> ObjectColumns:
    """Flatten detections, in the order of the truth's images.

    Raises:
        ValueError: an image given twice or without truth, detections without finite scores, an unknown category id, a
            detection without the mask or the keypoints that are compared, a mask of another size than its image.
    """
    places = {name: at for at, name in enumerate(truth.image_ids)}
    found: dict[int, Annotations] = {}
    for image_id, objects in images:
        at = places.get(image_id)
        if at is None:
            raise ValueError(
                f"detections on image {image_id!r}, which has no truth; leave out images that are not measured"
            )
        if at in found:
            raise ValueError(f"image {image_id!r} is in the detections twice; image ids must be unique")
        if objects.scores is None and len(objects):
            raise ValueError(f"detections on image {image_id!r} have no scores; is this a truth label set?")
        _check_numbers(image_id, objects, "detections")
        found[at] = objects
    parts = sorted(found.items(), key=lambda part: part[0])
    columns = _flatten(parts, truth.image_ids, truth.image_numbers, label_map)
    columns = replace(columns, area=columns.boxes_xywh[:, 2] * columns.boxes_xywh[:, 3])
    match iou_type:
        case "bbox":
            return columns
        case "segm":
            masks = _masks(columns, [a for _, a in parts], sizes or {}, "detection")
            return replace(columns, masks=masks, area=_areas(columns, masks, "detection"))
        case "keypoints":
            return _with_found_keypoints(columns, [a for _, a in parts], label_map)


def _check_numbers(image_id: str, annotations: Annotations, what: str) -> None:
    values = [annotations.boxes_xywh.ravel()]
    if annotations.scores is not None:
        values.append(annotations.scores)
    if not np.isfinite(np.concatenate(values)).all():
        raise ValueError(f"the {what} of image {image_id!r} hold a box or a score that is not finite")


def _check_image_numbers(names: Iterable[str], numbers: Mapping[str, int]) -> None:
    seen: dict[int, str] = {}
    for name in names:
        if name not in numbers:
            raise ValueError(f"image {name!r} has no number; give one for every image of the truth, or none at all")
        other = seen.setdefault(numbers[name], name)
        if other != name:
            raise ValueError(
                f"images {other!r} and {name!r} both have the number {numbers[name]}; numbers decide between equal "
                "scores and must be unique"
            )


def _flatten(
    parts: list[tuple[int, Annotations]], names: tuple[str, ...], numbers: IntArray, label_map: LabelMap
) -> ObjectColumns:
    # One empty part gives the columns their types when there is nothing at all.
    parts = [*parts, (0, Annotations.empty())]
    boxes = np.concatenate([a.boxes_xywh for _, a in parts]).astype(np.float64)
    area = np.concatenate([a.area for _, a in parts]).astype(np.float64)
    scores = [np.zeros(len(a)) if a.scores is None else a.scores for _, a in parts]
    iscrowd = np.concatenate([a.iscrowd for _, a in parts]).astype(np.bool_)
    return ObjectColumns(
        image_ids=names,
        image_numbers=numbers,
        images=np.repeat([at for at, _ in parts], [len(a) for _, a in parts]).astype(np.int64),
        ids=np.concatenate([a.ids for _, a in parts]).astype(np.int64),
        labels=label_map.to_labels(np.concatenate([a.category_ids for _, a in parts])),
        boxes_xywh=boxes,
        area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
        iscrowd=iscrowd,
        ignored=iscrowd,
        scores=np.concatenate(scores).astype(np.float64),
    )


def _masks(
    columns: ObjectColumns, parts: list[Annotations], sizes: Mapping[str, Size], what: str
) -> tuple[RleDict, ...]:
    flat = [(a.polygons[i], a.rles[i]) for a in parts for i in range(len(a))]
    masks = []
    for at, (polygons, rle) in enumerate(flat):
        name = columns.image_ids[columns.images[at]]
        try:
            masks.append(to_rle(polygons, rle, sizes.get(name)))
        except ValueError as error:
            raise ValueError(f"{what} {int(columns.ids[at])} of image {name!r}: {error}") from None
    return tuple(masks)


def _areas(columns: ObjectColumns, masks: tuple[RleDict, ...], what: str) -> FloatArray:
    try:
        return mask_areas(masks)
    except BrokenMask as error:
        name = columns.image_ids[columns.images[error.at]]
        raise ValueError(f"{what} {int(columns.ids[error.at])} of image {name!r}: {error}") from None


def _with_truth_keypoints(columns: ObjectColumns, parts: list[Annotations]) -> ObjectColumns:
    """An object without keypoints is as one of which none is labelled: a region where nothing counts."""
    given = [k for a in parts for k in a.keypoints]
    said = np.concatenate([a.num_keypoints for a in parts] or [np.zeros(0, np.int64)])
    keypoints = tuple(np.zeros((0, 3)) if k is None else np.asarray(k, np.float64).reshape(-1, 3) for k in given)
    counted = np.array([np.count_nonzero(k[:, 2] > 0) for k in keypoints], np.int64)
    labelled = np.where(said >= 0, said, counted)
    return replace(columns, keypoints=keypoints, ignored=columns.iscrowd | (labelled == 0))


def _with_found_keypoints(columns: ObjectColumns, parts: list[Annotations], label_map: LabelMap) -> ObjectColumns:
    """Detections of categories that have no keypoints stay without; they have no truth to be measured on."""
    given = [k for a in parts for k in a.keypoints]
    keypoints, area = [], np.zeros(len(given))
    for at, points in enumerate(given):
        if points is None:
            category = label_map.categories[columns.labels[at]]
            if category.keypoints:
                raise ValueError(
                    f"detection {int(columns.ids[at])} of image {columns.image_ids[columns.images[at]]!r} has no "
                    f"keypoints, its category {category.name!r} has; measure boxes with iou_type='bbox'"
                )
            points = np.zeros((0, 3))
        points = np.asarray(points, np.float64).reshape(-1, 3)
        if not np.isfinite(points[:, :2]).all():
            raise ValueError(
                f"detection {int(columns.ids[at])} of image {columns.image_ids[columns.images[at]]!r} has a keypoint "
                "that is not finite"
            )
        keypoints.append(points)
        if len(points):
            (x0, y0), (x1, y1) = points[:, :2].min(0), points[:, :2].max(0)
            area[at] = (x1 - x0) * (y1 - y0)
    return replace(columns, keypoints=tuple(keypoints), area=area)
