"""The classification loss of a dense detector as a choice, so that the papers' ablations are a setting.

Shape legend: B images, N anchors of all levels, n of one level, C classes, K logits an anchor (C, or C + 1 with a
background class), P positive anchors of the batch, S anchors that are counted.

There are no one-hot targets anywhere: nearly every element is background, so all are summed as background and the few
true ones are put right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.blocks.matchers import IGNORED
from detectors.blocks.samplers import hard_negatives, ohem
from detectors.options import check_at_least, check_choices

ClassLoss = Literal["focal", "alpha_ce", "ce", "ohem", "hard_negative"]
CLASS_LOSSES: tuple[ClassLoss, ...] = get_args(ClassLoss)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLossOptions:
    """Which classification loss; a model's options have those of these fields that make sense for it.

    Attributes:
        loss: what is summed over which anchors:
            ``focal``: focal loss over all;
            ``alpha_ce``: cross-entropy over all, objects weighted by alpha, background by 1 - alpha;
            ``ce``: cross-entropy over all;
            ``ohem``: cross-entropy over the hardest anchors after NMS;
            ``hard_negative``: cross-entropy over all positives and the hardest background anchors, 3:1.
            Anchors that the matcher ignores never count.
        focal_alpha, focal_gamma: of the focal loss; the paper's best are 0.25 and 2.
        ce_alpha: of ``alpha_ce``; the paper's best is 0.75.
        ohem_batch: anchors an image; the papers try 128, 256 and 512.
        ohem_nms_iou: of the NMS among anchors; the papers try 0.5 and 0.7.
        ohem_balanced: the variant with ``negatives_per_positive``: up to a quarter of the batch (with 3) is positive,
            and there are three background anchors for each positive one.
        negatives_per_positive: of ``hard_negative`` and of the balanced ``ohem``.
        min_negatives: of the same two, background anchors that an image has at least, however few its objects.
    Source: Lin et al. 2017, 1708.02002, table 1; Liu et al. 2015, 1512.02325; Shrivastava et al. 2016, 1604.03540.
    """

    loss: ClassLoss = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    ce_alpha: float = 0.75
    ohem_batch: int = 128
    ohem_nms_iou: float = 0.5
    ohem_balanced: bool = False
    negatives_per_positive: float = 3.0
    min_negatives: int = 0

    def __post_init__(self) -> None:
        check_choices(self, loss=CLASS_LOSSES)
        for name in ("focal_alpha", "ce_alpha", "ohem_nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in 0..1")
        check_at_least(self, focal_gamma=0, negatives_per_positive=0, min_negatives=0, ohem_batch=1)

    @classmethod
    def of(cls, options: Any) -> ClassLossOptions:
        """Those of a model's options that have names of these fields; the defaults for the rest."""
        return cls(**{f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)})


def dense_class_loss(
    logits: Sequence[Tensor],
    matched_idxs: Tensor,
    labels: Tensor,
    options: ClassLossOptions,
    *,
    anchors: Tensor,
    background: Literal["none", "first", "last"] = "none",
) -> Tensor:
    """The classification loss of each image, summed over the anchors that count; callers normalise.

    Args:
        logits: of each level (B, n, K), so that views of the head's maps need not be joined; N is the sum of the n.
        matched_idxs: (B, N) int64: index of the object, BACKGROUND or IGNORED.
        labels: (P,) int64 in 0..C-1, of the positive anchors in the order of ``(matched_idxs >= 0).nonzero()``.
        options: which loss.
        anchors: (N, 4) xyxy; only ``ohem`` looks at them.
        background: ``none``: K = C independent sigmoids, and background is "all of them 0". ``first`` or ``last``:
            softmax over K = C + 1, where background is class 0 (torchvision's SSD) or class C.
    Returns:
        (B,) float32.
    """
    true = torch.full_like(matched_idxs, -1)  # (B, N) label of each anchor, -1 where it shows no object
    true[matched_idxs >= 0] = labels
    form = _Form(background)
    levels = [level.shape[1] for level in logits]
    match options.loss:
        case "focal" | "alpha_ce" | "ce":
            counted = (matched_idxs != IGNORED).split(levels, 1)
            sums = [
                (form.losses(x, y, options) * used).sum(1) for x, y, used in zip(logits, true.split(levels, 1), counted)
            ]
            return torch.stack(sums).sum(0)
        case "ohem" | "hard_negative":
            with torch.no_grad():
                of_anchor = torch.cat(
                    [form.losses(x, y, options) for x, y in zip(logits, true.split(levels, 1), strict=True)], 1
                )
                chosen = _choose(of_anchor, matched_idxs, anchors, options)
            # Only the few that are chosen take part in the backward pass.
            sums = []
            for x, y, used in zip(logits, true.split(levels, 1), chosen.split(levels, 1)):
                image, anchor = used.nonzero(as_tuple=True)
                of_chosen = form.losses(x[image, anchor], y[image, anchor], options)
                sums.append(of_chosen.new_zeros(len(x)).index_add(0, image, of_chosen))
            return torch.stack(sums).sum(0)


