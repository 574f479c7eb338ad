"""Masks and keypoints of one object that was detected more than once.

Shape legend: N detections of the object, M x M cells of a mask's crop, K keypoints.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masks_onto(crops: Tensor, boxes: Tensor, onto: Tensor) -> Tensor:
    """Mask crops of some boxes as crops of another one; what lies outside of a box is 0.

    Args:
        crops: (N, M, M) probabilities.
        boxes: (N, 4) xyxy they fill.
        onto: (4,) xyxy, in the same pixels.
    Returns:
        (N, M, M), bilinear at the centres of the cells.
    """
    cells = crops.shape[-1]
    centres = (torch.arange(cells, dtype=torch.float32) + 0.5) / cells
    at = onto[:2] + centres[:, None] * (onto[2:] - onto[:2])  # (M, 2) x and y of columns and rows
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    inside = 2 * (at[None] - boxes[:, None, :2]) / size[:, None] - 1  # (N, M, 2), -1..1 is the box
    x, y = inside[..., 0], inside[..., 1]
    grid = torch.stack([x[:, None, :].expand(-1, cells, -1), y[:, :, None].expand(-1, -1, cells)], -1)
    # Up to the border a cell is what it is; zeros beyond it would eat half a cell at every side.
    values = F.grid_sample(crops[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return torch.where((grid.abs() <= 1).all(-1), values, 0.0)


def join_masks(crops: Tensor, boxes: Tensor, hull: Tensor) -> Tensor:
    """(M, M) crop of ``hull`` where each cell is what the surest of the detections says of it."""
    return masks_onto(crops, boxes, hull).amax(0)


def join_keypoints(keypoints: Tensor) -> Tensor:
    """(K, 3) of (N, K, 3): each keypoint from the detection that is surest of it."""
    best = keypoints[..., 2].argmax(0)
    return keypoints[best, torch.arange(keypoints.shape[1])]
