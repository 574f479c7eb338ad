"""How alike detections and truths are: overlap of boxes or masks, object keypoint similarity.

Shapes: P pairs of a detection and a truth. Every number is that of pycocotools, to the last bit: the same operations
in the same order. With a crowd the overlap is the part of the detection that lies inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import assert_never

import numpy as np

from pipelines.metrics.columns import ObjectColumns
from pipelines.metrics.rles import mask_areas, mask_boxes, mask_ious, pick_masks
from pipelines.metrics.settings import MatchSettings
from pipelines.records import FloatArray, IntArray, LabelMap

_PAIRS_AT_ONCE = 2**16  # a few columns of them stay in the cache of a core
_KEYS_BY_TABLE = 4  # entries of a table a key, up to which looking up beats searching


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Pairs in the order of their detections, of one detection in the order of truths.

    Attributes:
        found, truths: (P,) int64, rows.
        iou: (P,) float64.
    """

    found: IntArray
    truths: IntArray
    iou: FloatArray

    @classmethod
    def join(cls, parts: list[Pairs]) -> Pairs:
        nothing = np.zeros(0, np.int64)
        return cls(
            found=np.concatenate([nothing, *(part.found for part in parts)]),
            truths=np.concatenate([nothing, *(part.truths for part in parts)]),
            iou=np.concatenate([np.zeros(0), *(part.iou for part in parts)]),
        )

    def only(self, kept: np.ndarray) -> Pairs:
        return Pairs(found=self.found[kept], truths=self.truths[kept], iou=self.iou[kept])


def similar_pairs(
    truth: ObjectColumns,
    found: ObjectColumns,
    rows: IntArray,
    label_map: LabelMap,
    settings: MatchSettings,
    *,
    least: float,
    across_classes: bool = False,
) -> Pairs:
    """All pairs of one image, and of one class unless ``across_classes``, that are alike by at least ``least``.

    Args:
        truth, found: with the masks or keypoints of ``settings.iou_type``.
        rows: ascending; the detections to be paired.
        least: above 0.
    """
    spread = 1 if across_classes else len(label_map)
    truth_keys = truth.images if across_classes else truth.images * spread + truth.labels
    keys = found.images if across_classes else found.images * spread + found.labels
    if len(rows) < len(found):
        keys = keys[rows]
    truth_sizes = mask_areas(truth.masks or ()) if settings.iou_type == "segm" else np.zeros(0)
    parts = []
    for detections, truths in _pairs_of_groups(keys, truth_keys):
        detections = rows[detections]
        match settings.iou_type:
            case "bbox":
                iou = box_iou(found.boxes_xywh[detections], truth.boxes_xywh[truths], truth.iscrowd[truths])
            case "segm":
                sizes = found.area[detections], truth_sizes[truths]
                most = _most_iou(*sizes, np.minimum(*sizes), truth.iscrowd[truths])
                near = np.flatnonzero(most >= least)
                detections, truths = detections[near], truths[near]
                iou = _mask_iou(found, truth, detections, truths, truth_sizes, least, across_classes)
            case "keypoints":
                iou = _oks(found, truth, detections, truths, label_map, settings)
            case _:
                assert_never(settings.iou_type)
        alike = iou >= least
        parts.append(Pairs(found=detections[alike], truths=truths[alike], iou=iou[alike]))
    return Pairs.join(parts)


