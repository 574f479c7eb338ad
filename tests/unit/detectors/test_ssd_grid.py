"""The grid SSD's anchors, boxes, targets and losses by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import create
from detectors.blocks.matchers import BACKGROUND
from detectors.models.ssd_grid import SsdGrid, decode_grid_boxes, grid_boxes
from detectors.structures import Batch, Target

CPU = torch.device("cpu")
LN2 = math.log(2)
# Five anchors on 64 pixels: four squares of 32 and one of 64.
FIVE: dict[str, Any] = {
    "image_size": 64,
    "grids": (2, 1),
    "zooms": (1.0,),
    "ratios": (1.0,),
    "channels": 16,
    "norm": "gn",
}


def test_anchors_of_the_classic_by_hand() -> None:
    anchors = grid_boxes((4, 2, 1), (0.7, 1.0, 1.3), (0.5, 1.0, 2.0), (224, 224), CPU)
    assert anchors.shape == (9 * (16 + 4 + 1), 6)
    # Row 1, column 2 of the finest grid, whose cells are 56 px; zoom 1, ratio 1 is the fifth of nine.
    torch.testing.assert_close(anchors[(4 + 2) * 9 + 4], torch.tensor([112.0, 56, 168, 112, 56, 56]))
    # Ratio 2 is twice as high as wide, on the same area; zoom 0.7 is 0.7 cells.
    high = anchors[(4 + 2) * 9 + 5]
    assert high[2] - high[0] == pytest.approx(56 / math.sqrt(2)) and high[3] - high[1] == pytest.approx(
        56 * math.sqrt(2)
    )
    assert anchors[1, 2] - anchors[1, 0] == pytest.approx(0.7 * 56)
    torch.testing.assert_close(anchors[-5], torch.tensor([0.0, 0, 224, 224, 224, 224]))


def test_anchors_of_an_image_that_is_no_square() -> None:
    anchors = grid_boxes((2,), (1.0,), (1.0,), (40, 80), CPU)
    torch.testing.assert_close(anchors[1], torch.tensor([40.0, 0, 80, 20, 40, 20]))


def test_boxes_move_by_half_a_cell_and_grow_to_double_at_most() -> None:
    anchor = torch.tensor([[40.0, 40, 60, 80, 32, 32]])  # 20 x 40 about (50, 60), in a cell of 32

    def decode(*activations: float) -> list[float]:
        values: list[float] = decode_grid_boxes(torch.tensor([activations]), anchor)[0].tolist()
        return values

    assert decode(0, 0, 0, 0) == [40, 40, 60, 80]
    far = 20.0  # tanh is 1
    assert decode(far, -far, 0, 0) == pytest.approx([56, 24, 76, 64])
    assert decode(0, 0, far, -far) == pytest.approx([30, 50, 70, 70])
    half = math.atanh(0.5)
    assert decode(half, 0, 0, half) == pytest.approx([48, 60 - 20 * math.sqrt(2), 68, 60 + 20 * math.sqrt(2)])


def undecided(**options: Any) -> SsdGrid:
    """All logits and activations are 0: every class has probability 1/2, every box is its anchor."""
    torch.manual_seed(0)
    model = create("ssd_grid_lite0", num_classes=2, **{**FIVE, **options})
    assert isinstance(model, SsdGrid)
    for parameter in (*model.class_logits.parameters(), *model.box_activations.parameters()):
        torch.nn.init.zeros_(parameter)
    return model


def batch_of(n: int) -> Batch:
    images = torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))
    sizes = torch.tensor([[64, 64]] * n)
    return Batch(images=images, sizes=sizes, original_sizes=sizes)


# The first is the first cell's anchor; the second lies a quarter of a cell left of the fourth cell's:
# IoU 24 * 32 / (2 * 32² - 24 * 32) = 0.6 with that, 1/7 with the third's and 1/4 with the coarse one.
TWO = Target(
    boxes=torch.tensor([[0.0, 0, 32, 32], [24, 32, 56, 64]]),
    labels=torch.tensor([0, 1]),
    iscrowd=torch.zeros(2, dtype=torch.bool),
)


def test_targets_of_two_boxes_by_hand() -> None:
    model = undecided()
    anchors = model.anchors(model.dense(batch_of(1).images), batch_of(1).images)

    def match(target: Target) -> list[int]:
        matched: list[int] = model.matcher.match(target.boxes, target.iscrowd, anchors[:, :4]).tolist()
        return matched

    none = BACKGROUND
    assert match(TWO) == [0, none, none, 1, none]
    # With 0.5 of the coarse anchor an object of 64 x 32 px takes that, and the two cells it covers by half.
    wide = Target(boxes=torch.tensor([[0.0, 0, 64, 32]]), labels=torch.tensor([1]), iscrowd=torch.tensor([False]))
    assert match(wide) == [0, 0, none, none, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Five anchors of two classes: ten undecided elements, two of them objects; all over two matched anchors.
        ({"loss": "ce"}, 10 * LN2 / 2),
        ({"loss": "focal"}, (8 * 0.75 + 2 * 0.25) * 0.5**2 * LN2 / 2),
        ({"loss": "focal", "focal_gamma": 1.0}, (8 * 0.75 + 2 * 0.25) * 0.5 * LN2 / 2),
        ({"loss": "alpha_ce"}, (8 * 0.25 + 2 * 0.75) * LN2 / 2),
        ({"loss": "hard_negative", "negatives_per_positive": 0.5}, 6 * LN2 / 2),
    ],
)
def test_classification_losses_of_two_boxes_by_hand(options: dict[str, Any], expected: float) -> None:
    losses = undecided(**options)(batch_of(1), [TWO])
    assert losses["classification"].item() == pytest.approx(expected, rel=1e-5)


def test_box_losses_of_two_boxes_by_hand() -> None:
    # The second box is 8 px left of its anchor: two of its corners' four numbers are wrong by 8.
    assert undecided()(batch_of(1), [TWO])["box_regression"].item() == pytest.approx(2 * 8 / 64 / 2)
    in_anchors = undecided(box_unit="anchor")
    assert in_anchors(batch_of(1), [TWO])["box_regression"].item() == pytest.approx(2 * 8 / 32 / 2)
    # Every box 8 px to the left: now the first is wrong; every box of double height: both are by 16 above and below.
    shifted = undecided(box_loss_weight=3.0)
    _set_activations(shifted, torch.tensor([math.atanh(-0.5), 0, 0, 0]))
    assert shifted(batch_of(1), [TWO])["box_regression"].item() == pytest.approx(3 * 2 * 8 / 64 / 2, rel=1e-5)
    _set_activations(shifted, torch.tensor([math.atanh(-0.5), 0, 0, 20.0]))
    assert shifted(batch_of(1), [TWO])["box_regression"].item() == pytest.approx(
        3 * (2 * 8 + 4 * 16) / 64 / 2, rel=1e-5
    )


def test_losses_are_means_over_the_matched_anchors_of_the_batch() -> None:
    model = undecided()
    nothing = Target(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), iscrowd=torch.zeros(0, dtype=torch.bool)
    )
    losses = model(batch_of(2), [TWO, nothing])
    assert losses["classification"].item() == pytest.approx(20 * LN2 / 2, rel=1e-5)
    assert losses["box_regression"].item() == pytest.approx(0.125)
    empty = model(batch_of(2), [nothing, nothing])
    assert empty["classification"].item() == pytest.approx(20 * LN2, rel=1e-5) and empty["box_regression"] == 0
    sum(empty.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_all_zeros_is_background() -> None:
    model = undecided(score_threshold=0.4)
    with torch.no_grad():
        for conv in model.class_logits:
            conv.bias.copy_(torch.tensor([-3.0, 1.0]))
        found = model.predict(batch_of(1))[0]
        assert sorted(found.boxes.tolist()) == sorted(
            [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64], [0, 0, 64, 64]]
        )
        assert found.labels.tolist() == [1] * 5 and found.scores[0].item() == pytest.approx(1 / (1 + math.exp(-1)))
        for conv in model.class_logits:
            conv.bias.fill_(-3.0)
        assert len(model.predict(batch_of(1))[0]) == 0
    fresh: Any = create("ssd_grid_lite0", num_classes=3, prior=0.02, **FIVE)
    with torch.no_grad():
        logits = torch.cat(fresh.dense(batch_of(1).images).logits, 1)
    assert float(logits.sigmoid().mean()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("image_size", "grids"),
    [(224, (4, 2, 1)), (416, (4, 2, 1)), (224, (28, 14, 7, 4, 2, 1)), (416, (26, 13, 7)), (100, (5, 3))],
)
def test_any_grids_at_any_size(image_size: int, grids: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model: Any = create("ssd_grid_resnet34", num_classes=5, image_size=image_size, grids=grids)
        outputs = model.dense(torch.zeros(2, 3, image_size, image_size))
        other = model.dense(torch.zeros(1, 3, 192, 160))  # as a model is used that labels at another size
    assert outputs.shapes == other.shapes == tuple((g, g) for g in grids)
    assert [logits.shape for logits in outputs.logits] == [(2, 9 * g * g, 5) for g in grids]
    assert model.anchors(outputs, torch.zeros(2, 3, image_size, image_size)).shape == (9 * sum(g * g for g in grids), 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grids": (29, 4)}, "an image of 224 px has 1 to 28 cells a side"),
        ({"grids": (2, 4)}, "from the finest to the coarsest"),
        ({"grids": ()}, "grids are"),
        ({"zooms": (0.0,)}, "must be above 0"),
        ({"box_unit": "cell"}, "choose one of image, anchor"),
        ({"match_iou": 1.2}, r"matching threshold 1\.2"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create("ssd_grid_lite0", num_classes=2, **options)


def _set_activations(model: SsdGrid, activations: Tensor) -> None:
    with torch.no_grad():
        for conv in model.box_activations:
            conv.bias.copy_(activations)
