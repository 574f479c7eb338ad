"""Non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Greedy NMS within each class, the best ``limit`` survivors.

    Whether a box survives depends only on better ones, so the best max(3 * limit, 256) are tried first and doubled
    until enough survive: exact, and far cheaper than trying all.

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
    n = len(scores)
    if len(boxes) != n or len(labels) != n:
        raise ValueError(f"{len(boxes)} boxes, {n} scores, {len(labels)} labels: they must be as many")
    if n == 0 or limit <= 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    order = torch.argsort(scores, descending=True, stable=True)
    apart = _apart(boxes, labels)[order]
    ranked = scores[order].double()  # the kernel wants one type
    tried = max(3 * limit, 256)
    while True:
        kept: Tensor = nms(apart[:tried], ranked[:tried], iou_threshold)
        if tried >= n or len(kept) >= limit:
            return order[kept[:limit]]
        tried *= 2


def _apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """Boxes moved so that those of different classes never meet; float64, so that moving loses no digit."""
    boxes = boxes.double()
    low, high = boxes.aminmax()
    return boxes + (labels.double() * (high - low + 1))[:, None]
