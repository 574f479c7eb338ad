"""Which objects of an image are left, and their fields in step: the one filter behind all transforms.

Shape legend: N objects of an image, K keypoints, H x W pixels.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from detectors.structures import Target


def select(target: Target, keep: Tensor) -> Target:
    """The objects that ``keep``, (N,) bool or indices, names; every field alike."""
    kept: dict[str, Any] = {
        field.name: values[keep] for field in fields(Target) if (values := getattr(target, field.name)) is not None
    }
    return replace(target, **kept)


def move(target: Target, scale_x: float, scale_y: float, shift_x: float, shift_y: float) -> Target:
    """Boxes and keypoints scaled and then shifted; masks stay as they are."""
    scale = torch.tensor([scale_x, scale_y], dtype=target.boxes.dtype)
    shift = torch.tensor([shift_x, shift_y], dtype=target.boxes.dtype)
    boxes = target.boxes * scale.repeat(2) + shift.repeat(2)
    keypoints = target.keypoints
    if keypoints is not None:
        keypoints = torch.cat([keypoints[..., :2] * scale + shift, keypoints[..., 2:]], dim=-1)
    return replace(target, boxes=boxes, keypoints=keypoints)


def join(first: Target, second: Target) -> Target:
    """The objects of both, in this order, in one frame.

    Raises:
        ValueError: one has masks or keypoints and the other has not.
    """
    for name in ("masks", "keypoints"):
        if (getattr(first, name) is None) != (getattr(second, name) is None):
            raise ValueError(f"of two targets that are to be one, one alone has {name}; give both or neither")
    if (first.mask_valid is None) != (second.mask_valid is None):
        first, second = (replace(t, mask_valid=known_masks(t)) for t in (first, second))
    joined: dict[str, Any] = {
        field.name: torch.cat([values, getattr(second, field.name)])
        for field in fields(Target)
        if (values := getattr(first, field.name)) is not None
    }
    return Target(**joined)


def keep_visible(target: Target, *, height: int, width: int, min_visible: float, min_size: float) -> Target:
    """Clips boxes to the image and removes what is no longer seen, with its mask, keypoints and flags.

    Keypoints outside the image become unlabelled. A mask without a pixel left, where its box has some, becomes
    unknown: a thin one is lost in being made smaller, and must not teach that there is nothing.
    """
    limits = torch.tensor([width, height, width, height], dtype=target.boxes.dtype)
    clipped = torch.minimum(target.boxes.clamp(min=0), limits)
    sides = (clipped[:, 2:] - clipped[:, :2]).clamp(min=0)
    whole = (target.boxes[:, 2:] - target.boxes[:, :2]).clamp(min=0).prod(dim=1)
    visible = sides.prod(dim=1) >= min_visible * whole
    # A crowd region is no object: whatever part of it is left must still not count as background.
    keep = (sides >= min_size).all(dim=1) & (visible | target.iscrowd)
    keypoints = target.keypoints
    if keypoints is not None:
        x, y = keypoints[..., 0], keypoints[..., 1]
        seen = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (keypoints[..., 2] > 0)
        keypoints = torch.where(seen[..., None], keypoints, torch.zeros_like(keypoints))
    kept = select(replace(target, boxes=clipped, keypoints=keypoints), keep)
    if kept.masks is None or bool((filled := kept.masks.flatten(1).any(1)).all()):
        return kept
    return replace(kept, mask_valid=known_masks(kept) & filled)


def known_masks(target: Target) -> Tensor:
    """(N,) bool: objects whose mask is known; none where there are no masks."""
    if target.mask_valid is not None:
        return target.mask_valid
    return torch.full((len(target),), target.masks is not None, device=target.boxes.device)


def mask_boxes(masks: Tensor) -> Tensor:
    """(N, 4) float32 xyxy around the pixels of (N, H, W) masks; an empty mask has four zeros."""
    rows, columns = masks.any(2), masks.any(1)
    sides = [_first(columns), _first(rows), _last(columns), _last(rows)]
    return torch.stack(sides, 1).float() * rows.any(1, keepdim=True)


def _first(flags: Tensor) -> Tensor:
    """Place of the first of (..., L) flags that is set, 0 where none is."""
    return flags.byte().argmax(-1)


def _last(flags: Tensor) -> Tensor:
    """Place behind the last of (..., L) flags that is set, L where none is."""
    return flags.shape[-1] - _first(flags.flip(-1))


def row_ends(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row of (N, H, W) masks: whether it has pixels, left of the first, right of the last; (N, H) each."""
    return masks.any(2), _first(masks), _last(masks)
