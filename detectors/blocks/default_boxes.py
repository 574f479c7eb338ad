"""SSD's default boxes: at every cell of every map a few boxes in fractions of the image, never of the stride.

Shape legend: L maps, N default boxes of all maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from detectors.blocks.anchors import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultBoxes:
    """Which boxes lie on which map.

    Map k has a square of side s_k, a square of side sqrt(s_k * s_(k+1)), and for each of its ratios a a box of
    s_k * sqrt(a) by s_k / sqrt(a) and the same turned by 90 degrees.

    Attributes:
        scales: s_1 ... s_(L+1), fractions of the image's sides.
        ratios: width / height, above 1, from the most to the least used.
        ratio_counts: how many of ``ratios`` each of the L maps has.
        strides: pixels from one centre to the next on each map (caffe's and torchvision's ``steps``); empty divides
            the image by the map, as the paper's text does.
        clip: no side is longer than the image's (torchvision).
    Raises:
        ValueError: numbers of maps that do not agree.
    Source: Liu et al. 2015, 1512.02325, section 2.2; torchvision.models.detection.anchor_utils.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    ratio_counts: tuple[int, ...]
    strides: tuple[float, ...] = ()
    clip: bool = False

    def __post_init__(self) -> None:
        maps = len(self.ratio_counts)
        if len(self.scales) != maps + 1:
            raise ValueError(f"{len(self.scales)} box scales for {maps} maps; there must be one more than maps")
        if self.strides and len(self.strides) != maps:
            raise ValueError(f"{len(self.strides)} box strides for {maps} maps; give as many, or none")
        if any(not 0 <= count <= len(self.ratios) for count in self.ratio_counts):
            raise ValueError(f"ratio counts {self.ratio_counts} must lie in 0..{len(self.ratios)}, the ratios given")
        if min(self.scales) <= 0 or min(self.ratios, default=1.0) <= 0:
            raise ValueError(f"box scales {self.scales} and ratios {self.ratios} must be above 0")

    @property
    def num_boxes(self) -> tuple[int, ...]:
        """Default boxes a cell of each map."""
        return tuple(2 + 2 * count for count in self.ratio_counts)

    def sides(self, level: int) -> list[tuple[float, float]]:
        """Width and height of each box of a cell, fractions of the image."""
        scale, following = self.scales[level], self.scales[level + 1]
        between = math.sqrt(scale * following)
        sides = [(scale, scale), (between, between)]
        for ratio in self.ratios[: self.ratio_counts[level]]:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            sides += [(long, short), (short, long)]
        return [(min(w, 1.0), min(h, 1.0)) for w, h in sides] if self.clip else sides


@lru_cache(maxsize=64)
def tile_default_boxes(
    boxes: DefaultBoxes, shapes: tuple[Shape, ...], image_shape: Shape, device: torch.device
) -> Tensor:
    """All default boxes of all maps, cached; do not write into them.

    Args:
        shapes: height and width of each map.
        image_shape: height and width of the batch's images.
    Returns:
        (N, 4) float32 xyxy, pixels, some beyond the image's edges; ordered by map, row, column, box.
    Raises:
        ValueError: as many shapes as maps are needed.
    """
    if len(shapes) != len(boxes.ratio_counts):
        raise ValueError(f"{len(shapes)} maps, default boxes for {len(boxes.ratio_counts)}; they must be as many")
    size = torch.tensor([image_shape[1], image_shape[0]], dtype=torch.float64)
    # A tensor made under inference_mode could never be used in training again, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        levels = []
        for level, shape in enumerate(shapes):
            steps = size / torch.tensor([shape[1], shape[0]])
            if boxes.strides:
                steps = torch.full((2,), boxes.strides[level], dtype=torch.float64)
            half = torch.tensor(boxes.sides(level), dtype=torch.float64) * size / 2
            levels.append(tile(torch.cat([-half, half], 1), shape, steps))
        return torch.cat(levels).float().to(device)


def tile(cell: Tensor, shape: Shape, steps: Tensor) -> Tensor:
    """Boxes around the middle of every cell of a map.

    Args:
        cell: (A, 4) xyxy about the origin.
        shape: rows and columns.
        steps: (2,) width and height of a cell.
    Returns:
        (rows * columns * A, 4) xyxy.
    """
    y, x = torch.meshgrid(torch.arange(shape[0]) + 0.5, torch.arange(shape[1]) + 0.5, indexing="ij")
    centres = torch.stack([x, y], -1).to(steps.dtype).reshape(-1, 1, 2) * steps
    return (centres.repeat(1, 1, 2) + cell).reshape(-1, 4)
