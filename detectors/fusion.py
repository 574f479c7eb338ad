"""Weighted-boxes fusion: what several models, or views of one, found in an image becomes one set of detections.

NMS keeps one box of a heap and throws the others away; fusion averages them. Detections of a class are taken by
descending score; each joins the cluster whose box so far it overlaps most, or founds one. A cluster's box is the mean
of its members', weighed by score; its score the mean of theirs, less where not all models are in it.

Shape legend: N detections of all models, M clusters, T models.
Source: Solovyev et al. 2019, 1910.13302.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLD = 0.55
"""The paper's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedBoxes:
    """Clusters, by group and then by descending score.

    Attributes:
        boxes: (M, 4) float64 xyxy.
        scores: (M,) float64 in [0, 1].
        groups: (M,) int64.
        best: (M,) int64, the member whose weighted score is highest.
        cluster: (N,) int64, where each detection went; -1 for those of weighted score 0.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    groups: NDArray[np.int64]
    best: NDArray[np.int64]
    cluster: NDArray[np.int64]


def fuse_boxes(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    groups: NDArray[np.integer],
    models: NDArray[np.integer],
    weights: Sequence[float],
    *,
    iou_threshold: float = IOU_THRESHOLD,
) -> FusedBoxes:
    """Weighted-boxes fusion of any number of images and classes at once.

    Groups go side by side: step k is the k-th best detection of each, so that Python counts the detections of the
    largest group only.

    Args:
        boxes: (N, 4) xyxy, any unit.
        scores: (N,) in [0, 1].
        groups: (N,) only detections of one group meet: one number for each class of each image.
        models: (N,) in 0..T-1.
        weights: T numbers of 0 or more, how much each model's scores count.
        iou_threshold: a detection joins a cluster whose box it overlaps by more than this.
    Returns:
        The clusters. Where one model has several boxes in a cluster, weights could bring its score above 1, where it
        is cut. Of equal scores the first counts as the better.
    Raises:
        ValueError: lengths disagree, or weights, models or the threshold are out of range.
    """
    _check(boxes, scores, groups, models, weights, iou_threshold)
    weight = np.asarray(weights, np.float64)
    weighted = np.asarray(scores, np.float64) * weight[models]
    order = np.lexsort((-weighted, groups))
    order = order[weighted[order] > 0]
    cluster = np.full(len(scores), -1, np.int64)
    ranked = weighted[order]
    total, mass, members, slot = _clusters(
        np.asarray(boxes, np.float64)[order], ranked, np.asarray(groups)[order], iou_threshold
    )
    used = np.flatnonzero(members)
    count = members[used]
    fused_scores = np.minimum(mass[used] / count * np.minimum(len(weight), count) / weight.sum(), 1.0)
    first = np.unique(slot, return_index=True)[1]  # members come by descending score
    best, fused_groups = order[first], np.asarray(groups)[order[first]]
    by = np.lexsort((-fused_scores, fused_groups))
    place = np.zeros(len(order) + 1, np.int64)
    place[used[by]] = np.arange(len(by))
    cluster[order] = place[slot]
    return FusedBoxes(
        boxes=(total[used] / mass[used, None])[by],
        scores=fused_scores[by],
        groups=fused_groups[by].astype(np.int64),
        best=best[by],
        cluster=cluster,
    )


def _check(
    boxes: NDArray, scores: NDArray, groups: NDArray, models: NDArray, weights: Sequence[float], iou_threshold: float
) -> None:
    if not len(boxes) == len(scores) == len(groups) == len(models):
        raise ValueError(
            f"{len(boxes)} boxes, {len(scores)} scores, {len(groups)} groups, {len(models)} models: must be as many"
        )
    check_weights(weights)
    if len(models) and not 0 <= models.min() <= models.max() < len(weights):
        raise ValueError(f"models {models.min()} to {models.max()}, but there are weights of {len(weights)}")
    if not 0 < iou_threshold < 1:
        raise ValueError(f"iou_threshold={iou_threshold} must lie between 0 and 1")


def check_weights(weights: Sequence[float]) -> None:
    """Raises ValueError unless all are finite, none negative and one above 0."""
    if not weights or not all(0 <= w < float("inf") for w in weights) or not any(weights):
        raise ValueError(f"weights {list(weights)}: give each model 0 or more, and one of them more than 0")


def _clusters(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], groups: NDArray[np.integer], iou_threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Sums of score x box, of scores and of members for each slot, and the slot of each detection.

    Detections are sorted by group and score. A group has as many slots as detections, its clusters fill the first.
    """
    n = len(scores)
    total, mass = np.zeros((n, 4)), np.zeros(n)
    members, slot_of = np.zeros(n, np.int64), np.zeros(n, np.int64)
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    sizes = np.diff(starts, append=n)
    largest_first = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[largest_first], sizes[largest_first]
    clusters = np.zeros(len(starts), np.int64)
    for k in range(sizes[0] if n else 0):
        active = int(np.searchsorted(-sizes, -k))  # groups of more than k come first
        detections, founded = starts[:active] + k, starts[:active] + clusters[:active]
        slots = founded
        if k:
            counts = clusters[:active]
            firsts = np.cumsum(counts) - counts
            owner = np.repeat(np.arange(active), counts)
            slot = np.arange(len(owner)) + (starts[:active] - firsts)[owner]
            iou = _iou(total[slot] / mass[slot, None], boxes[detections][owner])
            best = np.maximum.reduceat(iou, firsts)
            at = np.minimum.reduceat(np.where(iou == best[owner], slot, n), firsts)
            slots = np.where(best > iou_threshold, at, founded)
        clusters[:active] += slots == founded
        # Groups share no slots: no two of these are the same.
        total[slots] += scores[detections, None] * boxes[detections]
        mass[slots] += scores[detections]
        members[slots] += 1
        slot_of[detections] = slots
    return total, mass, members, slot_of


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    both = np.clip(sides, 0, None).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)
