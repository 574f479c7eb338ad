"""Non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence

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
    """``batched_nms`` of each of several images, whose sorting and moving apart is done for all at once.

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
    if n == 0 or limit <= 0:
        return [torch.zeros(0, dtype=torch.int64, device=boxes.device) for _ in counts]
    order = torch.argsort(scores, descending=True, stable=True)
    if len(counts) > 1:
        lengths = torch.tensor(counts, device=boxes.device)
        image = torch.repeat_interleave(lengths, output_size=n)
        order = order[image[order].argsort(stable=True)]
    apart = _apart(boxes, labels)[order]
    ranked = scores[order].double()  # the kernel wants one type
    return [
        of_image[_best(of_boxes, of_scores, iou_threshold, limit)]
        for of_image, of_boxes, of_scores in zip(
            order.split(list(counts)), apart.split(list(counts)), ranked.split(list(counts))
        )
    ]


def _best(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """The first ``limit`` survivors of boxes that are apart and sorted by descending score."""
    tried = max(limit + limit // 4, 128)
    while True:
        kept: Tensor = nms(boxes[:tried], scores[:tried], iou_threshold)
        if tried >= len(boxes) or len(kept) >= limit:
            return kept[:limit]
        tried *= 2


def _apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """Boxes moved so that those of different classes never meet; float64, so that moving loses no digit."""
    boxes = boxes.double()
    low, high = boxes.aminmax()
    return boxes + (labels.double() * (high - low + 1))[:, None]
