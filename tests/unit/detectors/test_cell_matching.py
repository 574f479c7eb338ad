"""YOLO's matching by hand and against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors.blocks.cell_matching import (
    cell_priors,
    decode_cells,
    encode_cells,
    match_cells,
    match_priors,
    prior_boxes,
    size_iou,
)
from detectors.blocks.matchers import BACKGROUND, IGNORED

CPU = torch.device("cpu")
STRIDES = (8, 16, 32)
SIZES = (((4.0, 4.0), (8.0, 4.0)), ((16.0, 16.0), (10.0, 30.0)), ((32.0, 32.0), (60.0, 40.0)))
SHAPES = ((8, 12), (4, 6), (2, 3))  # of a 64 x 96 image


def no_crowds(boxes: Tensor) -> Tensor:
    return torch.zeros(len(boxes), dtype=torch.bool)


def test_the_cell_of_the_centre_answers() -> None:
    boxes = torch.tensor(
        [
            [12.0, 3, 28, 17],  # centre (20, 10): column 2, row 1
            [40, 40, 60, 70],  # centre (50, 55): column 5, row 5
            [21, 11, 25, 15],  # in the first one's cell, and smaller
            [60, 60, 80, 80],  # centre on the far corner
            [30, 5, 30, 15],  # no area
        ]
    )
    matched = match_cells(boxes, no_crowds(boxes), grid=7, size=(70, 70))
    expected = torch.full((49,), BACKGROUND)
    expected[[1 * 7 + 2, 5 * 7 + 5, 6 * 7 + 6]] = torch.tensor([0, 1, 3])
    assert torch.equal(matched, expected)


def test_cells_of_an_image_that_is_no_square() -> None:
    boxes = torch.tensor([[50.0, 10, 70, 18]])  # centre (60, 14); cells are 20 wide and 10 high
    matched = match_cells(boxes, no_crowds(boxes), grid=4, size=(40, 80))
    assert (matched >= 0).nonzero().flatten().tolist() == [1 * 4 + 3]


def test_of_equal_objects_the_first_and_no_objects_at_all() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    assert match_cells(boxes, no_crowds(boxes), grid=2, size=(20, 20)).tolist() == [0, -1, -1, -1]
    assert match_cells(boxes[:0], no_crowds(boxes[:0]), grid=2, size=(20, 20)).tolist() == [BACKGROUND] * 4


def test_crowds_are_neither_objects_nor_background() -> None:
    boxes = torch.tensor([[0.0, 0, 21, 10], [2, 2, 8, 8]])
    matched = match_cells(boxes, torch.tensor([True, False]), grid=7, size=(70, 70))
    # The object in the crowd is still one; a cell of which a tenth is covered is background.
    assert matched[:4].tolist() == [1, IGNORED, BACKGROUND, BACKGROUND] and bool((matched[4:] == BACKGROUND).all())


def priors() -> Tensor:
    return cell_priors(SIZES, STRIDES, SHAPES, CPU)


def match(boxes: Tensor, iscrowd: Tensor, candidates: Tensor, ignore_iou: float = 0.5) -> Tensor:
    return match_priors(
        boxes,
        iscrowd,
        sizes=torch.tensor(SIZES),
        strides=STRIDES,
        shapes=SHAPES,
        candidates=candidates,
        ignore_iou=ignore_iou,
    )


def test_the_anchor_of_the_best_size_answers_in_its_cell() -> None:
    boxes = torch.tensor([[8.0, 8, 24, 24], [4, 1, 12, 5], [30, 20, 90, 60]])
    matched = match(boxes, no_crowds(boxes), torch.zeros(len(priors()), 4))
    of_second_map, of_third_map = 8 * 12 * 2, 8 * 12 * 2 + 4 * 6 * 2
    # 16 x 16, centre (16, 16): stride 16, column 1, row 1, first anchor. 8 x 4, centre (8, 3): stride 8, column 1,
    # row 0, second anchor. 60 x 40, centre (60, 40): stride 32, column 1, row 1, second anchor.
    slots = [of_second_map + (1 * 6 + 1) * 2, (0 * 12 + 1) * 2 + 1, of_third_map + (1 * 3 + 1) * 2 + 1]
    assert [matched[slot].item() for slot in slots] == [0, 1, 2]
    assert int((matched >= 0).sum()) == 3
    place = priors()[slots]
    assert place[:, :3].tolist() == [[24, 24, 16], [12, 4, 8], [48, 48, 32]]
    assert place[:, 3:].tolist() == [[16, 16], [8, 4], [60, 40]]


@pytest.mark.parametrize("seed", range(3))
def test_matching_equals_plain_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([80.0, 50])
    boxes = torch.cat([corner, corner + 2 + torch.rand(12, 2, generator=generator) * 40], 1)
    boxes[3] = boxes[2] + 0.25  # the same cell and anchor, the same area
    iscrowd = torch.zeros(12, dtype=torch.bool)
    iscrowd[[5, 9]] = True
    candidates = prior_boxes(priors())
    matched = match(boxes, iscrowd, candidates, ignore_iou=0.4)

    flat = [(level, a) for level in range(3) for a in range(2)]
    first = [0, 8 * 12 * 2, 8 * 12 * 2 + 4 * 6 * 2]
    expected = [BACKGROUND] * len(candidates)
    for slot, candidate in enumerate(candidates):
        for box, crowd in zip(boxes, iscrowd):
            if not crowd and box_iou(candidate[None], box[None]) > 0.4:
                expected[slot] = IGNORED
            inside = (torch.minimum(box[2:], candidate[2:]) - torch.maximum(box[:2], candidate[:2])).clamp(min=0).prod()
            if crowd and inside >= 0.5 * (candidate[2:] - candidate[:2]).prod():
                expected[slot] = IGNORED
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in sorted(range(12), key=lambda i: (area[i].item(), -i)):  # the largest last, the first of equals last
        if iscrowd[i]:
            continue
        size = boxes[i, 2:] - boxes[i, :2]
        ious = []
        for level, a in flat:
            anchor = torch.tensor(SIZES[level][a])
            inside = torch.minimum(size, anchor).prod()
            ious.append(float(inside / (size.prod() + anchor.prod() - inside)))
        level, a = flat[ious.index(max(ious))]
        centre = (boxes[i, :2] + boxes[i, 2:]) / 2
        column, row = min(int(centre[0] // STRIDES[level]), SHAPES[level][1] - 1), int(centre[1] // STRIDES[level])
        expected[first[level] + (min(row, SHAPES[level][0] - 1) * SHAPES[level][1] + column) * 2 + a] = i
    assert matched.tolist() == expected
    assert {BACKGROUND, IGNORED} < {*expected} and 3 not in expected


def test_an_image_without_objects_is_all_background() -> None:
    boxes = torch.zeros(0, 4)
    assert bool((match(boxes, no_crowds(boxes), prior_boxes(priors())) == BACKGROUND).all())


def test_codec_by_hand_and_back() -> None:
    prior = torch.tensor([[24.0, 40.0, 16.0, 10.0, 20.0]])  # cell 16..32 x 32..48
    deltas = torch.tensor([[0.0, float(torch.tensor(0.25).logit()), 0.0, 2.0]])
    box = decode_cells(deltas, prior)
    half = 10 * torch.e**2
    torch.testing.assert_close(box, torch.tensor([[19.0, 36 - half, 29.0, 36 + half]]))
    encoded = encode_cells(box, prior)
    torch.testing.assert_close(encoded, torch.tensor([[0.5, 0.25, 0.0, 2.0]]))


def test_size_iou_by_hand() -> None:
    iou = size_iou(torch.tensor([[10.0, 20.0]]), torch.tensor([[10.0, 20.0], [20.0, 10.0], [5.0, 5.0]]))
    torch.testing.assert_close(iou, torch.tensor([[1.0, 100 / 300, 25 / 200]]))
