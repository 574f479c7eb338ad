"""Anchors: boxes of fixed sizes and ratios at every position of every level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Shape = tuple[int, int]
AnchorStyle = Literal["paper", "torchvision", "efficientdet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorGrid:
    """Where anchors lie: at level l of stride s_l, sizes scale * s_l * 2^(i * doublings / octaves) in every ratio.

    Attributes:
        strides: of the levels, pixels.
        scale: size of the smallest anchor in strides; RetinaNet's is 4 (32 px at stride 8).
        octaves: sizes a position.
        doublings: over which they are spread: 1 for sizes between one level and the next, as many as there are sizes
            where each is twice the one before (Faster R-CNN on one map: 128, 256, 512).
        ratios: height / width.
        offset: of the anchor's centre inside its cell, in strides; 0.5 is the cell's middle.
        style: ``paper``, or ``torchvision``: sizes cut to integers, corners rounded, strides = image // map, or
            ``efficientdet``: a position's anchors by size, then ratio; the sides of a ratio have one decimal (1.4 and
            0.7 for 2:1), strides = image / map, so that images need not be multiples of the last stride.
    Source: Lin et al. 2017, 1708.02002; torchvision.models.detection.anchor_utils; google/automl's efficientdet.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    scale: float = 4.0
    octaves: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    offset: float = 0.0
    style: AnchorStyle = "paper"
    doublings: float = 1.0

    @property
    def num_anchors(self) -> int:
        """Anchors a position."""
        return self.octaves * len(self.ratios)


@lru_cache(maxsize=64)
def grid_anchors(grid: AnchorGrid, shapes: tuple[Shape, ...], image_shape: Shape, device: torch.device) -> Tensor:
    """All anchors of all levels, cached; do not write into them.

    Args:
        shapes: height and width of each level's map.
        image_shape: height and width of the padded images.
    Returns:
        (N, 4) float32 xyxy, pixels; ordered by level, row, column, ratio, size (size, ratio: ``efficientdet``).
    Raises:
        ValueError: as many shapes as strides are needed.
    """
    if len(shapes) != len(grid.strides):
        raise ValueError(f"{len(shapes)} maps for {len(grid.strides)} anchor strides; they must be as many")
    # A tensor made under inference_mode could never be used in training again, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        levels = []
        for stride, shape in zip(grid.strides, shapes):
            steps = (float(stride), float(stride))
            match grid.style:
                case "torchvision":
                    steps = (float(image_shape[0] // shape[0]), float(image_shape[1] // shape[1]))
                    cell = _cell_anchors(grid, stride)
                case "efficientdet":
                    steps = (image_shape[0] / shape[0], image_shape[1] / shape[1])
                    cell = _efficientdet_cell_anchors(grid, steps)
                case "paper":
                    cell = _cell_anchors(grid, stride)
            levels.append(_level_anchors(cell, shape, steps, grid.offset))
        return torch.cat(levels).to(device)


def _cell_anchors(grid: AnchorGrid, stride: int) -> Tensor:
    """(A, 4) float32 xyxy around the origin."""
    sizes = [grid.scale * stride * 2 ** (i * grid.doublings / grid.octaves) for i in range(grid.octaves)]
    if grid.style == "torchvision":
        sizes = [float(int(size)) for size in sizes]
    half = torch.tensor(
        [[size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2] for ratio in grid.ratios for size in sizes],
        dtype=torch.float64,
    )
    cell = torch.cat([-half, half], 1)
    return (cell.round() if grid.style == "torchvision" else cell).float()


def _efficientdet_cell_anchors(grid: AnchorGrid, steps: tuple[float, float]) -> Tensor:
    """(A, 4) float32 xyxy around the origin."""
    half = torch.tensor(
        [
            [
                steps[1] * grid.scale * 2 ** (i / grid.octaves) * round(math.sqrt(1 / ratio), 1) / 2,
                steps[0] * grid.scale * 2 ** (i / grid.octaves) * round(math.sqrt(ratio), 1) / 2,
            ]
            for i in range(grid.octaves)
            for ratio in grid.ratios
        ],
        dtype=torch.float64,
    )
    return torch.cat([-half, half], 1).float()


def _level_anchors(cell: Tensor, shape: Shape, steps: tuple[float, float], offset: float) -> Tensor:
    y = (torch.arange(shape[0]) + offset) * steps[0]
    x = (torch.arange(shape[1]) + offset) * steps[1]
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([xx, yy, xx, yy], -1).reshape(-1, 1, 4)
    return (centres + cell).reshape(-1, 4)