def _choose(losses: Tensor, matched_idxs: Tensor, anchors: Tensor, options: ClassLossOptions) -> Tensor:
    """(B, N) bool: the anchors that a mining loss counts."""
    if options.loss == "hard_negative":
        return hard_negatives(
            losses,
            matched_idxs,
            negatives_per_positive=options.negatives_per_positive,
            min_negatives=options.min_negatives,
        )
    return ohem(
        losses,
        matched_idxs,
        anchors,
        batch_size=options.ohem_batch,
        nms_iou=options.ohem_nms_iou,
        negatives_per_positive=options.negatives_per_positive if options.ohem_balanced else None,
        min_negatives=options.min_negatives,
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """Sigmoid or softmax, and where its background class is."""

    background: Literal["none", "first", "last"]

    def losses(self, logits: Tensor, labels: Tensor, options: ClassLossOptions) -> Tensor:
        """(..., K) logits and (...) labels, -1 for background, to (...) float32 losses."""
        if self.background == "none":
            return _sigmoid_losses(logits.float(), labels, options)
        if self.background == "first":
            classes = labels + 1
        else:
            classes = torch.where(labels < 0, logits.shape[-1] - 1, labels)
        return _softmax_losses(logits.float(), classes, labels >= 0, options)


def _sigmoid_losses(logits: Tensor, labels: Tensor, options: ClassLossOptions) -> Tensor:
    """Sum over the classes of each anchor's binary losses."""
    positive = (labels >= 0).nonzero(as_tuple=True)
    true = logits[(*positive, labels[positive])]
    match options.loss:
        case "focal":
            alpha, gamma = options.focal_alpha, options.focal_gamma
            as_background = (1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)
            as_object = alpha * torch.sigmoid(-true) ** gamma * F.softplus(-true)
        case "alpha_ce":
            as_background = (1 - options.ce_alpha) * F.softplus(logits)
            as_object = options.ce_alpha * F.softplus(-true)
        case _:
            as_background = F.softplus(logits)
            as_object = F.softplus(-true)
    of_anchor = as_background.sum(-1)
    return of_anchor.index_put(positive, as_object - as_background[(*positive, labels[positive])], accumulate=True)


def _softmax_losses(logits: Tensor, classes: Tensor, positive: Tensor, options: ClassLossOptions) -> Tensor:
    """-log p of each anchor's class, weighted."""
    cross_entropy = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="none").view(classes.shape)
    match options.loss:
        case "focal":
            alpha = torch.where(positive, options.focal_alpha, 1 - options.focal_alpha)
            return alpha * (-torch.expm1(-cross_entropy)) ** options.focal_gamma * cross_entropy
        case "alpha_ce":
            return torch.where(positive, options.ce_alpha, 1 - options.ce_alpha) * cross_entropy
        case _:
            return cross_entropy
