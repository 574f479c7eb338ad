"""Every detection with what it found, every truth with whether it counts: one table from which all analysis follows.

Legend: I images, N detections, M truths, T IoU thresholds, A ranges of area.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.columns import ObjectColumns, Size, detection_columns, truth_columns
from pipelines.metrics.matching import UNMATCHED, Matches, least_iou, match_pairs, ranks_in_images
from pipelines.metrics.settings import MatchSettings
from pipelines.metrics.similarity import Pairs, similar_pairs
from pipelines.records import Annotations, BoolArray, FloatArray, IntArray, LabelMap

FALSE, TRUE, IGNORED = 0, 1, 2
"""Outcomes of a detection: found nothing that counts, found a truth, or does not count itself."""
_SLIGHTEST = np.nextafter(0.0, 1.0)  # the least similarity above none


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchTable:
    """Matches by COCO's rules (see ``matching``); rows of an image lie together, in the order of the images.

    A truth is ignored where it is a crowd, where its area is outside the range, or, for keypoints, where none of its
    is labelled. A detection is ignored where it matches an ignored truth, or matches none and its own area is outside
    the range; and where ``rank`` is not below the largest of ``settings.max_detections``: then it takes no part.

    Attributes:
        settings, label_map: what it was made with.
        image_ids: I names, in the order that decides between equal scores.
        image_numbers: (I,) int64 ascending: COCO image ids, or 1, 2, ... where none were given.
        images: (N,) int64 in 0..I-1.
        labels: (N,) int64 in 0..C-1.
        scores: (N,) float64.
        det_index: (N,) int64, the detection's place in its image as it was given, from 0.
        rank: (N,) int64, its place in its image and class by score, from 0.
        area: (N,) float64, square pixels.
        best_iou, best_truth: (N,) the truth of its class that is most like it, matched or not, and its row; of equal
            ones the first. 0 and -1 where nothing is like it. Crowds are left out.
        best_iou_other, best_truth_other: likewise among truths of the other classes.
        best_iou_any, best_truth_any: likewise among truths of all classes, crowds too, by the share that they cover.
        matched: (N, T) int32 row of the truth that it takes in the first range of area, or -1.
        outcomes: (N, A, T) uint8 of ``FALSE``, ``TRUE`` and ``IGNORED``.
        truth_images, truth_labels, truth_ids: (M,) int64.
        truth_area: (M,) float64.
        truth_iscrowd: (M,) bool.
        truth_ignored: (M, A) bool.
    """

    settings: MatchSettings
    label_map: LabelMap
    image_ids: tuple[str, ...]
    image_numbers: IntArray
    images: IntArray
    labels: IntArray
    scores: FloatArray
    det_index: IntArray
    rank: IntArray
    area: FloatArray
    best_iou: FloatArray
    best_truth: IntArray
    best_iou_any: FloatArray
    best_truth_any: IntArray
    best_iou_other: FloatArray
    best_truth_other: IntArray
    matched: NDArray[np.int32]
    outcomes: NDArray[np.uint8]
    truth_images: IntArray
    truth_labels: IntArray
    truth_ids: IntArray
    truth_area: FloatArray
    truth_iscrowd: BoolArray
    truth_ignored: BoolArray

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_detections(self) -> int:
        return len(self.labels)

    @property
    def num_truths(self) -> int:
        return len(self.truth_labels)

    def truths_matched(self, threshold: int) -> IntArray:
        """(M,) row of the detection that takes each truth at a threshold's index, the best one of a crowd; or -1."""
        found = np.full(self.num_truths, -1, np.int64)
        rows = np.flatnonzero(self.matched[:, threshold] >= 0)
        rows = rows[np.argsort(-self.rank[rows], kind="stable")]  # the first of a crowd is written last
        found[self.matched[rows, threshold]] = rows
        return found


