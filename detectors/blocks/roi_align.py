"""RoIAlign as a weighted sum of rows: on CPUs several times as fast as sampling channel by channel, but no gradient.

A bin is the mean of bilinear samples, so a weighted sum of four cells for each. With channels last a cell is one row of
a table, and all bins of all regions and levels are one ``embedding_bag`` over it.

Shape legend: R regions of all images, C channels, s x s bins, g x g samples a bin.
Source: He et al. 2017, 1703.06870, section 3; torchvision.ops.roi_align, whose rules at borders are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def can_gather(maps: list[Tensor]) -> bool:
    """Whether these maps are on a CPU, in float32, and nobody asks for their gradient."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in maps)
    return not wanted and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in maps)


def gather_align(
    maps: list[Tensor],
    rois: Tensor,
    level: Tensor,
    *,
    strides: tuple[int, ...],
    size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Pools each region from its level.

    Args:
        maps: (B, C, H / stride, W / stride), one for each of ``strides``.
        rois: (R, 5) number of the image, xyxy in pixels.
        level: (R,) index of the map.
        strides, size, samples, aligned: as of ``RoiPooler``; at least one sample.
    Returns:
        (R, C, size, size), channels last in memory.
    """
    table = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps])
    heights, widths = (torch.tensor([x.shape[axis] for x in maps]) for axis in (2, 3))
    rows_before = torch.tensor([0, *(x.shape[0] * x.shape[2] * x.shape[3] for x in maps[:-1])]).cumsum(0)
    height, width = heights[level, None], widths[level, None]
    first = rows_before[level] + rois[:, 0].long() * heights[level] * widths[level]
    boxes = rois[:, 1:] * (1 / torch.tensor(strides))[level, None] - (0.5 if aligned else 0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    bins = (sides if aligned else sides.clamp(min=1)) / size
    column, across = _cells(boxes[:, 0:1], bins[:, 0:1], width, size, samples)
    row, down = _cells(boxes[:, 1:2], bins[:, 1:2], height, size, samples)
    # (R, s, s, 2g, 2g): of each bin the cells that its samples lie between.
    index = (
        first.view(-1, 1, 1, 1, 1) + row[:, :, None, :, None] * width.view(-1, 1, 1, 1, 1) + column[:, None, :, None]
    )
    weight = down[:, :, None, :, None] * across[:, None, :, None] / samples**2
    pooled = F.embedding_bag(
        index.reshape(len(rois) * size**2, 4 * samples**2),
        table,
        mode="sum",
        per_sample_weights=weight.reshape(len(rois) * size**2, 4 * samples**2),
    )
    return pooled.view(len(rois), size, size, table.shape[1]).permute(0, 3, 1, 2)


def _cells(start: Tensor, step: Tensor, limit: Tensor, size: int, samples: int) -> tuple[Tensor, Tensor]:
    """(R, s, 2g) cells along one axis that each bin's samples lie between, and what share of a sample each has."""
    bins, within = torch.arange(size)[None, :, None], torch.arange(samples)[None, None]
    at = start[..., None] + bins * step[..., None] + (within + 0.5) * step[..., None] / samples
    limit = limit[..., None]
    outside = (at < -1) | (at > limit)
    at = torch.minimum(at.clamp(min=0), (limit - 1).to(at))
    low = at.long()
    high = torch.minimum(low + 1, limit - 1)
    upper = at - low
    shares = torch.stack([1 - upper, upper], -1).masked_fill(outside[..., None], 0)
    return torch.stack([low, high], -1).flatten(2), shares.flatten(2)
