"""Box losses of the dense detectors; what they lose on classes is in ``class_losses``."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detectors.blocks.codecs import PLAIN, CodecWeights, decode_boxes, encode_boxes

BoxLoss = Literal["smooth_l1", "l1", "giou"]
BOX_LOSSES: tuple[BoxLoss, ...] = ("smooth_l1", "l1", "giou")


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
