"""Masks as small crops: run lengths straight from them, and whole images where somebody wants those.

A crop holds probabilities inside its box. Pasting is bilinear: the crop, with a border of one zero, is stretched to the
box (as much larger), whose corners are cut to integers, both included. What is then more than the threshold is mask.

Shape legend: N masks of an image, M x M cells of a crop, H x W pixels of the image.
Source: He et al. 2017, 1703.06870, section 3.1; torchvision.models.detection.roi_heads.paste_masks_in_image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5
"""A pixel belongs to a mask whose probability there exceeds this."""

_BORDER = ((0, 0), (1, 1), (1, 1))
_ROUNDING = 5e-7  # more than two sums of the same four products in another order can differ by


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
    # Run lengths are of this side of any device anyway, and crops are small: starting threads takes longer than they.
    crops, boxes = crops.detach().cpu(), boxes.detach().cpu()
    places = _places(crops, boxes, size)
    padded = torch.from_numpy(np.pad(crops.numpy(), _BORDER)) if crops.dtype == torch.float32 else _padded(crops)
    return [
        _runs(_columns_above(crop, place, threshold), place.left, place.top, size)
        for crop, place in zip(padded, places)
    ]


def paste_masks(crops: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) probabilities, 0 outside the boxes; each crop is written where its box is and nowhere else.

    Args, Raises: as of ``mask_rles``.
    """
    dense = _zeros(crops, (len(crops), *size))
    for canvas, crop, place in zip(dense, _padded(crops), _places(crops, boxes, size)):
        canvas[place.top : place.bottom, place.left : place.right] = _stretched(crop, place)
    return dense


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return like.new_zeros(shape)
    # Pages that the system hands out as zeros and that nothing is pasted into are never written, as torch's would be.
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a crop goes: its corner and size, and the edges of what is inside the image, which may be nothing."""

    x: int
    y: int
    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int


def _padded(crops: Tensor) -> Tensor:
    """(N, M + 2, M + 2) with a border of zeros."""
    return F.pad(crops, (1, 1, 1, 1))


def _places(crops: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[_Place]:
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
        places.append(_Place(x=x1, y=y1, width=width, height=height, left=left, top=top, right=right, bottom=bottom))
    return places


def _stretched(crop: Tensor, place: _Place) -> Tensor:
    """(h, w) probabilities of what is inside the image."""
    whole = F.interpolate(crop[None, None], size=(place.height, place.width), mode="bilinear", align_corners=False)
    rows, columns = _inside(place)
    return whole[0, 0, rows, columns]


def _columns_above(crop: Tensor, place: _Place, threshold: float) -> NDArray[np.bool_]:
    """(w, h) which pixels inside the image exceed the threshold, bit for bit as ``_stretched`` has them.

    First down, then across, and columns come out as they are wanted: several times as fast, without threads that would
    wait for each other. It rounds otherwise: where that could decide, which is one mask in some twenty, the mask is
    interpolated.
    """
    if crop.dtype == torch.float32:
        rows, columns = _inside(place)
        high = _between(crop.numpy(), _neighbours(crop.shape[0], place.height), rows)
        pixels = _between(np.ascontiguousarray(high.T), _neighbours(crop.shape[1], place.width), columns)
        above: NDArray[np.bool_] = pixels > np.float32(threshold + _ROUNDING)
        if np.array_equal(above, pixels > np.float32(threshold - _ROUNDING)):
            return above
    exact: NDArray[np.bool_] = np.greater(_stretched(crop, place).numpy().T, threshold)
    return exact


def _inside(place: _Place) -> tuple[slice, slice]:
    """Rows and columns of the stretched crop that are inside the image."""
    return (
        slice(place.top - place.y, place.bottom - place.y),
        slice(place.left - place.x, place.right - place.x),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Neighbours:
    """Between which two cells each of P pixels lies, (P,) int64, and what each of them gives, (P, 1) float32."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    of_first: NDArray[np.float32]
    of_second: NDArray[np.float32]


@lru_cache(maxsize=1024)
def _neighbours(cells: int, pixels: int) -> _Neighbours:
    """As interpolation has them, from itself."""
    stretched = F.interpolate(torch.eye(cells)[None], size=pixels, mode="linear", align_corners=False)
    weights = stretched[0].T.contiguous().numpy()
    first = (weights != 0).argmax(1)
    second = np.minimum(first + 1, cells - 1)
    of_first, of_second = (np.take_along_axis(weights, at[:, None], 1) for at in (first, second))
    of_second[second == first] = 0
    return _Neighbours(first=first, second=second, of_first=of_first, of_second=of_second)


def _between(cells: NDArray[np.float32], at: _Neighbours, some: slice) -> NDArray[np.float32]:
    """(M, N) cells to (P, N) pixels, only some of the P."""
    pixels = cells[at.first[some]]
    pixels *= at.of_first[some]
    other = cells[at.second[some]]
    other *= at.of_second[some]
    pixels += other
    return pixels


def _whole_boxes(boxes: Tensor, cells: int) -> Tensor:
    """(N, 4) int64: boxes larger by a cell on each side, both corners included."""
    scale = (cells + 2) / cells
    # Operation for operation as torchvision: a corner that is rounded otherwise would move the whole mask.
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = half * scale
    return torch.cat([centre - half, centre + half], 1).to(torch.int64)


def _runs(columns: NDArray[np.bool_], x: int, y: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths of an image whose only pixels are those of (w, h) ``columns``, the top left one at ``x``, ``y``."""
    width, height = columns.shape
    total = size[0] * size[1]
    # Columns one after the other, with a 0 between them: what lies between two changes is a run.
    flat = np.zeros(1 + width * (height + 1), dtype=np.bool_)
    flat[1:].reshape(width, height + 1)[:, :height] = columns
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