def match_images(
    truths: Iterable[tuple[str, Annotations]],
    detections: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    settings: MatchSettings | None = None,
    sizes: Mapping[str, Size] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> MatchTable:
    """Match detections with truth.

    Args:
        truths: every image to be measured with its truth, empty where it holds nothing.
        detections: images with what was found, with scores; their order within an image decides between equal scores.
        label_map: the categories of both.
        settings: COCO's for boxes where None; see ``coco_settings``.
        sizes: height and width of images, by name: ``segm`` needs them for polygons and compares them with RLEs.
        numbers: COCO image ids by name, the order of images; where None, that of ``truths``.
    Raises:
        ValueError: see ``truth_columns`` and ``detection_columns``.
    """
    settings = settings or MatchSettings()
    truth = truth_columns(truths, label_map, iou_type=settings.iou_type, sizes=sizes, numbers=numbers)
    found = detection_columns(detections, label_map, truth, iou_type=settings.iou_type, sizes=sizes)
    return match_columns(truth, found, label_map, settings)


def match_columns(
    truth: ObjectColumns, found: ObjectColumns, label_map: LabelMap, settings: MatchSettings
) -> MatchTable:
    """As ``match_images``, of flat columns whose objects lie in the order of images."""
    thresholds = np.array(settings.iou_thresholds)
    groups = found.images * len(label_map) + found.labels
    rank = ranks_in_images(found.images, found.labels, found.scores)
    taking_part = rank < settings.max_detections[-1]
    everything = np.arange(len(found))
    alike = similar_pairs(truth, found, everything, label_map, settings, least=_SLIGHTEST, across_classes=True)
    same = alike.only(found.labels[alike.found] == truth.labels[alike.truths])
    candidates = same.only((same.iou >= least_iou(thresholds)) & taking_part[same.found])
    ignored = truths_ignored(truth, settings)
    matches = match_pairs(candidates, groups, rank, ignored, truth.iscrowd, thresholds)

    matched = np.full((len(found), len(thresholds)), UNMATCHED, np.int32)
    matched[matches.rows] = matches.truths
    outside = areas_outside(found.area, settings)
    outcomes = np.repeat(np.where(outside, IGNORED, FALSE).astype(np.uint8)[:, :, None], len(thresholds), axis=2)
    outcomes[matches.rows] = outcomes_of(matches, outside)
    outcomes[~taking_part] = IGNORED
    best_iou, best_truth = _best(same.only(~truth.iscrowd[same.truths]), len(found))
    best_iou_any, best_truth_any = _best(alike, len(found))
    strange = found.labels[alike.found] != truth.labels[alike.truths]
    best_iou_other, best_truth_other = _best(alike.only(strange & ~truth.iscrowd[alike.truths]), len(found))
    return MatchTable(
        settings=settings,
        label_map=label_map,
        image_ids=truth.image_ids,
        image_numbers=truth.image_numbers,
        images=found.images,
        labels=found.labels,
        scores=found.scores,
        det_index=_places(found.images),
        rank=rank,
        area=found.area,
        best_iou=best_iou,
        best_truth=best_truth,
        best_iou_any=best_iou_any,
        best_truth_any=best_truth_any,
        best_iou_other=best_iou_other,
        best_truth_other=best_truth_other,
        matched=matched,
        outcomes=outcomes,
        truth_images=truth.images,
        truth_labels=truth.labels,
        truth_ids=truth.ids,
        truth_area=truth.area,
        truth_iscrowd=truth.iscrowd,
        truth_ignored=ignored,
    )


def truths_ignored(truth: ObjectColumns, settings: MatchSettings) -> BoolArray:
    """(M, A)"""
    outside = [(truth.area < area.low) | (truth.area > area.high) for area in settings.areas]
    return np.column_stack([truth.ignored | far for far in outside])


def areas_outside(area: FloatArray, settings: MatchSettings) -> BoolArray:
    """(N, A)"""
    outside = np.empty((len(area), len(settings.areas)), np.bool_)
    for at, given in enumerate(settings.areas):
        np.logical_or(area < given.low, area > given.high, out=outside[:, at])
    return outside


def outcomes_of(matches: Matches, outside: BoolArray) -> NDArray[np.uint8]:
    """(D, A, T) of the detections that have pairs; ``outside`` is (N, A), of all."""
    alone = np.where(outside[matches.rows], IGNORED, FALSE).astype(np.uint8)[:, :, None]
    taking = np.where(matches.right, np.uint8(TRUE), np.uint8(IGNORED))
    return np.where(matches.takes, taking, alone)


def _best(pairs: Pairs, num_detections: int) -> tuple[FloatArray, IntArray]:
    iou, row = np.zeros(num_detections), np.full(num_detections, UNMATCHED, np.int64)
    order = np.lexsort((-pairs.truths, pairs.iou))  # what is written last stays: the most alike, the first of equals
    iou[pairs.found[order]] = pairs.iou[order]
    row[pairs.found[order]] = pairs.truths[order]
    return iou, row


def _places(images: IntArray) -> IntArray:
    """(N,) of each row among those of its image, which lie together."""
    first = np.flatnonzero(np.diff(images, prepend=-1))
    return np.arange(len(images)) - np.repeat(first, np.diff(np.append(first, len(images))))
