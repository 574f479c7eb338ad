"""Box codecs: between boxes and what a network regresses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest log of growth that is decoded, so that exp never overflows (Detectron's choice)."""


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """t = ((x-xa)/wa, (y-ya)/ha, log w/wa, log h/ha) of box centres and sizes.

    Args:
        boxes: (N, 4) xyxy with positive width and height.
        anchors: (N, 4) xyxy.
    Returns:
        (N, 4) deltas.
    Source: Ren et al. 2015, 1506.01497, equation 2.
    """
    box_centre, box_size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    return torch.cat([(box_centre - anchor_centre) / anchor_size, torch.log(box_size / anchor_size)], -1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of ``encode_boxes``: (N, 4) deltas and (N, 4) anchors to (N, 4) xyxy boxes."""
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_size * 0.5
    return torch.cat([centre - half, centre + half], -1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
