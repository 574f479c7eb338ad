"""Masks as small crops: run lengths straight from them, and whole images where somebody wants those.

A crop holds probabilities inside its box. Pasting is bilinear: the crop, with a border of one zero, is stretched to the
box (as much larger), whose corners are cut to integers, both included. What is then more than the threshold is mask.

Shape legend: N masks of an image, M x M cells of a crop, H x W pixels of the image.
Source: He et al. 2017, 1703.06870, section 3.1; torchvision.models.detection.roi_heads.paste_masks_in_image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5
"""A pixel belongs to a mask whose probability there exceeds this."""


def mask_rles(
    crops: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = THRESHOLD
) -> list[NDArray[np.int64]]:
    """Run lengths of each pasted mask, without pasting it.

    Args:
        crops: (N, M, M) probabilities.
        boxes: (N, 4) xyxy, pixels of the image.
        size: height and width of the image.
        threshold: in 0..1 (1 excluded); a pixel is mask where the pasted probability exceeds it.
    Returns:
        For each mask COCO's uncompressed counts: lengths of runs of 0, 1, 0, ... down the columns, one column after
        the other; the first may be 0, they sum to H * W.
    Raises:
        ValueError: crops and boxes are not as many, or a threshold or size out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"the mask threshold is {threshold}; it must be in 0..1 (1 excluded)")
    rles = []
    # Run lengths are of this side of any device anyway, and crops are small.
    for x, y, stretched in _stretched(crops.detach().cpu(), boxes.detach().cpu(), size):
        rles.append(_runs(stretched.numpy() > threshold, x, y, size))
    return rles


def paste_masks(crops: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) probabilities, 0 outside the boxes; each crop is written where its box is and nowhere else.

    Args, Raises: as of ``mask_rles``.
    """
    dense = _zeros(crops, (len(crops), *size))
    for canvas, (x, y, stretched) in zip(dense, _stretched(crops, boxes, size)):
        height, width = stretched.shape
        canvas[y : y + height, x : x + width] = stretched
    return dense


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return like.new_zeros(shape)
    # Pages that the system hands out as zeros and that nothing is pasted into are never written, as torch's would be.
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


def _stretched(crops: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Left, top and (h, w) probabilities of each mask's part that is inside the image; h or w may be 0."""
    if crops.ndim != 3 or boxes.shape != (len(crops), 4) or min(size) < 1:
        raise ValueError(
            f"masks of shape {tuple(crops.shape)} and boxes of shape {tuple(boxes.shape)} in an image of {size}: need "
            "(N, M, M), (N, 4) and height and width of at least 1"
        )
    padded = F.pad(crops[:, None], (1, 1, 1, 1))
    for crop, (x1, y1, x2, y2) in zip(padded, _whole_boxes(boxes, crops.shape[-1]).tolist()):
        height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        stretched = F.interpolate(crop[None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        left, top = min(max(x1, 0), size[1]), min(max(y1, 0), size[0])
        right, bottom = max(min(x2 + 1, size[1]), left), max(min(y2 + 1, size[0]), top)
        inside = (left, top, right - left, bottom - top) == (x1, y1, width, height)
        yield left, top, stretched if inside else stretched[top - y1 : bottom - y1, left - x1 : right - x1]


def _whole_boxes(boxes: Tensor, cells: int) -> Tensor:
    """(N, 4) int64: boxes larger by a cell on each side, both corners included."""
    scale = (cells + 2) / cells
    # Operation for operation as torchvision: a corner that is rounded otherwise would move the whole mask.
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = half * scale
    return torch.cat([centre - half, centre + half], 1).to(torch.int64)


def _runs(mask: NDArray[np.bool_], x: int, y: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths of an image whose only pixels are those of (h, w) ``mask``, the top left one at ``x``, ``y``."""
    height, width = mask.shape
    total = size[0] * size[1]
    # Columns one after the other, with a 0 between them: what lies between two changes is a run.
    flat = np.zeros(1 + width * (height + 1), dtype=np.bool_)
    flat[1:].reshape(width, height + 1)[:, :height] = mask.T
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), height + 1)
    changes = (column + x) * size[0] + row + y
    if height == size[0] and len(changes):
        # A run that reaches the foot of a column goes on at the head of the next one.
        starts, ends = changes[0::2], changes[1::2]
        apart = starts[1:] != ends[:-1]
        starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
        changes = np.stack([starts, ends], 1).ravel()
    ends = np.append(changes, total)
    counts = ends.copy()
    counts[1:] -= ends[:-1]
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
