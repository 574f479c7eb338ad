"""Non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torchvision.ops import nms


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Greedy NMS within each class, the best ``limit`` survivors.

    Whether a box survives depends only on better ones, so the best max(1.25 * limit, 128) are tried first and doubled
    until enough survive: exact, and far cheaper than trying all. (Time grows with the square of how many are tried:
    where all have to be in the end, what was tried before costs a third of that at most.)

    Args:
        boxes: (N, 4) xyxy, absolute pixels.
        scores: (N,).
        labels: (N,) int64.
        iou_threshold: suppress a box whose IoU with a better one of its class exceeds this.
        limit: most indices returned.
    Returns:
        Kept indices, (M,) int64, by descending score; ties keep the lower index first.
    Raises:
        ValueError: lengths disagree.
    Source: torchvision.ops.batched_nms.
    """
    return nms_of_images(boxes, scores, labels, [len(scores)], iou_threshold, limit)[0]


def nms_of_images(
    boxes: Tensor, scores: Tensor, labels: Tensor, counts: Sequence[int], iou_threshold: float, limit: int
) -> list[Tensor]:
    """``batched_nms`` of each of several images, whose moving apart is done for all at once.

    Args:
        boxes, scores, labels: of all images, one image after the other.
        counts: boxes of each image.
        iou_threshold, limit: of each image, see ``batched_nms``.
    Returns:
        For each image the kept indices into ``boxes``, by descending score.
    Raises:
        ValueError: lengths disagree.
    """
    n = len(scores)
    if len(boxes) != n or len(labels) != n or sum(counts) != n:
        raise ValueError(f"{len(boxes)} boxes, {n} scores, {len(labels)} labels: they must be as many")
    order = torch.cat(ranks_of_images(scores, counts))
    boxes, scores, labels = (values.index_select(0, order) for values in (boxes, scores, labels))
    kept = nms_of_ranked(boxes, scores, labels, counts, iou_threshold, limit)
    return [order[of_image] for of_image in kept]


def ranks_of_images(scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """For each image the indices of its scores, the highest first; ties keep the lower index first.

    Args:
        scores: of all images, one image after the other.
        counts: how many each image has.
    """
    starts = accumulate(counts, initial=0)
    of_images = scores.split(list(counts))
    return [start + of_image.argsort(descending=True, stable=True) for start, of_image in zip(starts, of_images)]


def nms_of_ranked(
    boxes: Tensor, scores: Tensor, labels: Tensor, counts: Sequence[int], iou_threshold: float, limit: int
) -> list[Tensor]:
    """``nms_of_images`` of what is sorted already, by image and by descending score."""
    if not len(boxes) or limit <= 0:
        return [torch.zeros(0, dtype=torch.int64, device=boxes.device) for _ in counts]
    lengths, starts = list(counts), accumulate(counts, initial=0)
    apart, ranked = _apart(boxes, labels).split(lengths), scores.double().split(lengths)  # the kernel wants one type
    return [
        start + _best(of_boxes, of_scores, iou_threshold, limit)
        for start, of_boxes, of_scores in zip(starts, apart, ranked)
    ]


def first_tried(limit: int) -> int:
    """How many of the best boxes are tried first, where ``limit`` are wanted: most of them survive as a rule."""
    return max(limit + limit // 4, 128)


def _best(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """The first ``limit`` survivors of boxes that are apart and sorted by descending score."""
    tried = first_tried(limit)
    while True:
        kept: Tensor = nms(boxes[:tried], scores[:tried], iou_threshold)
        if tried >= len(boxes) or len(kept) >= limit:
            return kept[:limit]
        tried *= 2


def _apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """Boxes moved so that those of different classes never meet; float64, so that moving loses no digit."""
    boxes = boxes.double()
    low, high = boxes.aminmax()
    return boxes + (labels * (high - low + 1))[:, None]
