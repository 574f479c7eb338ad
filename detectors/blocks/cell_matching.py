"""YOLO's matching: the cell that holds an object's centre answers for it.

Shape legend: M objects of an image, L maps, A anchors a cell, N = sum of rows x columns x A over the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors.blocks.codecs import MAX_LOG_SCALE
from detectors.blocks.matchers import BACKGROUND, IGNORED, intersection_over_anchor

Shape = tuple[int, int]
CROWDED = 0.5
"""What lies inside crowd regions with at least this share of its area is ignored instead of background."""


def match_cells(boxes: Tensor, iscrowd: Tensor, *, grid: int, size: Shape) -> Tensor:
    """YOLO v1: each cell of a grid over the image answers for at most one object, whose centre lies in it.

    Of several objects in a cell the largest is taken (the paper leaves it open); of equal ones the first.

    Args:
        boxes: (M, 4) xyxy; boxes without area match nothing.
        iscrowd: (M,) bool; crowd regions are no objects, and cells inside them no background.
        grid: cells a side.
        size: height and width of the image.
    Returns:
        matched_idxs: (grid * grid,) int64 by row and column: index of the object, BACKGROUND, or IGNORED.
    Source: Redmon et al. 2015, 1506.02640, section 2.
    """
    cell = boxes.new_tensor([size[1] / grid, size[0] / grid])
    column, row = _cells(boxes, cell, (grid, grid))
    matched = _largest_of_each(row * grid + column, boxes, iscrowd, grid * grid)
    if bool(iscrowd.any()):
        row, column = torch.meshgrid(*(torch.arange(grid, device=boxes.device) for _ in range(2)), indexing="ij")
        corner = torch.stack([column, row], -1).reshape(-1, 2) * cell
        matched = _spare_crowds(matched, boxes[iscrowd], torch.cat([corner, corner + cell], 1))
    return matched


def match_priors(
    boxes: Tensor,
    iscrowd: Tensor,
    *,
    sizes: Tensor,
    strides: Sequence[int],
    shapes: Sequence[Shape],
    candidates: Tensor,
    ignore_iou: float,
) -> Tensor:
    """YOLO v3: the anchor whose size fits an object best answers for it, in the cell that holds its centre.

    Size fits by the IoU of two boxes with one centre, over the anchors of all maps; so every object has one anchor,
    unless two have the same anchor in the same cell: then the larger one keeps it (of equal ones the first).

    Args:
        boxes: (M, 4) xyxy; boxes without area match nothing.
        iscrowd: (M,) bool; crowd regions are no objects, and candidates inside them no background.
        sizes: (L, A, 2) width and height of the anchors of each map, pixels.
        strides: of the L maps, pixels.
        shapes: rows and columns of the L maps.
        candidates: (N, 4) xyxy: what each place would find: the anchors themselves as the paper has it, or the
            predicted boxes as darknet has it.
        ignore_iou: a candidate that answers for no object but overlaps one by more is ignored.
    Returns:
        matched_idxs: (N,) int64 by map, row, column and anchor: index of the object, BACKGROUND, or IGNORED.
    Source: Redmon & Farhadi 2018, 1804.02767, section 2.1.
    """
    per_cell = sizes.shape[1]
    box_sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    best = size_iou(box_sizes, sizes.flatten(0, 1)).argmax(1) if len(boxes) else iscrowd.long()
    slot, first = torch.zeros_like(best), 0
    for level, (stride, shape) in enumerate(zip(strides, shapes, strict=True)):
        column, row = _cells(boxes, boxes.new_tensor([stride, stride]), shape)
        of_level = first + (row * shape[1] + column) * per_cell + best % per_cell
        slot = torch.where(best // per_cell == level, of_level, slot)
        first += shape[0] * shape[1] * per_cell
    matched = _largest_of_each(slot, boxes, iscrowd, first)
    objects = boxes[~iscrowd]
    if len(objects):
        overlaps = (box_iou(candidates, objects).nan_to_num_(0.0) > ignore_iou).any(1)
        matched[overlaps & (matched == BACKGROUND)] = IGNORED
    if len(objects) < len(boxes):
        matched = _spare_crowds(matched, boxes[iscrowd], candidates)
    return matched


def size_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """(M, A) IoU of (M, 2) and (A, 2) widths and heights, laid on one centre."""
    inside = torch.minimum(sizes[:, None], anchors[None]).prod(-1)
    return inside / (sizes.prod(-1)[:, None] + anchors.prod(-1)[None] - inside).clamp(min=1e-9)


@lru_cache(maxsize=64)
def cell_priors(
    sizes: tuple[tuple[tuple[float, float], ...], ...],
    strides: tuple[int, ...],
    shapes: tuple[Shape, ...],
    device: torch.device,
) -> Tensor:
    """All anchors of all maps, cached; do not write into them.

    Args:
        sizes: for each map the width and height of its anchors, pixels.
        strides, shapes: of the maps.
    Returns:
        (N, 5) float32: middle of the cell x, y, its side, width and height of the anchor, pixels; ordered by map, row,
        column, anchor.
    """
    # A tensor made under inference_mode could never be used in training again, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        levels = []
        for of_cell, stride, (rows, columns) in zip(sizes, strides, shapes, strict=True):
            y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
            middle = torch.stack([x, y], -1).reshape(-1, 1, 2) * stride
            anchors = torch.tensor(of_cell)[None].expand(len(middle), -1, 2)
            side = torch.full((len(middle), len(of_cell), 1), float(stride))
            levels.append(torch.cat([middle.expand_as(anchors), side, anchors], -1).flatten(0, 1))
        return torch.cat(levels).to(device)


def prior_boxes(priors: Tensor) -> Tensor:
    """(N, 5) priors to (N, 4) xyxy: anchors in the middle of their cells."""
    return torch.cat([priors[:, :2] - priors[:, 3:] / 2, priors[:, :2] + priors[:, 3:] / 2], 1)


def encode_cells(boxes: Tensor, priors: Tensor) -> Tensor:
    """What a network should say: place in the cell in 0..1 for sigmoid(tx), sigmoid(ty), and tw, th.

    Args:
        boxes: (P, 4) xyxy with positive width and height, whose centres lie in the cells.
        priors: (P, 5) of ``cell_priors``.
    Source: Redmon & Farhadi 2018, 1804.02767, figure 2.
    """
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    place = (centre - priors[:, :2]) / priors[:, 2:3] + 0.5
    return torch.cat([place.clamp(0, 1), torch.log(size / priors[:, 3:])], 1)


def decode_cells(deltas: Tensor, priors: Tensor) -> Tensor:
    """(..., N, 4) tx, ty, tw, th and (N, 5) priors to (..., N, 4) xyxy boxes, pixels."""
    centre = priors[..., :2] + (deltas[..., :2].sigmoid() - 0.5) * priors[..., 2:3]
    half = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * priors[..., 3:] * 0.5
    return torch.cat([centre - half, centre + half], -1)


def _cells(boxes: Tensor, cell: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """(M,) column and row of the cell that holds each centre; a centre on the far border is in the last cell."""
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / cell).floor().long().unbind(1)
    return column.clamp(0, shape[1] - 1), row.clamp(0, shape[0] - 1)


def _largest_of_each(slots: Tensor, boxes: Tensor, iscrowd: Tensor, num_slots: int) -> Tensor:
    """(num_slots,) the largest object of each slot, or BACKGROUND."""
    sides = boxes[:, 2:] - boxes[:, :2]
    objects = ((sides > 0).all(1) & ~iscrowd).nonzero().squeeze(1)
    by_area = objects[sides[objects].prod(1).argsort(descending=True, stable=True)]
    # The larger the earlier: of all that want a slot, the smallest place in this order gets it.
    place = torch.arange(len(by_area), device=boxes.device)
    taken = torch.full((num_slots,), len(by_area), dtype=torch.int64, device=boxes.device)
    taken.scatter_reduce_(0, slots[by_area], place, "amin")
    return torch.cat([by_area, by_area.new_tensor([BACKGROUND])])[taken]


def _spare_crowds(matched: Tensor, crowds: Tensor, candidates: Tensor) -> Tensor:
    covered = intersection_over_anchor(crowds, candidates).amax(0) >= CROWDED
    return torch.where(covered & (matched == BACKGROUND), IGNORED, matched)
