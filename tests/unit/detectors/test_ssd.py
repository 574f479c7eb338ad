"""SSD's default boxes, matcher and losses by hand; what its options refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import create
from detectors.blocks.best_box_matcher import BestBoxMatcher
from detectors.blocks.default_boxes import DefaultBoxes, tile_default_boxes
from detectors.blocks.matchers import BACKGROUND, IGNORED
from detectors.blocks.vgg import L2Norm, map_sizes
from detectors.models.ssd import SSD, SSDS
from detectors.optimize import optimize
from detectors.structures import Batch, Target

CPU = torch.device("cpu")
LN3 = math.log(3)
# Runs in a blink: an eighth of the width, five maps of 16, 8, 4, 2 and 1 cells.
SMALL: dict[str, Any] = {
    "image_size": 128,
    "width": 0.125,
    "extra_layers": ("halve", "halve", "halve"),
    "box_scales": (0.1, 0.2, 0.35, 0.5, 0.7, 0.9),
    "box_ratio_counts": (1, 2, 2, 1, 1),
}


def test_default_boxes_of_a_cell_by_hand() -> None:
    boxes = DefaultBoxes(scales=(0.2, 0.8, 1.0), ratios=(4.0, 9.0), ratio_counts=(1, 2))
    assert boxes.num_boxes == (4, 6)
    # Squares of 0.2 and sqrt(0.2 * 0.8), then 4:1 and 1:4 of the area of the first.
    assert boxes.sides(0) == [pytest.approx(v) for v in ((0.2, 0.2), (0.4, 0.4), (0.4, 0.1), (0.1, 0.4))]
    assert boxes.sides(1)[4] == pytest.approx((2.4, 0.8 / 3))
    clipped = DefaultBoxes(scales=(0.2, 0.8, 1.0), ratios=(4.0, 9.0), ratio_counts=(1, 2), clip=True)
    assert clipped.sides(1)[4] == pytest.approx((1.0, 0.8 / 3))


def test_default_boxes_lie_on_the_middles_of_cells() -> None:
    shape = DefaultBoxes(scales=(0.5, 0.5), ratios=(), ratio_counts=(0,))
    tiled = tile_default_boxes(shape, ((2, 3),), (40, 90), CPU)
    assert tiled.shape == (2 * 3 * 2, 4)
    # Row 1, column 2: the centre is (75, 30), the sides half of the image's.
    torch.testing.assert_close(tiled[-2:], torch.tensor([[52.5, 20.0, 97.5, 40.0]] * 2))
    stepped = DefaultBoxes(scales=(0.5, 0.5), ratios=(), ratio_counts=(0,), strides=(28.0,))
    centres = tile_default_boxes(stepped, ((2, 3),), (40, 90), CPU).view(6, 2, 2, 2).mean(2)
    torch.testing.assert_close(centres[-1], torch.tensor([[70.0, 42.0]] * 2))
    with pytest.raises(ValueError, match="2 maps, default boxes for 1"):
        tile_default_boxes(shape, ((1, 1), (1, 1)), (8, 8), CPU)


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [
        ("ssd300_vgg16", [38, 19, 10, 5, 3, 1], 8732),
        ("ssd512_vgg16", [64, 32, 16, 8, 4, 2, 1], 24564),
    ],
)
def test_as_many_default_boxes_as_the_papers(name: str, sizes: list[int], count: int) -> None:
    options = SSDS[name]
    assert map_sizes(options.image_size, options.extra_layers) == sizes
    with torch.device("meta"):
        model: Any = create(name, num_classes=20)
        outputs = model.dense(torch.zeros(1, 3, options.image_size, options.image_size))
    assert outputs.shapes == tuple((s, s) for s in sizes)
    assert sum(logits.shape[1] for logits in outputs.logits) == count
    assert [logits.shape[-1] for logits in outputs.logits] == [21] * len(sizes)
    smallest = {"ssd300_vgg16": 21.0, "ssd512_vgg16": 20.48}[name]  # pixels, of the authors' settings for COCO
    assert options.box_scales[0] * options.image_size == pytest.approx(smallest)


OBJECTS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
ANCHORS = torch.tensor(
    [
        [0.0, 0, 10, 10],  # IoU 1 with object 0
        [0, 0, 10, 6],  # 0.6 with object 0
        [0, 0, 10, 5],  # 0.5 with object 0
        [23, 0, 33, 10],  # 7 of 13 columns of object 1
        [26, 0, 36, 10],  # 4 of 16 columns
        [50, 50, 60, 60],
    ]
)


def match(
    boxes: Tensor = OBJECTS, crowds: tuple[int, ...] = (), anchors: Tensor = ANCHORS, **options: Any
) -> list[int]:
    iscrowd = torch.tensor([i in crowds for i in range(len(boxes))], dtype=torch.bool)
    return BestBoxMatcher(**options).match(boxes, iscrowd, anchors).tolist()


def test_all_above_the_threshold_and_the_best_of_each_object() -> None:
    none = BACKGROUND
    assert match() == [0, 0, none, 1, none, none]
    # 7/13 is below 0.6, but the best that object 1 has.
    assert match(threshold=0.6) == [0, none, none, 1, none, none]
    with pytest.raises(ValueError, match=r"threshold 1\.5"):
        BestBoxMatcher(threshold=1.5)


TWINS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
NESTED = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 2]])  # IoU 1 and 0.9; 0.2 and 2/9


def test_objects_that_meet_on_one_box_get_one_each() -> None:
    # Both like box 0 best, object 0 with an IoU of 1 and object 1 with 0.9; to box 1 it has 2/9.
    assert match(TWINS, anchors=NESTED) == [0, 1]
    # Without bipartite matching the later takes the box, and object 0 has none.
    assert match(TWINS, anchors=NESTED, bipartite=False) == [1, BACKGROUND]
    # In whatever order they come, the better pair goes first.
    assert match(TWINS.flip(0), anchors=NESTED) == [1, 0]


def test_more_objects_than_boxes_leave_some_unmatched() -> None:
    assert match(TWINS, anchors=NESTED[:1]) == [0]
    far = torch.tensor([[50.0, 50, 60, 60]])
    assert match(far, anchors=NESTED) == [BACKGROUND] * 2  # nothing touches it


def test_crowds_are_ignored_and_degenerate_boxes_match_nothing() -> None:
    assert match(crowds=(1,))[3:] == [IGNORED, BACKGROUND, BACKGROUND]  # 7 and 4 of 10 columns inside
    flat = torch.tensor([[5.0, 5, 5, 9], [3, 3, 3, 3]])
    for bipartite in (True, False):
        assert match(flat, bipartite=bipartite) == [BACKGROUND] * len(ANCHORS)
        assert match(torch.zeros(0, 4), bipartite=bipartite) == [BACKGROUND] * len(ANCHORS)


def test_l2_norm_makes_every_cell_as_long_as_its_scale() -> None:
    x = torch.tensor([[3.0, 0.0], [4.0, 5.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(L2Norm(2)(x).flatten(), torch.tensor([12.0, 0.0, 16.0, 20.0]))


def undecided(**options: Any) -> SSD:
    """All logits and deltas are 0."""
    torch.manual_seed(0)
    model = create("ssd300_vgg16", num_classes=2, **SMALL, **options)
    assert isinstance(model, SSD)
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def batch_of(n: int) -> Batch:
    images = torch.randn(n, 3, 128, 128, generator=torch.Generator().manual_seed(n))
    sizes = torch.tensor([[128, 128]] * n)
    return Batch(images=images, sizes=sizes, original_sizes=sizes)


def target(boxes: list[list[float]], crowds: tuple[int, ...] = ()) -> Target:
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.arange(len(boxes)) % 2,
        iscrowd=torch.tensor([i in crowds for i in range(len(boxes))], dtype=torch.bool),
    )


def test_losses_of_two_boxes_by_hand() -> None:
    # Squares of 0.35 * 128 = 44.8 px on the 4x4 map, whose cells are 32 px: the best boxes of the two objects are
    # those about (16, 16) and (80, 80); the second object is 4 px to the right of its own.
    half = 0.35 * 128 / 2
    objects = target([[16 - half, 16 - half, 16 + half, 16 + half], [84 - half, 80 - half, 84 + half, 80 + half]])
    losses = undecided(match_iou=0.95)(batch_of(1), [objects])
    # Two positives and three negatives each, all undecided among three classes.
    assert losses["classification"].item() == pytest.approx(4 * LN3, rel=1e-5)
    # Of the eight deltas one is not 0: 10 * 4 / 44.8, of which smooth-L1 is a square.
    shift = 10 * 4 / 44.8
    assert losses["box_regression"].item() == pytest.approx(shift**2 / 2 / 2, rel=1e-4)
    plain = undecided(match_iou=0.95, codec_weights=(1.0, 1.0, 1.0, 1.0))(batch_of(1), [objects])
    assert plain["box_regression"].item() == pytest.approx((4 / 44.8) ** 2 / 2 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("ce", lambda n: n * LN3 / 2),
        ("alpha_ce", lambda n: (2 * 0.75 + (n - 2) * 0.25) * LN3 / 2),
        ("focal", lambda n: (2 * 0.25 + (n - 2) * 0.75) * (2 / 3) ** 2 * LN3 / 2),
        ("ohem", lambda _: 128 * LN3 / 2),
    ],
)
def test_other_classification_losses_by_hand(loss: str, expected: Any) -> None:
    objects = target([[10.0, 10, 50, 60], [70, 64, 120, 100]])
    model = undecided(match_iou=0.99, loss=loss, ohem_nms_iou=1.0)
    count = sum(n * s * s for n, s in zip(model.default_boxes.num_boxes, (16, 8, 4, 2, 1)))
    found = model(batch_of(1), [objects])["classification"].item()
    assert found == pytest.approx(expected(count), rel=1e-4)


def test_what_nobody_matched_costs_nothing_but_has_a_gradient() -> None:
    model = undecided()
    losses = model(batch_of(2), [target([]), target([[0.0, 0, 128, 128]], crowds=(0,))])
    assert losses["classification"].item() == losses["box_regression"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.head.parameters())
    some = undecided(min_negatives=8)(batch_of(1), [target([])])
    assert some["classification"].item() == pytest.approx(8 * LN3, rel=1e-5)


def test_an_untrained_head_gives_the_prior_where_every_box_counts() -> None:
    torch.manual_seed(0)
    model: Any = create("ssd300_vgg16", num_classes=2, loss="focal", prior=0.1, **SMALL)
    for conv in model.head.class_logits:
        torch.nn.init.zeros_(conv.weight)
    with torch.no_grad():
        probabilities = torch.cat(model.dense(batch_of(1).images).logits, 1).softmax(-1)
    torch.testing.assert_close(probabilities[0, 0], torch.tensor([0.9, 0.05, 0.05]))


def test_background_is_never_reported() -> None:
    model = undecided(score_threshold=0.3)
    for conv in model.head.class_logits:
        conv.bias.detach().view(-1, 3)[:] = torch.tensor([4.0, 0.0, 2.0])
    with torch.no_grad():
        assert len(model.predict(batch_of(1))[0]) == 0  # 0.87 background, 0.12 the second class
        for conv in model.head.class_logits:
            conv.bias.detach().view(-1, 3)[:] = torch.tensor([1.0, 0.0, 2.0])
        found = model.predict(batch_of(1))[0]
    assert len(found) > 10 and found.labels.unique().tolist() == [1]
    assert found.scores[0].item() == pytest.approx(math.exp(2) / (math.e + 1 + math.exp(2)))


def test_frozen_stages_do_not_learn() -> None:
    model: Any = create("ssd300_vgg16", num_classes=2, norm="bn", frozen_stages=2, **SMALL).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    stages = model.backbone.body.features[: model.backbone.body.cuts[1]]
    assert frozen == {f"backbone.body.features.{name}" for name, _ in stages.named_parameters()}
    before = [b.clone() for b in stages.buffers()]
    model(batch_of(2), [target([[10.0, 10, 50, 60]])] * 2)
    assert before and all(torch.equal(a, b) for a, b in zip(before, stages.buffers()))


def test_optimized_with_its_norms_folded_it_says_the_same() -> None:
    torch.manual_seed(0)
    model: Any = create("ssd300_vgg16", num_classes=2, norm="bn", **SMALL)
    for _ in range(3):
        model(batch_of(2), [target([[10.0, 10, 50, 60]])] * 2)  # statistics that are not trivial
    fast: Any = optimize(model.eval())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    with torch.no_grad():
        ours, theirs = model.dense(batch_of(1).images), fast.dense(batch_of(1).images)
    for a, b in zip((*ours.logits, *ours.deltas), (*theirs.logits, *theirs.deltas)):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 96}, "images of 96 px leave no cell on map 5 of 6"),
        ({"backbone": "resnet50"}, "SSD has vgg16"),
        ({"norm": "frozen_bn"}, "choose none, gn, bn or sync_bn"),
        ({"extra_layers": ("halve", "third")}, "extra_layers has third; choose of halve, valid, last"),
        ({"box_ratio_counts": (1, 2)}, "2 box_ratio_counts for 6 maps"),
        ({"box_scales": (0.1, 0.2)}, "2 box scales for 6 maps; there must be one more than maps"),
        ({"box_strides": (8.0, 16.0)}, "2 box strides for 6 maps"),
        ({"loss": "hinge"}, "loss is 'hinge'; choose one of focal"),
        ({"codec_weights": (1.0, 1.0)}, "give four numbers above 0"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create("ssd300_vgg16", num_classes=2, **options)
