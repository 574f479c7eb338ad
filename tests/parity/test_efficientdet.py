"""EfficientDet against effdet's, with its random weights and random BatchNorm statistics copied in by the key map."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from effdet import DetBenchPredict, DetBenchTrain, get_efficientdet_config
from effdet import EfficientDet as TheirEfficientDet
from torch import Tensor, nn

from detectors import create
from detectors.counting import count_parameters
from detectors.keymaps import WeightsMismatch, load_named
from detectors.keymaps_effdet import effdet_efficientdet
from detectors.models.efficientdet import EfficientDet
from detectors.structures import Batch, Target
from tests.comparing import assert_same_detections, make_targets

CLASSES = 7
# effdet reports the best 100, however unsure. Its BatchNorms are evaluated; ours are folded unless told otherwise.
AS_EFFDET = {"score_threshold": 0.0, "norm": "bn", "head_norm": "bn"}
LITE0 = {"box_loss": "huber", "box_loss_weight": 50.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: EfficientDet
    images: Tensor  # (B, 3, size, size), normalised
    batch: Batch


@cache
def make_pair(name: str, size: int, fusion: str | None = None) -> Pair:
    torch.manual_seed(0)
    config = get_efficientdet_config(f"tf_{name}")
    config.image_size, config.num_classes = (size, size), CLASSES
    if fusion is not None:
        config.fpn_name = {"fast": "bifpn_fa", "softmax": "bifpn_attn", "sum": "bifpn_sum"}[fusion]
    theirs = TheirEfficientDet(config, pretrained_backbone=False).eval()
    images = torch.randn(2, 3, size, size)
    make_lively(theirs, images)
    options = {**AS_EFFDET, **(LITE0 if name == "efficientdet_lite0" else {}), **({"fusion": fusion} if fusion else {})}
    ours = create(name, num_classes=CLASSES, image_size=size, **options)
    assert isinstance(ours, EfficientDet)
    load_named(ours, effdet_efficientdet(theirs.state_dict(), num_anchors=9), name)
    # One image is smaller than its padding: boxes end where it does.
    sizes = torch.tensor([[size, size], [size - 30, size - 10]])
    batch = Batch(images=images.to(memory_format=torch.channels_last), sizes=sizes, original_sizes=sizes)
    return Pair(theirs=theirs, ours=ours.eval(), images=images, batch=batch)


SMALL = [("efficientdet_d0", 256), ("efficientdet_lite0", 320)]
BIGGER = [("efficientdet_d1", 128), ("efficientdet_d2", 128), ("efficientdet_d3", 128)]
PAIRS = [*SMALL, *BIGGER]


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_raw_outputs(name: str, size: int) -> None:
    pair = make_pair(name, size)
    assert_same_outputs(pair)
    assert count_parameters(pair.ours) == count_parameters(pair.theirs)


@pytest.mark.parametrize("fusion", ["softmax", "sum"])
def test_raw_outputs_of_the_other_fusions(fusion: str) -> None:
    assert_same_outputs(make_pair("efficientdet_d0", 128, fusion))


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_anchors(name: str, size: int) -> None:
    pair = make_pair(name, size)
    with torch.no_grad():
        ours = pair.ours.anchors(pair.ours.dense(pair.batch.images[:1]), pair.batch.images)
    theirs = DetBenchPredict(pair.theirs).anchors.boxes[:, [1, 0, 3, 2]]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # theirs are computed in float64


@pytest.mark.parametrize(
    ("name", "size", "counts"),
    [*((*pair, counts) for pair in SMALL for counts in ((2, 3), (0, 0))), *((*pair, (2, 0)) for pair in PAIRS)],
)
def test_losses(name: str, size: int, counts: tuple[int, int]) -> None:
    pair, targets = make_pair(name, size), make_targets(counts)
    with torch.no_grad():
        losses = pair.ours(pair.batch, targets)
        theirs = their_losses(pair.theirs, pair.images, targets)
    torch.testing.assert_close(losses["classification"], theirs["class_loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["box_regression"], 50 * theirs["box_loss"], atol=1e-5, rtol=1e-5)
    assert (losses["box_regression"] > 0) == (sum(counts) > 0)


def test_gradients() -> None:
    # In float64: through eighty layers float32 rounding alone is worth 1e-3 of a gradient.
    pair, targets = make_pair("efficientdet_d0", 128), make_targets((2, 3))
    ours, theirs = copy.deepcopy(pair.ours).double(), copy.deepcopy(pair.theirs).double()
    sum(ours(replace(pair.batch, images=pair.images.double()), targets).values()).backward()
    their_losses(theirs, pair.images.double(), targets)["loss"].backward()
    mapped = effdet_efficientdet(
        {name: p.grad for name, p in theirs.named_parameters()},  # gradients are laid out as weights are
        num_anchors=9,
    )
    for name in (
        "backbone.body.conv_stem.weight",
        "neck.p6.conv.weight",
        "neck.layers.0.down.0.fuse.weights",
        "neck.layers.2.up.1.fuse.weights",
        "class_subnet.pointwise.1.weight",
        "box_subnet.norms.2.0.weight",
        "box_subnet.predict.pointwise.weight",
    ):
        got, want = ours.get_parameter(name).grad, mapped[name]
        assert got is not None and want.abs().max() > 0
        # Targets are encoded in float32 on both sides.
        assert (got - want).abs().max() <= 1e-5 * want.abs().max(), name


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_detections(name: str, size: int) -> None:
    pair = make_pair(name, size)
    info = {"img_scale": torch.ones(2), "img_size": pair.batch.sizes.flip(1).float()}  # width, height
    with torch.no_grad():
        expected = DetBenchPredict(pair.theirs).eval()(pair.images, info)
    for ours, theirs in zip(pair.ours.predict(pair.batch), expected):
        assert_same_detections(ours, theirs[:, :4], theirs[:, 5].long() - 1, theirs[:, 4], least=100)


def test_frozen_norms_say_the_same() -> None:
    """Statistics that were loaded into frozen BatchNorms: 1e-5 in float64, where folding rounds nothing away."""
    pair = make_pair("efficientdet_d0", 128)
    frozen = create("efficientdet_d0", num_classes=CLASSES, norm="frozen_bn", head_norm="frozen_bn", drop_path=0.0)
    load_named(frozen, effdet_efficientdet(pair.theirs.state_dict(), num_anchors=9), "efficientdet_d0")
    whole = copy.deepcopy(pair.ours).double()
    with torch.no_grad():
        theirs = whole.dense(pair.images.double())
        ours = frozen.double().train().dense(pair.images.double())  # in training, too
    for a, b in zip([*ours.logits, *ours.deltas], [*theirs.logits, *theirs.deltas]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_some_classes_of_released_weights() -> None:
    pair, keep = make_pair("efficientdet_d0", 128), [5, 0, 2]
    state = effdet_efficientdet(pair.theirs.state_dict(), num_anchors=9, keep_classes=keep)
    model = create("efficientdet_d0", num_classes=len(keep), **AS_EFFDET).eval()
    loaded, untouched, left_out = load_named(model, state, "efficientdet_d0")
    assert (untouched, left_out) == ((), ())
    assert len(loaded) == sum(not key.endswith("num_batches_tracked") for key in model.state_dict())
    with torch.no_grad():
        ours, whole = model.dense(pair.images), pair.ours.dense(pair.images)
    for a, b in zip(ours.logits, whole.logits):
        torch.testing.assert_close(a, b[..., keep], atol=1e-6, rtol=1e-6)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsMismatch, match=r"head\.conv\.weight is no tensor"):
        effdet_efficientdet({"head.conv.weight": torch.zeros(1)}, num_anchors=9)
    with pytest.raises(WeightsMismatch, match="35 outputs"):
        effdet_efficientdet({"box_net.predict.conv_pw.bias": torch.zeros(35)}, num_anchors=9)
    state = effdet_efficientdet(make_pair("efficientdet_d0", 128).theirs.state_dict(), num_anchors=9)
    with pytest.raises(WeightsMismatch):
        load_named(create("efficientdet_d1", num_classes=CLASSES, **AS_EFFDET), state, "efficientdet_d1")


def assert_same_outputs(pair: Pair) -> None:
    with torch.no_grad():
        classes, boxes = pair.theirs(pair.images)
        ours = pair.ours.dense(pair.batch.images)
    # Random weights that say nothing would prove nothing.
    assert torch.cat(ours.logits, 1).std() > 0.5 and torch.cat(ours.deltas, 1).std() > 0.2
    for level, (logits, deltas) in enumerate(zip(ours.logits, ours.deltas)):
        their_logits = classes[level].permute(0, 2, 3, 1).reshape(2, -1, CLASSES)
        their_deltas = boxes[level].permute(0, 2, 3, 1).reshape(2, -1, 4)[..., [1, 0, 3, 2]]
        torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(deltas, their_deltas, atol=1e-5, rtol=1e-5)


def make_lively(model: nn.Module, images: Tensor) -> None:
    """Random statistics, fusion weights and biases; outputs of which a step in float32 is some 1e-7.

    The last norm of a block is damped, or the blocks would explode.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            gain = 0.3 if name.startswith("backbone") and name.endswith("bn3") else 1.0
            nn.init.normal_(module.weight, mean=gain, std=0.1 * gain)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    for name, parameter in model.named_parameters():
        if name.endswith("edge_weights"):
            nn.init.uniform_(parameter, -0.3, 1.0)  # ReLU must cut some
        if name.endswith("bias") and "bn" not in name:
            nn.init.normal_(parameter, std=0.1)
    nn.init.constant_(model.class_net.predict.conv_pw.bias, -2.0)
    with torch.no_grad():
        for net, outputs, spread in zip((model.class_net, model.box_net), model(images), (1.0, 0.3)):
            net.predict.conv_pw.weight *= spread / torch.cat([x.flatten() for x in outputs]).std()


def their_losses(theirs: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    bench = DetBenchTrain(theirs).train()
    theirs.eval()  # only the bench is in training, which spares the detections
    losses: dict[str, Tensor] = bench(
        images,
        {"bbox": [t.boxes[:, [1, 0, 3, 2]] for t in targets], "cls": [t.labels + 1 for t in targets]},
    )
    return losses
