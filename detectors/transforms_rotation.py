"""Turning an image by a few degrees, with its objects.

Shape legend: N objects of an image, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from detectors.structures import Target
from detectors.transforms_view import known_masks, row_ends


def rotate(image: Tensor, target: Target, degrees: float, *, fill: tuple[int, int, int]) -> tuple[Tensor, Target]:
    """Turns an image about its middle; the result has its size.

    An object with a mask gets the box of its turned mask, also of what is then outside the image. Without one, the
    box is that around the four turned corners of the old box, which is larger than the object: by a quarter of its
    area for a disc at 10 degrees, so few degrees are best there.

    Args:
        image: (3, H, W) uint8.
        target: in pixels of ``image``.
        degrees: clockwise.
        fill: colour of what lies outside the image.
    Returns:
        The image and its objects, which may lie partly or wholly outside (see ``keep_visible``).
    """
    height, width = image.shape[1:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each pixel of the result comes from: the turn back, in units of half the image's sides.
    back = torch.tensor([[[cos, sin * height / width, 0.0], [-sin * width / height, cos, 0.0]]])
    grid = affine_grid(back, [1, 3, height, width], align_corners=False)
    middle = torch.tensor([width, height], dtype=target.boxes.dtype) / 2
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=target.boxes.dtype)  # of row vectors x, y

    boxes = _turned_boxes(target.boxes, middle, turn)
    masks = target.masks
    if masks is not None:
        known = known_masks(target) & masks.flatten(1).any(1)
        boxes = torch.where(known[:, None], _turned_mask_boxes(masks, middle, turn), boxes)
        masks = _turned_masks(masks, grid[0])
    keypoints = target.keypoints
    if keypoints is not None:
        keypoints = torch.cat([(keypoints[..., :2] - middle) @ turn + middle, keypoints[..., 2:]], dim=-1)
    target = replace(target, boxes=boxes, masks=masks, keypoints=keypoints)
    return _turned_pixels(image, grid, fill), target


def _turned_pixels(image: Tensor, grid: Tensor, fill: tuple[int, int, int]) -> Tensor:
    # Outside are zeros, so what is inside is moved to lie about the fill.
    colour = torch.tensor(fill, dtype=torch.float32)[:, None, None]
    turned = grid_sample((image - colour)[None], grid, align_corners=False)[0]
    return (turned + colour).round_().clamp_(0, 255).to(torch.uint8)


def _turned_masks(masks: Tensor, grid: Tensor) -> Tensor:
    """Each pixel takes what is at the nearest one it comes from."""
    height, width = masks.shape[1:]
    x = ((grid[..., 0] + 1) * (width / 2)).floor().long()
    y = ((grid[..., 1] + 1) * (height / 2)).floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = (y * width + x).where(inside, 0).flatten()
    return masks.flatten(1)[:, place].unflatten(1, (height, width)) & inside


def _turned_boxes(boxes: Tensor, middle: Tensor, turn: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    corners = torch.stack([x1, y1, x2, y1, x1, y2, x2, y2], 1).unflatten(1, (4, 2))
    return _around(corners, torch.ones_like(corners[..., 0], dtype=torch.bool), middle, turn)


def _turned_mask_boxes(masks: Tensor, middle: Tensor, turn: Tensor) -> Tensor:
    """Boxes of turned masks: of all their points, only ends of rows can be outermost."""
    filled, left, right = row_ends(masks)
    top = torch.arange(masks.shape[1]).expand_as(left)
    ends = [torch.stack([x, y], -1) for x in (left, right) for y in (top, top + 1)]
    return _around(torch.cat(ends, 1).to(turn.dtype), filled.repeat(1, 4), middle, turn)


def _around(points: Tensor, counted: Tensor, middle: Tensor, turn: Tensor) -> Tensor:
    """(N, 4) xyxy around those of (N, P, 2) points that count, (N, P), after the turn."""
    turned = (points - middle) @ turn + middle
    low = turned.masked_fill(~counted[..., None], math.inf).amin(1)
    high = turned.masked_fill(~counted[..., None], -math.inf).amax(1)
    return torch.cat([low, high], 1)
