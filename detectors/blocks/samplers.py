"""Samplers: which anchors a loss counts, where it does not count all.

Shape legend: B images, N anchors. All take matched_idxs (B, N) as the matchers give them and return a (B, N) bool
mask; ignored anchors are never in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detectors.blocks.matchers import BACKGROUND
from detectors.blocks.nms import batched_nms


def balanced(
    matched_idxs: Tensor, *, batch_size: int, positive_fraction: float, generator: torch.Generator | None = None
) -> Tensor:
    """Up to ``batch_size`` anchors an image at random, up to ``positive_fraction`` of them positive.

    Where an image has fewer positives, background fills the rest.

    Args:
        matched_idxs: (B, N) int64.
        batch_size: anchors an image.
        positive_fraction: in [0, 1].
        generator: of the permutations, positives first, image by image; None is torch's global one. The draws are
            torchvision's, so that one seed gives both the same sample.
    Returns:
        (B, N) bool.
    Source: Ren et al. 2015, 1506.01497, section 3.1.3; torchvision.models.detection._utils.
    """
    if batch_size < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1, positive_fraction={positive_fraction} in 0..1")
    chosen = torch.zeros_like(matched_idxs, dtype=torch.bool)
    for i, matched in enumerate(matched_idxs):
        positives = (matched >= 0).nonzero().squeeze(1)
        negatives = (matched == BACKGROUND).nonzero().squeeze(1)
        wanted = min(len(positives), int(batch_size * positive_fraction))
        for of_kind, count in ((positives, wanted), (negatives, min(len(negatives), batch_size - wanted))):
            order = torch.randperm(len(of_kind), generator=generator, device=matched.device)
            chosen[i, of_kind[order[:count]]] = True
    return chosen


def hard_negatives(
    losses: Tensor, matched_idxs: Tensor, *, negatives_per_positive: float = 3.0, min_negatives: int = 0
) -> Tensor:
    """All positives, and the background anchors of each image that have the highest losses.

    Args:
        losses: (B, N) of each anchor; no gradient is needed.
        matched_idxs: (B, N) int64.
        negatives_per_positive: how many background anchors for each positive one.
        min_negatives: at least so many an image, so that images without objects count too; SSD has 0.
    Returns:
        (B, N) bool.
    Source: Liu et al. 2015, 1512.02325, section 2.2; torchvision.models.detection.ssd.
    """
    positive, negative = matched_idxs >= 0, matched_idxs == BACKGROUND
    counts = (positive.sum(1) * negatives_per_positive).long().clamp(min=min_negatives)
    counts = counts.minimum(negative.sum(1))
    most = int(counts.max()) if len(counts) else 0
    hardest = losses.masked_fill(~negative, -torch.inf).topk(most, dim=1).indices
    ranks = torch.arange(most, device=losses.device)
    chosen = positive.clone()
    return chosen.scatter_(1, hardest, chosen.gather(1, hardest) | (ranks < counts[:, None]))


def ohem(
    losses: Tensor,
    matched_idxs: Tensor,
    anchors: Tensor,
    *,
    batch_size: int,
    nms_iou: float,
    negatives_per_positive: float | None = None,
    min_negatives: int = 0,
) -> Tensor:
    """Online hard example mining: NMS of the anchors by their losses, then the hardest of each image.

    Args:
        losses: (B, N) of each anchor; no gradient is needed.
        matched_idxs: (B, N) int64.
        anchors: (N, 4) xyxy.
        batch_size: anchors an image.
        nms_iou: an anchor is dropped beside a harder one from beyond this IoU.
        negatives_per_positive: None takes the hardest whatever they are; 3 is the 1:3 variant: the hardest positives,
            up to a quarter of the batch, and three times as many of the hardest background anchors. There NMS is
            among positives and among background: a detector that has learnt much has its positives at the far end
            of the order, and NMS of all anchors down to there would take seconds an image.
        min_negatives: of the 1:3 variant, at least so many an image.
    Returns:
        (B, N) bool.
    Source: Shrivastava et al. 2016, 1604.03540; as Lin et al. 2017, 1708.02002, section 5.1, have it.
    """
    chosen = torch.zeros_like(matched_idxs, dtype=torch.bool)
    for i, (image_losses, matched) in enumerate(zip(losses, matched_idxs)):
        positives, negatives = matched >= 0, matched == BACKGROUND
        if negatives_per_positive is None:
            chosen[i, _hardest(positives | negatives, image_losses, anchors, nms_iou, batch_size)] = True
            continue
        quota = int(batch_size / (1 + negatives_per_positive))
        hard = _hardest(positives, image_losses, anchors, nms_iou, quota)
        wanted = max(min_negatives, int(negatives_per_positive * len(hard)))
        chosen[i, hard] = True
        chosen[i, _hardest(negatives, image_losses, anchors, nms_iou, min(wanted, batch_size - len(hard)))] = True
    return chosen


def _hardest(candidates: Tensor, losses: Tensor, anchors: Tensor, nms_iou: float, limit: int) -> Tensor:
    """Indices of the ``limit`` hardest candidates, (N,) bool, that NMS leaves."""
    places = candidates.nonzero().squeeze(1)
    no_class = torch.zeros_like(places)
    return places[batched_nms(anchors[places], losses[places], no_class, nms_iou, limit)]
