"""Copy-paste: objects of another image are put, by their masks, over this one's.

Shape legend: N objects of an image, H x W pixels.
Source: Ghiasi et al. 2020, 2012.07177, section 3, without blending, which it found to make no difference.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detectors.structures import Target
from detectors.transforms_view import join, keep_visible, known_masks, mask_boxes, move, select


def choose_objects(target: Target, rng: np.random.Generator) -> Tensor:
    """Indices of the objects to paste, in their order: at random from one to all.

    Crowds, and objects whose mask is unknown, are never pasted.
    """
    able = (known_masks(target) & ~target.iscrowd).nonzero().squeeze(1)
    if len(able) == 0:
        return able
    chosen = rng.permutation(len(able))[: int(rng.integers(1, len(able) + 1))]
    return able[torch.from_numpy(np.sort(chosen))]


def paste_objects(
    image: Tensor,
    target: Target,
    other: Tensor,
    pasted: Target,
    *,
    place: tuple[float, float] = (0.0, 0.0),
    min_visible: float = 0.0,
    min_size: float = 0.0,
) -> tuple[Tensor, Target]:
    """Puts objects of another image over an image.

    What lies under them loses those pixels of its mask, and its box shrinks to the rest; an object of which nothing
    is left, or less than ``min_size``, is removed with its keypoints. Keypoints that get covered are hidden ones
    (visibility 1). Where an object's mask is unknown, its box stays until all of it is covered.

    Args:
        image: (3, H, W) uint8.
        target: its objects, with masks; boxes inside the image.
        other: (3, h, w) uint8 of any size.
        pasted: the objects to paste, with masks, in pixels of ``other``.
        place: where the other image lies, (x, y) in [0, 1]: 0 is left and top, 1 right and bottom, aligned.
        min_visible: a pasted object with less than this part of its box inside the image is left out.
        min_size: an object with a side shorter than this many pixels is removed or left out.
    Returns:
        The image, and its objects with the pasted ones behind them.
    Raises:
        ValueError: a target has no masks, or one alone has keypoints.
    """
    if target.masks is None or pasted.masks is None:
        raise ValueError("objects are pasted by their masks, and a target has none; give them, or set copy_paste=0")
    size = (image.shape[1], image.shape[2])
    left, top = int(place[0] * (size[1] - other.shape[2])), int(place[1] * (size[0] - other.shape[1]))
    pasted = keep_visible(
        _shift(pasted, left, top, size), height=size[0], width=size[1], min_visible=min_visible, min_size=min_size
    )
    # One whose pixels are all outside, though its box is not, would be a box around nothing.
    pasted = select(pasted, known_masks(pasted))
    assert pasted.masks is not None
    over = pasted.masks.any(0)
    image = torch.where(over, _laid(other, left, top, size), image)
    return image, join(_covered(target, over, min_size), pasted)


def _covered(target: Target, over: Tensor, min_size: float) -> Target:
    """What is left of the objects under the pixels of ``over``, (H, W) bool."""
    assert target.masks is not None
    known = known_masks(target)
    masks = target.masks & ~over
    touched = known & (masks != target.masks).flatten(1).any(1)
    # Sides that nothing covers keep their fractions of a pixel.
    rest = mask_boxes(masks)
    rest = torch.cat([target.boxes[:, :2].maximum(rest[:, :2]), target.boxes[:, 2:].minimum(rest[:, 2:])], 1)
    boxes = torch.where(touched[:, None], rest, target.boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = ~touched | (masks.flatten(1).any(1) & (sides > 0).all(1) & (sides >= min_size).all(1))
    for unknown in (~known).nonzero().flatten().tolist():
        x1, y1 = target.boxes[unknown, :2].floor().int().tolist()
        x2, y2 = target.boxes[unknown, 2:].ceil().int().tolist()
        keep[unknown] = not bool(over[y1:y2, x1:x2].all())
    return select(replace(target, boxes=boxes, masks=masks, keypoints=_hidden(target.keypoints, over)), keep)


def _hidden(keypoints: Tensor | None, over: Tensor) -> Tensor | None:
    """Visible keypoints under the pixels of ``over`` become hidden ones."""
    if keypoints is None:
        return None
    height, width = over.shape
    x, y = keypoints[..., 0].floor().long(), keypoints[..., 1].floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    under = over[y.clamp(0, height - 1), x.clamp(0, width - 1)] & inside
    visibility = keypoints[..., 2].where(~under, keypoints[..., 2].clamp(max=1))
    return torch.cat([keypoints[..., :2], visibility[..., None]], -1)


def _shift(target: Target, left: int, top: int, size: tuple[int, int]) -> Target:
    """Objects in the frame in which their image's corner is at ``left``, ``top``; masks are cut to ``size``."""
    assert target.masks is not None
    return replace(move(target, 1, 1, left, top), masks=_laid(target.masks, left, top, size))


def _laid(planes: Tensor, left: int, top: int, size: tuple[int, int]) -> Tensor:
    """(..., h, w) planes laid onto zeros of (..., *size) with their corner at ``left``, ``top``, and cut to that."""
    canvas = planes.new_zeros((*planes.shape[:-2], *size))
    part = planes[..., max(-top, 0) : size[0] - top, max(-left, 0) : size[1] - left]
    y, x = max(top, 0), max(left, 0)
    canvas[..., y : y + part.shape[-2], x : x + part.shape[-1]] = part
    return canvas
