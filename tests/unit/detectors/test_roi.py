"""Regions: pooling against naive loops, sampling, and proposals by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detectors.blocks.heads import DenseOutputs
from detectors.blocks.matchers import BACKGROUND, IouMatcher
from detectors.blocks.roi import RoiPooler, RoiSampling, sample_rois
from detectors.blocks.rpn import ProposalSelection, RpnTraining, proposal_losses, select_proposals
from detectors.structures import Target


def a_target(*boxes: list[float], crowd: int = 0) -> Target:
    """The last ``crowd`` boxes are crowd regions."""
    iscrowd = torch.arange(len(boxes)) >= len(boxes) - crowd
    return Target(boxes=torch.tensor(boxes).view(-1, 4), labels=torch.zeros(len(boxes)).long(), iscrowd=iscrowd)


def naive_align(x: Tensor, box: list[float], size: int, stride: int, samples: int, shift: float) -> Tensor:
    """One region of (C, H, W), a loop over bins and samples."""
    x1, y1, x2, y2 = (v / stride - shift for v in box)
    width, height = x2 - x1, y2 - y1
    if shift == 0:
        width, height = max(width, 1.0), max(height, 1.0)
    out = torch.zeros(x.shape[0], size, size)
    for row in range(size):
        for column in range(size):
            for i in range(samples):
                for j in range(samples):
                    y = y1 + (row + (i + 0.5) / samples) * height / size
                    z = x1 + (column + (j + 0.5) / samples) * width / size
                    out[:, row, column] += bilinear(x, y, z) / samples**2
    return out


def bilinear(x: Tensor, y: float, z: float) -> Tensor:
    height, width = x.shape[1:]
    if y < -1 or y > height or z < -1 or z > width:
        return torch.zeros(x.shape[0])
    y, z = min(max(y, 0), height - 1), min(max(z, 0), width - 1)
    top, left = math.floor(y), math.floor(z)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, h = y - top, z - left
    upper = x[:, top, left] * (1 - h) + x[:, top, right] * h
    return upper * (1 - v) + (x[:, bottom, left] * (1 - h) + x[:, bottom, right] * h) * v


def naive_max(x: Tensor, box: list[float], size: int, stride: int) -> Tensor:
    # Halves are rounded away from zero, as C's round does.
    x1, y1, x2, y2 = (math.floor(v / stride + 0.5) for v in box)
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    out = torch.zeros(x.shape[0], size, size)
    for row in range(size):
        for column in range(size):
            top, bottom = y1 + math.floor(row * height / size), y1 + math.ceil((row + 1) * height / size)
            left, right = x1 + math.floor(column * width / size), x1 + math.ceil((column + 1) * width / size)
            cells = x[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)].flatten(1)
            if cells.shape[1]:
                out[:, row, column] = cells.amax(1)
    return out


BOXES = [[3.0, 5.0, 61.0, 40.0], [0.0, 0.0, 9.0, 7.0], [40.5, 30.2, 63.9, 63.9], [-9.0, 20.0, 30.0, 80.0]]


@pytest.mark.parametrize("aligned", [False, True])
def test_align_against_a_loop(aligned: bool) -> None:
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    pooled = RoiPooler(size=3, strides=(4,), aligned=aligned).pool([x], [torch.tensor(BOXES)])
    expected = torch.stack([naive_align(x[0], box, 3, 4, 2, 0.5 if aligned else 0.0) for box in BOXES])
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


def test_max_against_a_loop() -> None:
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    pooled = RoiPooler(kind="max", size=3, strides=(4,)).pool([x], [torch.tensor(BOXES)])
    assert torch.equal(pooled, torch.stack([naive_max(x[0], box, 3, 4) for box in BOXES]))


def test_level_of_a_region() -> None:
    sides = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 4000.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    # P2 below 112 px, P3 to 224, P4 to 448, P5 beyond.
    assert RoiPooler().levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_regions_come_out_in_the_order_of_images() -> None:
    maps = [torch.full((2, 1, 32 // s, 32 // s), float(s)) for s in (1, 2)]
    maps = [x + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1) for x in maps]
    small, large = [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 30.0, 30.0]
    pooler = RoiPooler(size=1, strides=(1, 2), canonical_size=8, canonical_stride=2)
    pooled = pooler.pool(maps, [torch.tensor([large, small]), torch.tensor([small, large, small])])
    assert pooled.flatten().tolist() == pytest.approx([2, 1, 101, 102, 101])


def test_sampled_regions() -> None:
    proposals = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 2.0], [50.0, 50.0, 60.0, 60.0]])
    (sampled,) = sample_rois([proposals], [a_target([0.0, 0.0, 10.0, 10.0])], RoiSampling(batch=4))
    assert sorted(sampled.matched_idxs.tolist()) == [BACKGROUND, BACKGROUND, 0]  # a quarter is positive at most

    hard = RoiSampling(batch=4, background_iou=0.1, positive_fraction=0.5)
    (sampled,) = sample_rois([proposals], [a_target([0.0, 0.0, 10.0, 10.0])], hard)
    assert sampled.boxes.tolist() == [*proposals[:2].tolist(), [0.0, 0.0, 10.0, 10.0]]
    assert sampled.matched_idxs.tolist() == [0, BACKGROUND, 0]


def test_crowds_and_boxes_without_area_are_no_regions() -> None:
    target = a_target([0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 9.0], [40.0, 40.0, 70.0, 70.0], crowd=1)
    (sampled,) = sample_rois(
        [torch.tensor([[50.0, 50.0, 60.0, 60.0], [20.0, 0.0, 30.0, 10.0]])], [target], RoiSampling()
    )
    assert sampled.boxes.tolist() == [[20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 10.0]]
    assert sampled.matched_idxs.tolist() == [BACKGROUND, 0]


def test_an_image_without_anything() -> None:
    (sampled,) = sample_rois([torch.zeros(0, 4)], [a_target()], RoiSampling())
    assert sampled.boxes.shape == (0, 4) and RoiPooler(size=2, strides=(4,)).pool(
        [torch.zeros(1, 5, 8, 8)], [sampled.boxes]
    ).shape == (0, 5, 2, 2)


def test_proposals_by_hand() -> None:
    """Two levels: NMS is within each; clipping and what has no area left; the best of all levels."""
    anchors = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [40.0, 0.0, 50.0, 10.0], [0.0, 0.0, 10.0, 10.5]]
    )
    outputs = DenseOutputs(
        logits=[torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[[3.0]]])],
        deltas=[torch.zeros(1, 3, 4), torch.zeros(1, 1, 4)],
        shapes=((1, 3), (1, 1)),
    )
    sizes = torch.tensor([[10, 32]])
    (found,) = select_proposals(outputs, anchors, sizes, ProposalSelection(topk=3, nms_iou=0.7, limit=9))
    assert found.tolist() == [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0]]
    (found,) = select_proposals(outputs, anchors, sizes, ProposalSelection(topk=3, nms_iou=0.9, limit=2))
    assert found.tolist() == [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0]]


def test_anchors_across_the_border_count_only_where_asked() -> None:
    anchors = torch.tensor([[-1.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [30.0, 0.0, 40.0, 10.0]])
    outputs = DenseOutputs(logits=[torch.zeros(1, 3, 1)], deltas=[torch.zeros(1, 3, 4)], shapes=((1, 3),))
    sizes, target = torch.tensor([[32, 32]]), [a_target([0.0, 0.0, 10.0, 12.0])]
    matcher = IouMatcher(high=0.7, low=0.3)
    both = [
        proposal_losses(outputs, anchors, sizes, target, RpnTraining(matcher=matcher, inside_only=inside))
        for inside in (False, True)
    ]
    assert [float(objectness) for objectness, _ in both] == pytest.approx([math.log(2)] * 2)
    # Smooth L1 of the second anchor alone: (dy, dh) = (0.1, log 1.2), knee at 1/9.
    of_second = 0.5 * 9 * 0.1**2 + (math.log(1.2) - 0.5 / 9)
    assert float(both[1][1]) == pytest.approx(of_second, rel=1e-5)
    assert float(both[0][1]) > of_second * 1 / 3
