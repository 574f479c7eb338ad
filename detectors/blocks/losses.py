"""Losses of the dense detectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detectors.blocks.codecs import PLAIN, CodecWeights, decode_boxes, encode_boxes

BoxLoss = Literal["smooth_l1", "l1", "giou"]
BOX_LOSSES: tuple[BoxLoss, ...] = ("smooth_l1", "l1", "giou")


def dense_focal_loss(
    logits: Tensor, positives: Tensor, labels: Tensor, weights: Tensor, *, alpha: float, gamma: float
) -> Tensor:
    """Weighted sum of FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t) over all anchors and classes.

    There is no one-hot target: nearly every element is background, so all are summed as background, and the few
    true ones are put right.

    Args:
        logits: (N, C).
        positives: (P,) int64, rows that show an object.
        labels: (P,) int64, its label in 0..C-1.
        weights: (N,) of each row; 0 ignores it.
    Returns:
        Scalar.
    Source: Lin et al. 2017, 1708.02002, equation 5; torchvision.ops.sigmoid_focal_loss.
    """
    background = (1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)
    total = (background.sum(1) * weights).sum()
    true = logits[positives, labels]
    as_object = alpha * torch.sigmoid(-true) ** gamma * F.softplus(-true)
    return total + ((as_object - background[positives, labels]) * weights[positives]).sum()


def box_regression_loss(
    deltas: Tensor, boxes: Tensor, anchors: Tensor, *, kind: BoxLoss, beta: float, weights: CodecWeights = PLAIN
) -> Tensor:
    """Loss of each matched anchor, summed over its four numbers.

    Args:
        deltas: (P, 4) predicted.
        boxes: (P, 4) xyxy, true.
        anchors: (P, 4) xyxy.
        kind: ``smooth_l1`` (Huber / beta, knee at ``beta``) or ``l1`` on deltas, ``giou`` on decoded boxes.
        weights: of the codec.
    Returns:
        (P,) losses.
    """
    match kind:
        case "smooth_l1":
            encoded = encode_boxes(boxes, anchors, weights)
            return F.smooth_l1_loss(deltas, encoded, beta=beta, reduction="none").sum(1)
        case "l1":
            return (deltas - encode_boxes(boxes, anchors, weights)).abs().sum(1)
        case "giou":
            losses: Tensor = generalized_box_iou_loss(decode_boxes(deltas, anchors, weights), boxes)
            return losses