def _pairs_of_groups(keys: IntArray, truth_keys: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Rows of ``keys`` and of ``truth_keys`` that are equal, in blocks of whole detections."""
    order = np.argsort(truth_keys, kind="stable")
    some, first, count = _runs_of(keys, truth_keys[order])
    ends = np.cumsum(count)
    at = 0
    while at < len(some):
        stop = max(at + 1, int(np.searchsorted(ends, (ends[at - 1] if at else 0) + _PAIRS_AT_ONCE, side="right")))
        counts = count[at:stop]
        begins = np.cumsum(counts) - counts
        place = np.arange(int(counts.sum())) + np.repeat(first[at:stop] - begins, counts)
        yield np.repeat(some[at:stop], counts), order[place]
        at = stop


def _runs_of(keys: IntArray, ordered: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Which keys are among the ordered ones, where the first of each is, and how many there are."""
    highest = int(ordered[-1]) + 1 if len(ordered) else 0
    if highest > _KEYS_BY_TABLE * (len(keys) + len(ordered)):
        first = np.searchsorted(ordered, keys, side="left")
        count = np.searchsorted(ordered, keys, side="right") - first
        some = np.flatnonzero(count)
        return some, first[some], count[some]
    number = np.bincount(ordered, minlength=highest)
    some = np.flatnonzero(np.append(number > 0, False)[np.minimum(keys, highest)])
    there = keys[some]
    return some, (np.cumsum(number) - number)[there], number[there]


def box_overlap(found: FloatArray, truth: FloatArray) -> FloatArray:
    """(P,) area that (P, 4) xywh boxes share, by pairs."""
    low, high = (
        np.maximum(found[:, :2], truth[:, :2]),
        np.minimum(found[:, :2] + found[:, 2:], truth[:, :2] + truth[:, 2:]),
    )
    area: FloatArray = np.maximum(high - low, 0).prod(axis=1)
    return area


def box_iou(found: FloatArray, truth: FloatArray, iscrowd: np.ndarray) -> FloatArray:
    """(P,) of (P, 4) xywh boxes, by pairs; 0 where they do not overlap."""
    x, y, w, h = found.T
    tx, ty, tw, th = truth.T
    width = np.minimum(w + x, tw + tx) - np.maximum(x, tx)
    height = np.minimum(h + y, th + ty) - np.maximum(y, ty)
    area = w * h
    overlap = width * height
    union = np.where(iscrowd, area, area + tw * th - overlap)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = overlap / union
    # As pycocotools: what does not overlap is 0, before anything is divided.
    return np.where((width > 0) & (height > 0), iou, 0.0)


def _most_iou(found: FloatArray, truth: FloatArray, overlap: FloatArray, iscrowd: np.ndarray) -> FloatArray:
    """(P,) how alike two masks are of which an area is known that they share at most; no number for empty ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        most: FloatArray = overlap / np.where(iscrowd, found, found + truth - overlap)
    return most


def _mask_iou(
    found: ObjectColumns,
    truth: ObjectColumns,
    detections: IntArray,
    truths: IntArray,
    truth_sizes: FloatArray,
    least: float,
    across_classes: bool,
) -> FloatArray:
    """(P,) by pairs of masks; 0 where boxes and areas say that it is below ``least``.

    One call for the detections of an image and class, or of an image ``across_classes``.
    """
    assert found.masks is not None and truth.masks is not None
    iou = np.zeros(len(detections))
    (rows, row), (columns, column) = (np.unique(places, return_inverse=True) for places in (detections, truths))
    own, theirs = pick_masks(found.masks, rows), pick_masks(truth.masks, columns)
    sizes = found.area[detections], truth_sizes[truths]
    overlap = np.minimum(np.minimum(*sizes), box_overlap(mask_boxes(own)[row], mask_boxes(theirs)[column]))
    near = np.flatnonzero(_most_iou(*sizes, overlap, truth.iscrowd[truths]) >= least)
    if not len(near):
        return iou
    new = np.diff(found.images[detections[near]]) != 0
    if not across_classes:
        new |= np.diff(truth.labels[truths[near]]) != 0
    groups = np.concatenate([[0], np.cumsum(new)])
    down, of_found, found_bounds = _places(groups, row[near])
    across, of_truth, truth_bounds = _places(groups, column[near])
    crowds = truth.iscrowd[columns].tolist()
    own, theirs, crowds = [own[a] for a in of_found], [theirs[a] for a in of_truth], [crowds[a] for a in of_truth]
    dense = [
        mask_ious(own[top:bottom], theirs[left:right], crowds[left:right]).ravel()
        for (top, bottom), (left, right) in zip(pairwise(found_bounds), pairwise(truth_bounds), strict=True)
    ]
    number = np.diff(truth_bounds)
    area = np.diff(found_bounds) * number
    iou[near] = np.concatenate(dense)[(np.cumsum(area) - area)[groups] + down * number[groups] + across]
    return iou


def _places(groups: IntArray, values: IntArray) -> tuple[IntArray, list[int], list[int]]:
    """Place of each value among the distinct ones of its group, these, and where each group's begin and end."""
    order = np.lexsort((values, groups))
    fresh = np.diff(values[order], prepend=-1) != 0
    fresh |= np.diff(groups[order], prepend=-1) != 0
    kept = order[fresh]
    bounds = np.append(np.flatnonzero(np.diff(groups[kept], prepend=-1)), len(kept))
    places = np.empty(len(values), np.int64)
    places[order] = np.cumsum(fresh) - 1
    return places - bounds[groups], values[kept].tolist(), bounds.tolist()


def _oks(
    found: ObjectColumns,
    truth: ObjectColumns,
    detections: IntArray,
    truths: IntArray,
    label_map: LabelMap,
    settings: MatchSettings,
) -> FloatArray:
    """(P,) object keypoint similarity by pairs; 0 where one side has no keypoints."""
    assert found.keypoints is not None and truth.keypoints is not None
    iou = np.zeros(len(detections))
    sigmas: dict[int, FloatArray] = {}
    # Pairs of one truth share its keypoints, and the number that is summed over: sums of other lengths round otherwise.
    order = np.argsort(truths, kind="stable")
    for block in np.split(order, np.flatnonzero(np.diff(truths[order])) + 1):
        if not len(block):
            continue
        at = int(truths[block[0]])
        points = truth.keypoints[at]
        if not len(points):
            continue
        label = int(truth.labels[at])
        if label not in sigmas:
            sigmas[label] = settings.sigmas_of(label_map, label, len(points))
        same = np.array([len(found.keypoints[d]) == len(points) for d in detections[block]])
        _check_keypoints(found, truth, detections[block][~same], at, label_map)
        block = block[same]
        if not len(block) or len(sigmas[label]) != len(points):
            continue
        guessed = np.stack([found.keypoints[d] for d in detections[block]])
        iou[block] = _oks_of_truth(guessed, points, truth.boxes_xywh[at], float(truth.area[at]), sigmas[label])
    return iou


def _check_keypoints(
    found: ObjectColumns, truth: ObjectColumns, others: IntArray, at: int, label_map: LabelMap
) -> None:
    """Of one class there are as many keypoints on both sides; across classes the numbers may differ."""
    assert found.keypoints is not None and truth.keypoints is not None
    wrong = others[found.labels[others] == truth.labels[at]]
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"detection {int(found.ids[row])} of image {found.image_ids[found.images[row]]!r} has "
            f"{len(found.keypoints[row])} keypoints, truth {int(truth.ids[at])} of its category "
            f"{label_map.names[truth.labels[at]]!r} has {len(truth.keypoints[at])}"
        )


def _oks_of_truth(
    guessed: FloatArray, points: FloatArray, box: FloatArray, area: float, sigmas: FloatArray
) -> FloatArray:
    """(D,) of (D, K, 3) guesses; where no keypoint is labelled, by the distance from the box three times as large."""
    x, y = guessed[..., 0], guessed[..., 1]
    visible = points[:, 2] > 0
    if visible.any():
        dx, dy = x - points[:, 0], y - points[:, 1]
    else:
        x0, x1, y0, y1 = box[0] - box[2], box[0] + box[2] * 2, box[1] - box[3], box[1] + box[3] * 2
        dx = np.maximum(0, x0 - x) + np.maximum(0, x - x1)
        dy = np.maximum(0, y0 - y) + np.maximum(0, y - y1)
    error = (dx**2 + dy**2) / (sigmas * 2) ** 2 / (area + np.spacing(1)) / 2
    if visible.any():
        error = np.ascontiguousarray(error[:, visible])
    similarity: FloatArray = np.exp(-error).sum(axis=1) / error.shape[1]
    return similarity
