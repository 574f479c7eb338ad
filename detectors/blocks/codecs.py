"""Box codecs: between boxes and what a network regresses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest log of growth that is decoded, so that exp never overflows (Detectron's choice)."""


CodecWeights = tuple[float, float, float, float]
"""What each of the four deltas is multiplied by, so that all are of one size; Fast R-CNN's and SSD's are 10, 10, 5, 5
(the "variances" 0.1, 0.1, 0.2, 0.2)."""

PLAIN: CodecWeights = (1.0, 1.0, 1.0, 1.0)


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: CodecWeights = PLAIN) -> Tensor:
    """t = ((x-xa)/wa, (y-ya)/ha, log w/wa, log h/ha) of box centres and sizes.

    Args:
        boxes: (N, 4) xyxy with positive width and height.
        anchors: (N, 4) xyxy.
        weights: of the four.
    Returns:
        (N, 4) deltas.
    Source: Ren et al. 2015, 1506.01497, equation 2.
    """
    box_centre, box_size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    deltas = torch.cat([(box_centre - anchor_centre) / anchor_size, torch.log(box_size / anchor_size)], -1)
    return deltas if weights == PLAIN else deltas * deltas.new_tensor(weights)


def decode_boxes(deltas: Tensor, anchors: Tensor, weights: CodecWeights = PLAIN) -> Tensor:
    """The inverse of ``encode_boxes``: (N, 4) deltas and (N, 4) anchors to (N, 4) xyxy boxes."""
    shift, growth = deltas[..., :2], deltas[..., 2:]
    if weights != PLAIN:
        shift, growth = _divided(shift, *weights[:2]), _divided(growth, *weights[2:])
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = shift * anchor_size + anchor_centre
    half = torch.exp(growth.clamp(max=MAX_LOG_SCALE)) * anchor_size * 0.5
    return torch.cat([centre - half, centre + half], -1)


def _divided(pairs: Tensor, by_first: float, by_second: float) -> Tensor:
    """(N, 2) by one number each; one for both, as nearly all have: a row is slow to divide by."""
    return pairs / (by_first if by_first == by_second else pairs.new_tensor((by_first, by_second)))


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
