"""Samplers: which anchors a loss counts, where it does not count all.

Shape legend: B images, N anchors. All take matched_idxs (B, N) as the matchers give them and return a (B, N) bool
mask; ignored anchors are never in it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from detectors.blocks.matchers import BACKGROUND


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

    Greedy NMS looks at better boxes only, so the hardest max(3 * batch_size, 256) are tried first, and doubled until
    the batch is full: exact, and far cheaper than trying all.

    Args:
        losses: (B, N) of each anchor; no gradient is needed.
        matched_idxs: (B, N) int64.
        anchors: (N, 4) xyxy.
        batch_size: anchors an image.
        nms_iou: an anchor is dropped beside a harder one from beyond this IoU.
        negatives_per_positive: None takes the hardest whatever they are; 3 is the 1:3 variant: the hardest positives,
            up to a quarter of the batch, and three times as many of the hardest background anchors.
        min_negatives: of the 1:3 variant, at least so many an image.
    Returns:
        (B, N) bool.
    Source: Shrivastava et al. 2016, 1604.03540; as Lin et al. 2017, 1708.02002, section 5.1, have it.
    """
    chosen = torch.zeros_like(matched_idxs, dtype=torch.bool)
    for i, (image_losses, matched) in enumerate(zip(losses, matched_idxs)):
        candidates = ((matched >= 0) | (matched == BACKGROUND)).nonzero().squeeze(1)
        order = candidates[image_losses[candidates].argsort(descending=True, stable=True)]
        positive = matched[order] >= 0
        tried = max(3 * batch_size, 256)
        while True:
            kept: Tensor = nms(anchors[order[:tried]].float(), image_losses[order[:tried]].float(), nms_iou)
            if negatives_per_positive is None:
                batch, full = kept[:batch_size], len(kept) >= batch_size
            else:
                batch, full = _in_ratio(kept, positive, tried, batch_size, negatives_per_positive, min_negatives)
            if full or tried >= len(order):
                break
            tried *= 2
        chosen[i, order[batch]] = True
    return chosen


def _in_ratio(
    kept: Tensor, positive: Tensor, tried: int, batch_size: int, negatives_per_positive: float, min_negatives: int
) -> tuple[Tensor, bool]:
    """The hardest positives and background anchors of ``kept``, and whether trying more could change them."""
    quota = int(batch_size / (1 + negatives_per_positive))
    positives = kept[positive[kept]][:quota]
    wanted = min(batch_size - len(positives), max(min_negatives, int(negatives_per_positive * len(positives))))
    negatives = kept[~positive[kept]][:wanted]
    all_positives = len(positives) == quota or not bool(positive[tried:].any())
    return torch.cat([positives, negatives]), all_positives and len(negatives) == wanted
