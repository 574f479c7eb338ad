"""YOLO v1: equation 3 of its paper by hand, predictions, and what its heads give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.models.yolo_v1 import YOLO_V1S, YoloV1, YoloV1Options, decode_roots, encode_roots
from detectors.structures import Batch, Target

# 64 x 64 pixels, 2 x 2 cells of 32 pixels, two boxes a cell, two classes.
SMALL = replace(
    YOLO_V1S["yolo_v1_resnet34"], backbone="resnet18", image_size=64, grid=2, head_channels=16, fc_channels=8
)
BATCH = Batch(
    images=torch.zeros(1, 3, 64, 64), sizes=torch.tensor([[64, 64]]), original_sizes=torch.tensor([[32, 128]])
)
ROOT_HALF = 0.5**0.5


class Saying(YoloV1):
    """Says what it is told to say."""

    def __init__(self, said: list[list[float]]) -> None:
        super().__init__(2, SMALL)
        self.said = torch.tensor([said])

    def dense(self, images: Tensor) -> Tensor:
        return self.said


# x, y, root of w, root of h, confidence of two boxes; two classes.
SAID = [
    [0.5, 0.5, 0.5, 0.5, 0.8, 0.375, 0.5, 0.25, 0.25, 0.3, 0.9, 0.2],
    [0.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, 7.0],
    [0.0, 0.0, 0.0, 0.0, 0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0],
]
# 16 x 16 in the first cell, its centre at (12, 16); 32 x 32, the last cell itself.
BOXES = [[4.0, 8, 20, 24], [32, 32, 64, 64]]


def target(boxes: list[list[float]], labels: list[int], crowds: tuple[int, ...] = ()) -> Target:
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        iscrowd=torch.tensor([i in crowds for i in range(len(boxes))], dtype=torch.bool),
    )


def values(model: YoloV1, of: Target) -> dict[str, float]:
    return {name: loss.item() for name, loss in model.losses(BATCH, [of]).items()}


def test_losses_by_hand() -> None:
    found = values(Saying(SAID), target(BOXES, [0, 1]))
    # First object: the first box is (8, 8, 24, 24), IoU 192 / 320; the second 4 x 4 inside it. Second object: only the
    # second box has a size; it is 16 x 16 in the middle, IoU 1 / 4.
    assert found["box_regression"] == pytest.approx(5 * (0.125**2 + 2 * (0.5 - ROOT_HALF) ** 2))
    assert found["objectness"] == pytest.approx((0.8 - 0.6) ** 2 + (0.5 - 0.25) ** 2)
    assert found["no_objectness"] == pytest.approx(0.5 * (0.3**2 + 0.2**2 + 0.1**2))
    assert found["classification"] == pytest.approx(0.1**2 + 0.2**2 + 1)


def test_right_answers_cost_nothing() -> None:
    said = [list(cell) for cell in SAID]
    said[0] = [0.375, 0.5, 0.5, 0.5, 1.0, *[0.0] * 5, 1.0, 0.0]
    said[1] = [0.0] * 12
    said[3] = [0.5, 0.5, -ROOT_HALF, ROOT_HALF, 0.0, 0.5, 0.5, ROOT_HALF, ROOT_HALF, 1.0, 0.0, 1.0]
    # Both boxes of the last cell fit alike; the first has a root of the wrong sign, and is taken.
    found = values(Saying(said), target(BOXES, [0, 1]))
    assert found["box_regression"] == pytest.approx(5 * (2 * ROOT_HALF) ** 2) and found["objectness"] == 1
    said[3][2] = ROOT_HALF
    said[3][4], said[3][9] = 1.0, 0.0
    assert values(Saying(said), target(BOXES, [0, 1])) == pytest.approx(dict.fromkeys(found, 0), abs=1e-10)


def test_where_nothing_overlaps_the_nearest_box_answers() -> None:
    said = [list(cell) for cell in SAID]
    said[3] = [-3.0, 0.0, 0.1, 0.1, 0.6, -2.0, 0.0, 0.1, 0.1, 0.7, 0.0, 1.0]
    found = values(Saying(said), target(BOXES[1:], [1]))
    assert found["objectness"] == pytest.approx(0.7**2)  # its IoU is 0
    assert found["box_regression"] == pytest.approx(5 * (2.5**2 + 0.5**2 + 2 * (0.1 - ROOT_HALF) ** 2), rel=1e-5)


def test_crowded_cells_are_not_background_and_an_empty_image_has_only_that() -> None:
    crowded = values(Saying(SAID), target([*BOXES, [32.0, 0, 64, 32]], [0, 1, 0], crowds=(2,)))
    assert crowded["no_objectness"] == pytest.approx(0.5 * (0.3**2 + 0.1**2))
    empty = values(Saying(SAID), target([], []))
    assert empty["no_objectness"] == pytest.approx(0.5 * (0.8**2 + 0.3**2 + 0.2**2 + 0.1**2 + 0.5**2))
    assert empty["box_regression"] == empty["objectness"] == empty["classification"] == 0


def test_prediction_by_hand() -> None:
    (found,) = Saying(SAID).predict(BATCH)
    # The image was stretched from 128 x 32: x doubles, y halves. Scores above 1 and boxes of no confidence are cut.
    assert found.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.8 * 0.9, 0.3 * 0.9, 0.8 * 0.2, 0.3 * 0.2]))
    torch.testing.assert_close(found.boxes[0], torch.tensor([16.0, 4, 48, 12]))
    torch.testing.assert_close(found.boxes[1], torch.tensor([20.0, 7, 28, 9]))


def test_roots_and_back() -> None:
    cells = torch.tensor([[32.0, 0, 32, 32]])
    box = torch.tensor([[40.0, 4, 56, 8]])
    roots = encode_roots(box, cells, 2)
    torch.testing.assert_close(roots, torch.tensor([[0.5, 6 / 32, 0.5, 0.25]]))
    torch.testing.assert_close(decode_roots(roots, cells, 2), box)


@pytest.mark.parametrize("head", ["fc", "conv"])
@pytest.mark.parametrize("grid", [2, 3])
def test_both_heads_give_every_cell_in_order_and_learn(head: str, grid: int) -> None:
    torch.manual_seed(0)
    model = YoloV1(3, replace(SMALL, head=head, grid=grid, head_stride=1, dropout=0.0))
    images = torch.randn(2, 3, 64, 64)
    predicted = model.dense(images)
    assert predicted.shape == (2, grid * grid, 13)
    coordinates, confidences, classes = model.split(predicted)
    assert torch.equal(coordinates[1, 2, 1], predicted[1, 2, 5:9]) and torch.equal(classes[0, 1], predicted[0, 1, 10:])
    assert torch.equal(confidences[0, 0], predicted[0, 0, [4, 9]])
    if head == "conv" and grid == 2:
        last = model.predicting(model.convs(model.backbone(images)[-1]))
        assert torch.equal(predicted[0, 1 * 2 + 0], last[0, :, 1, 0])
    batch = Batch(images=images, sizes=torch.tensor([[64, 64]] * 2), original_sizes=torch.tensor([[64, 64]] * 2))
    torch.stack(list(model(batch, [target(BOXES, [0, 1])] * 2).values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_at_the_papers_size_the_map_is_the_grid() -> None:
    with torch.device("meta"):
        model = YoloV1(20, YoloV1Options(head="fc"))
        assert model.convs(model.backbone(torch.zeros(1, 3, 448, 448))[-1]).shape[-2:] == (7, 7)
        # The paper's output: 7 x 7 x 30 for PASCAL VOC.
        assert model.dense(torch.zeros(1, 3, 448, 448)).shape == (1, 49, 30)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"head": "mlp"}, "head is 'mlp'"),
        ({"image_size": 450}, "image_size is 450; it must be a multiple of 32"),
        ({"grid": 0}, "grid is 0"),
        ({"head_stride": 4}, "head_stride is 4"),
        ({"head_norm": "ln"}, "head_norm is 'ln'"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
    ],
)
def test_bad_options_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        YoloV1Options(**wrong)
