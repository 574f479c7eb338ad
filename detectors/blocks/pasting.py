"""Masks pasted into their image: where a crop goes, and what its pixels are there.

A crop holds probabilities inside its box. Pasting is bilinear: the crop, with a border of one zero, is stretched to the
box (as much larger), whose corners are cut to integers, both included.

Shape legend: N masks of an image, M x M cells of a crop, H x W pixels of the image.
Source: He et al. 2017, 1703.06870, section 3.1; torchvision.models.detection.roi_heads.paste_masks_in_image.
"""

from __future__ import annotations

import math
import mmap
import sys
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def paste_masks(crops: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) probabilities, 0 outside the boxes; each crop is written where its box is and nowhere else.

    Args, Raises: as of ``mask_rles``.
    """
    dense = _zeros(crops, (len(crops), *size))
    for canvas, crop, place in zip(dense, padded(crops), places_of(crops, boxes, size)):
        canvas[place.top : place.bottom, place.left : place.right] = stretched(crop, place)
    return dense


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    size = 4 * math.prod(shape)
    if like.device.type != "cpu" or like.dtype != torch.float32 or not size:
        return like.new_zeros(shape)
    # Pages that the system hands out as zeros and that nothing is pasted into are never written, as torch's would be.
    # Small ones: of two megabytes at a time, which NumPy asks for, boxes would touch nearly all.
    if sys.platform != "linux":
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that has no others
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a crop goes: its corner and size, and the edges of what is inside the image, which may be nothing."""

    x: int
    y: int
    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def rows(self) -> slice:
        """Of the stretched crop, those inside the image."""
        return slice(self.top - self.y, self.bottom - self.y)

    @property
    def columns(self) -> slice:
        """As ``rows``."""
        return slice(self.left - self.x, self.right - self.x)


def padded(crops: Tensor) -> Tensor:
    """(N, M + 2, M + 2) with a border of zeros."""
    return F.pad(crops, (1, 1, 1, 1))


def places_of(crops: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Place]:
    """Where each crop with its border goes."""
    if crops.ndim != 3 or boxes.shape != (len(crops), 4) or min(size) < 1:
        raise ValueError(
            f"masks of shape {tuple(crops.shape)} and boxes of shape {tuple(boxes.shape)} in an image of {size}: need "
            "(N, M, M), (N, 4) and height and width of at least 1"
        )
    places = []
    for x1, y1, x2, y2 in _whole_boxes(boxes, crops.shape[-1]).tolist():
        left, top = min(max(x1, 0), size[1]), min(max(y1, 0), size[0])
        right, bottom = max(min(x2 + 1, size[1]), left), max(min(y2 + 1, size[0]), top)
        width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        places.append(Place(x=x1, y=y1, width=width, height=height, left=left, top=top, right=right, bottom=bottom))
    return places


def stretched(crop: Tensor, place: Place) -> Tensor:
    """(h, w) probabilities of what is inside the image."""
    whole = F.interpolate(crop[None, None], size=(place.height, place.width), mode="bilinear", align_corners=False)
    return whole[0, 0, place.rows, place.columns]


def _whole_boxes(boxes: Tensor, cells: int) -> Tensor:
    """(N, 4) int64: boxes larger by a cell on each side, both corners included."""
    scale = (cells + 2) / cells
    # Operation for operation as torchvision: a corner that is rounded otherwise would move the whole mask.
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = half * scale
    return torch.cat([centre - half, centre + half], 1).to(torch.int64)
