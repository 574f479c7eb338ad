"""EfficientDet's parts: its sizes, its pyramid by hand, its losses by hand, and that folding changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detectors import create
from detectors.blocks.bifpn import BiFPNLayer, WeightedSum, halve
from detectors.blocks.norms import FrozenNormConv2d
from detectors.blocks.separable import LevelSubnet
from detectors.counting import count_multiply_adds, count_parameters
from detectors.models.efficientdet import EFFICIENTDETS, EfficientDet
from detectors.optimize import optimize
from detectors.structures import Batch, Target

# Millions of parameters and billions of multiply-adds with 90 classes, 1911.09070, table 2.
PUBLISHED = {
    "efficientdet_d0": (3.9, 2.5),
    "efficientdet_d1": (6.6, 6.1),
    "efficientdet_d2": (8.1, 11),
    "efficientdet_d3": (12, 25),
    "efficientdet_d4": (21, 55),
    "efficientdet_d5": (34, 135),
    "efficientdet_d6": (52, 226),
    "efficientdet_d7": (52, 325),
}
LITE0 = "efficientdet_lite0"


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        detector = create(name, num_classes=90, norm="bn")  # the scales of frozen norms are no parameters
    millions, billions = PUBLISHED[name]
    assert count_parameters(detector) / 1e6 == pytest.approx(millions, rel=0.02)
    assert count_multiply_adds(detector) / 1e9 == pytest.approx(billions, rel=0.02)


def test_lite0_is_the_officials_network() -> None:
    with torch.device("meta"):
        detector = create(LITE0, num_classes=90, norm="bn", head_norm="bn")
    assert count_parameters(detector) == 3_243_470  # of effdet's, which tests/parity compares tensor by tensor
    assert not any(isinstance(module, nn.SiLU | nn.Sigmoid) for module in detector.modules())
    options = EFFICIENTDETS[LITE0]
    assert (options.channels, options.layers, options.head_depth, options.fusion) == (64, 3, 3, "sum")


@pytest.mark.parametrize("shape", [(4, 4), (5, 5), (7, 10), (1, 1), (2, 3), (1, 2)])
def test_halving_pads_as_tensorflow_does(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape)
    assert torch.equal(halve(x), MaxPool2dSame(3, 2)(x))
    assert halve(x).shape[-2:] == (math.ceil(shape[0] / 2), math.ceil(shape[1] / 2))


def test_fusions_by_hand() -> None:
    maps = [torch.full((1, 1, 2, 2), value) for value in (1.0, 10.0, 100.0)]
    values = torch.tensor([1.0, -2.0, 3.0])
    for kind, expected in (
        ("fast", (1 * 1 + 3 * 100) / 4.0001),
        ("softmax", (math.e + math.exp(-2) * 10 + math.exp(3) * 100) / (math.e + math.exp(-2) + math.exp(3))),
        ("sum", 111.0),
    ):
        fuse = WeightedSum(3, kind)  # type: ignore[arg-type]
        if fuse.weights is not None:
            fuse.weights.data.copy_(values)
        torch.testing.assert_close(fuse(maps), torch.full((1, 1, 2, 2), expected), msg=kind)
    assert maps[0].eq(1).all()  # what comes in is needed elsewhere, too


def test_wiring_of_a_layer_by_hand() -> None:
    """With plain sums and nodes that do nothing else, every output is a known mix of the inputs."""
    layer = BiFPNLayer((1,) * 5, 1, fusion="sum", norm="bn", norm_momentum=0.01, activation="silu")
    for node in [*layer.down, *layer.up]:
        node.activation, node.conv = nn.Identity(), nn.Identity()
    sides = (16, 8, 4, 2, 1)
    p3, p4, p5, p6, p7 = inputs = [torch.full((1, 1, s, s), 10.0**i) for i, s in enumerate(sides)]
    d6 = p6[0, 0, 0, 0] + p7[0, 0, 0, 0]
    d5 = p5[0, 0, 0, 0] + d6
    d4 = p4[0, 0, 0, 0] + d5
    u3 = p3[0, 0, 0, 0] + d4
    u4 = p4[0, 0, 0, 0] + d4 + u3
    u5 = p5[0, 0, 0, 0] + d5 + u4
    u6 = p6[0, 0, 0, 0] + d6 + u5
    u7 = p7[0, 0, 0, 0] + u6
    for got, side, value in zip(layer(inputs), sides, (u3, u4, u5, u6, u7)):
        assert torch.equal(got, torch.full((1, 1, side, side), float(value)))


def test_levels_share_weights_but_not_norms() -> None:
    torch.manual_seed(0)
    subnet = LevelSubnet(8, 2, 2, 3, norm="bn", norm_momentum=0.01, activation="silu").eval()
    same = torch.randn(1, 8, 6, 6)
    first, second = subnet([same, same])
    assert torch.equal(first, second)
    subnet.norms[1][1].bias.data += 1
    changed_first, changed_second = subnet([same, same])
    assert torch.equal(changed_first, first) and not torch.allclose(changed_second, second)


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("efficientdet_d0", {"norm": "bn", "head_norm": "bn"}),
        ("efficientdet_d0", {"norm": "frozen_bn", "head_norm": "frozen_bn", "fusion": "softmax"}),
        (LITE0, {"head_norm": "bn"}),
    ],
)
def test_optimized_finds_the_same(name: str, norms: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector = create(name, num_classes=4, **norms).eval()
    lively(detector)
    fast = optimize(detector)
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, FrozenNormConv2d)
    assert any(isinstance(module, kinds) for module in detector.modules())
    assert not any(isinstance(module, kinds) for module in fast.modules())
    batch = make_batch(2, 128)
    with torch.no_grad():
        ours, theirs = fast.dense(batch.images), detector.dense(batch.images)
    for got, want in zip([*ours.logits, *ours.deltas], [*theirs.logits, *theirs.deltas]):
        assert want.std() > 1e-3
        torch.testing.assert_close(got, want, atol=1e-5 * float(want.abs().max()), rtol=0)
    levels = ours.shapes
    assert levels[:3] == ((16, 16), (8, 8), (4, 4))
    # The head's maps are channels_last, so that anchors are views of them and nothing is copied.
    assert all(x._base is not None for x in [*ours.logits, *ours.deltas])


def test_losses_by_hand() -> None:
    """One object that is one anchor moved by a known step; an untrained, silenced head says 0 and the prior."""
    detector = create("efficientdet_d0", num_classes=2, norm="bn")
    assert isinstance(detector, EfficientDet)
    for subnet in (detector.class_subnet, detector.box_subnet):
        nn.init.zeros_(subnet.predict.pointwise.weight)
    detector.eval()
    batch = make_batch(2, 128)
    anchors = detector.anchors(detector.dense(batch.images), batch.images)
    anchor = anchors[9 * (16 * 8 + 8)]  # the first of a position in the middle of P3: 32 x 32 pixels
    width = anchor[2] - anchor[0]
    assert float(width) == 32.0
    box = anchor + torch.tensor([0.25, 0.001, 0.25, 0.001]) * width
    crowd = torch.tensor([True, False])
    targets = [one(box), Target(boxes=torch.stack([box, box]), labels=torch.tensor([0, 1]), iscrowd=crowd)]
    matched = detector.matcher.match(box[None], torch.tensor([False]), anchors)
    positives = int((matched >= 0).sum())
    with torch.no_grad():
        losses = detector(batch, targets)
    deltas = torch.stack(
        [torch.cat([(centre(box) - centre(a)) / size(a), (size(box) / size(a)).log()]) for a in anchors[matched >= 0]]
    ).abs()
    huber = torch.where(deltas <= 0.1, deltas**2 / 2, 0.1 * (deltas - 0.05))
    count = 2 * positives + 1  # of the batch, and 1
    assert float(losses["box_regression"]) == pytest.approx(50 * 2 * float(huber.mean(1).sum()) / count, rel=1e-4)

    half_covered = detector.matcher.match(targets[1].boxes, crowd, anchors)
    ignored = int((half_covered == -2).sum())
    assert ignored > 0
    p, log = 0.01, math.log
    background = -0.75 * p**1.5 * log(1 - p)
    as_object = -0.25 * (1 - p) ** 1.5 * log(p)
    # Of two images and two classes, one element of each positive is an object's; ignored anchors have none.
    of_images = 2 * positives * as_object + (4 * len(anchors) - 2 * positives - 2 * ignored) * background
    assert float(losses["classification"]) == pytest.approx(of_images / count, rel=1e-4)


def test_the_loss_is_a_choice() -> None:
    batch = make_batch(1, 128)
    box = torch.tensor([20.0, 30.0, 70.0, 90.0])
    values = {}
    for loss in ("focal", "alpha_ce", "ce", "ohem", "hard_negative"):
        torch.manual_seed(0)
        detector = create(LITE0, num_classes=2, loss=loss)
        with torch.no_grad():
            values[loss] = float(detector(batch, [one(box)])["classification"])
    assert len({round(value, 3) for value in values.values()}) == 5 and min(values.values()) > 0


def test_images_without_objects_teach_background() -> None:
    detector = create(LITE0, num_classes=2)
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), iscrowd=torch.zeros(0).bool())
    losses = detector(make_batch(2, 128), [empty, empty])
    assert float(losses["box_regression"]) == 0 and float(losses["classification"]) > 0
    sum(losses.values()).backward()
    assert detector.class_subnet.get_parameter("predict.pointwise.bias").grad.abs().sum() > 0


def test_depth_is_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    detector = create("efficientdet_d0", num_classes=2, drop_path=0.5, head_norm="gn")
    with torch.no_grad():
        assert not torch.equal(detector.train().dense(images).logits[0], detector.dense(images).logits[0])
        assert torch.equal(detector.eval().dense(images).logits[0], detector.dense(images).logits[0])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("fusion", "mean", "fast, softmax, sum"),
        ("activation", "gelu", "silu, relu6"),
        ("box_loss", "iou", "huber"),
        ("head_norm", "none", "gn"),
        ("layers", 0, "at least 1"),
        ("drop_path", 1.0, r"\[0, 1\)"),
        ("prior", 0.0, "between 0 and 1"),
        ("image_size", 16, "at least 32"),
        ("loss", "bce", "alpha_ce"),
    ],
)
def test_bad_options_are_told(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        create("efficientdet_d0", num_classes=2, **{option: value})
    assert repr(value) in str(error.value) or str(value) in str(error.value)


def lively(network: nn.Module) -> None:
    """Statistics that a folding mistake would show in, and predictions that differ from their bias."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(std=0.1)
        if isinstance(module, FrozenNormConv2d):
            module.scale.mul_(torch.empty_like(module.scale).uniform_(0.8, 1.2))
            module.shift.normal_(std=0.1)


def make_batch(count: int, side: int) -> Batch:
    sizes = torch.tensor([[side, side]] * count)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=generator).to(memory_format=torch.channels_last)
    return Batch(images=images, sizes=sizes, original_sizes=sizes)


def one(box: Tensor) -> Target:
    return Target(boxes=box[None], labels=torch.tensor([1]), iscrowd=torch.tensor([False]))


def centre(box: Tensor) -> Tensor:
    return (box[:2] + box[2:]) / 2


def size(box: Tensor) -> Tensor:
    return box[2:] - box[:2]
