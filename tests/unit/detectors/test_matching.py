"""Anchors, matcher and codec by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detectors.blocks.anchors import AnchorGrid, grid_anchors
from detectors.blocks.codecs import MAX_LOG_SCALE, decode_boxes, encode_boxes
from detectors.blocks.matchers import BACKGROUND, IGNORED, IouMatcher

CPU = torch.device("cpu")
OBJECTS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
ANCHORS = torch.tensor(
    [
        [0.0, 0, 10, 10],  # IoU 1 with object 0
        [0, 0, 10, 5],  # IoU 0.5 with object 0
        [0, 0, 10, 4.5],  # 0.45
        [0, 0, 10, 4],  # 0.4
        [0, 0, 10, 3.9],  # 0.39
        [22, 0, 32, 10],  # 8 of 12 columns of object 1: 2/3
        [50, 50, 60, 60],  # 0
    ]
)


def match(
    boxes: Tensor = OBJECTS, crowds: tuple[int, ...] = (), anchors: Tensor = ANCHORS, low_quality: bool = False
) -> list[int]:
    iscrowd = torch.tensor([i in crowds for i in range(len(boxes))], dtype=torch.bool)
    return IouMatcher(low_quality=low_quality).match(boxes, iscrowd, anchors).tolist()


def test_limits_belong_to_the_better_side() -> None:
    assert match() == [0, 0, IGNORED, IGNORED, BACKGROUND, 1, BACKGROUND]


def test_best_anchor_of_an_object_is_kept_on_request() -> None:
    poor = torch.tensor([[0.0, 0, 10, 3], [0, 0, 10, 2], [50, 50, 60, 60]])  # 0.3, 0.2, 0
    assert match(anchors=poor) == [BACKGROUND] * 3
    # Object 1 is met by no anchor at all: its best IoU is 0, which matches nothing rather than everything.
    assert match(anchors=poor, low_quality=True) == [0, BACKGROUND, BACKGROUND]


def test_a_better_object_keeps_its_anchor_from_a_poorer_ones_best_match() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4]])
    # The only anchor is the best of both; it answers for the one it overlaps more.
    assert match(boxes, anchors=torch.tensor([[0.0, 0, 10, 9]]), low_quality=True) == [0]


def test_anchors_in_crowds_are_ignored_never_background() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [21, 1, 24, 4], [28, 0, 33, 5], [26, 0, 36, 5], [50, 50, 60, 60]])
    # Object 1 is a crowd region. Inside it: all; 2 of 5 columns; 4 of 10 columns; nothing.
    assert match(crowds=(1,), anchors=anchors) == [0, IGNORED, IGNORED, IGNORED, BACKGROUND]
    assert match(crowds=(0, 1), anchors=anchors)[:2] == [IGNORED, IGNORED]


def test_an_object_inside_a_crowd_region_is_still_learnt() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 10, 10]])
    assert match(boxes, crowds=(0,))[:2] == [1, 1]


@pytest.mark.parametrize("low_quality", [False, True])
def test_empty_and_degenerate_targets(low_quality: bool) -> None:
    assert match(torch.zeros(0, 4), low_quality=low_quality) == [BACKGROUND] * len(ANCHORS)
    flat = torch.tensor([[5.0, 5, 5, 9], [3, 3, 3, 3]])
    assert match(flat, low_quality=low_quality) == [BACKGROUND] * len(ANCHORS)


def test_matching_limits_are_checked() -> None:
    with pytest.raises(ValueError, match=r"low=0\.6, high=0\.5"):
        IouMatcher(low=0.6, high=0.5)


def test_codec_by_hand() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 20], [10, 10, 20, 20]])
    boxes = torch.tensor([[5.0, 10, 15, 30], [10, 5, 30, 25]])
    deltas = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, math.log(2), math.log(2)]])
    torch.testing.assert_close(encode_boxes(boxes, anchors), deltas)
    torch.testing.assert_close(decode_boxes(deltas, anchors), boxes)


def test_growth_is_limited_before_exp_overflows() -> None:
    box = decode_boxes(torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, 16, 16]]))
    assert float(box[0, 2] - box[0, 0]) == pytest.approx(16 * math.exp(MAX_LOG_SCALE)) == pytest.approx(1000)


def test_anchors_are_the_papers() -> None:
    shapes = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
    anchors = grid_anchors(AnchorGrid(), shapes, (64, 64), CPU)
    assert anchors.shape == (9 * (64 + 16 + 4 + 1 + 1), 4)
    size = anchors[:, 2:] - anchors[:, :2]
    areas = size.prod(1).sqrt()
    for level, first in enumerate((0, 576, 720, 756, 765)):
        expected = [32 * 2**level * 2 ** (i / 3) for i in range(3)] * 3
        torch.testing.assert_close(areas[first : first + 9], torch.tensor(expected))
        ratios = size[first : first + 9, 1] / size[first : first + 9, 0]
        torch.testing.assert_close(ratios, torch.tensor([0.5] * 3 + [1.0] * 3 + [2.0] * 3))
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2
    # Position (row 1, column 2) of the first level: x = 16, y = 8.
    torch.testing.assert_close(centres[(8 + 2) * 9], torch.tensor([16.0, 8.0]))


def test_offset_moves_centres_by_parts_of_a_stride() -> None:
    shapes = ((1, 1),) * 5
    shift = grid_anchors(AnchorGrid(offset=0.5), shapes, (8, 8), CPU) - grid_anchors(AnchorGrid(), shapes, (8, 8), CPU)
    torch.testing.assert_close(shift[::9, 0], torch.tensor([4.0, 8, 16, 32, 64]))


def test_anchors_are_cached_and_fit_for_training_after_inference() -> None:
    shapes = ((3, 5), (2, 3), (1, 2), (1, 1), (1, 1))
    with torch.inference_mode():
        first = grid_anchors(AnchorGrid(), shapes, (24, 40), CPU)
    again = grid_anchors(AnchorGrid(), shapes, (24, 40), CPU)
    assert again is first
    weight = torch.ones(1, requires_grad=True)
    (again * weight).sum().backward()  # an inference tensor would refuse to be kept for backward
    assert weight.grad is not None


def test_maps_and_strides_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 maps for 5 anchor strides"):
        grid_anchors(AnchorGrid(), ((1, 1), (1, 1)), (8, 8), CPU)
