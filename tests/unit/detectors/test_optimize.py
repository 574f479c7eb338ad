"""Folding and ``optimize``: the same detector, faster, within the stated tolerances."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from detectors import create
from detectors.blocks.norms import FrozenNormConv2d, replace_norms
from detectors.models.retinanet import RetinaNet
from detectors.optimize import OptimizationWarning, has_fast_bfloat16, optimize
from detectors.probing import largest_change, raw_outputs
from detectors.structures import Batch

IMAGES = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[96, 64], [80, 50]])
BATCH = Batch(images=IMAGES, sizes=SIZES, original_sizes=SIZES * 2)


def lively(network: nn.Module) -> None:
    """Statistics that a folding mistake would show in."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "tf_efficientnet_lite0", "mobilenetv3_small_100", "densenet121"]
)
def test_frozen_norms_in_convolutions_equal_evaluating_batch_norms(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
    lively(plain)
    frozen = copy.deepcopy(plain)
    replace_norms(frozen, "frozen_bn", torch.zeros(1, 3, 64, 64))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert any(isinstance(m, FrozenNormConv2d) for m in frozen.modules())
    with torch.no_grad():
        for a, b in zip(frozen(IMAGES), plain(IMAGES)):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)


def test_frozen_norms_learn_as_frozen_batch_norms_do() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval().double()
    lively(plain)
    frozen = copy.deepcopy(plain)
    replace_norms(frozen, "frozen_bn", torch.zeros(1, 3, 64, 64).double())
    frozen.train().double()  # frozen in training, too
    for network in (plain, frozen):
        network(IMAGES.double())[-1].square().mean().backward()
    got, want = frozen.get_parameter("layer1.0.conv2.weight").grad, plain.get_parameter("layer1.0.conv2.weight").grad
    assert got is not None and want is not None
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


OPTIONS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "batch norm": {"norm": "bn", "head_norm": "bn"},
    "group norm": {"norm": "gn"},
    "synchronised": {"norm": "sync_bn", "head_norm": "sync_bn"},
}


def detector(options: dict[str, Any]) -> RetinaNet:
    torch.manual_seed(0)
    made = create("retinanet_lite0", num_classes=3, image_size=96, prior=0.2, **options)
    assert isinstance(made, RetinaNet)
    for module in made.modules():
        if isinstance(module, FrozenNormConv2d):
            module.scale.mul_(torch.rand_like(module.scale) + 0.5)
            module.shift.normal_(std=0.1)
    lively(made)
    return made.eval()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_optimized_in_float32(options: dict[str, Any]) -> None:
    plain = detector(options)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fast = optimize(plain)
    assert isinstance(fast, RetinaNet)
    assert not any(isinstance(m, FrozenNormConv2d | nn.BatchNorm2d) for m in fast.modules())
    with torch.no_grad():
        ours, theirs = fast.dense(IMAGES), plain.dense(IMAGES)
    for a, b in zip(ours.logits + ours.deltas, theirs.logits + theirs.deltas):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    for a, b in zip(fast.predict(BATCH), plain.predict(BATCH)):
        assert len(a) == len(b) > 10
        torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=0)
    after = plain.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # the original is untouched


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_optimized_in_bfloat16(options: dict[str, Any]) -> None:
    plain = detector(options)
    if not has_fast_bfloat16(torch.device("cpu")):
        with pytest.warns(OptimizationWarning, match="no bfloat16 instructions"):
            optimize(plain, dtype="bfloat16")
        return
    fast = optimize(plain, dtype="bfloat16")
    assert isinstance(fast, RetinaNet)
    with torch.no_grad():
        ours, theirs = fast.dense(IMAGES), plain.dense(IMAGES)
    for a, b in zip(ours.logits + ours.deltas, theirs.logits + theirs.deltas):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() <= 1e-1 * b.abs().max()
        assert (a.float() - b).abs().mean() <= 5e-2 * b.abs().max()
    for prediction in fast.predict(BATCH):
        assert prediction.boxes.dtype == prediction.scores.dtype == torch.float32 and len(prediction) > 10


def test_a_missing_compiler_is_told_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = detector({})
    monkeypatch.setattr(torch, "compile", lambda _f: _broken)
    with pytest.warns(OptimizationWarning, match=r"torch\.compile failed, running without it: no compiler here"):
        fast = optimize(plain, compile=True)
    assert len(fast.predict(BATCH)) == 2


def test_a_compiler_that_fails_on_the_network_is_told_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = detector({})
    monkeypatch.setattr(torch, "compile", lambda f: _broken if f.__name__ == "dense" else f)
    fast = optimize(plain, compile=True)
    with pytest.warns(OptimizationWarning, match=r"failed on RetinaNet\.dense, running without it: no compiler here"):
        first = fast.predict(BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        again = fast.predict(BATCH)
    for a, b, c in zip(first, again, optimize(plain).predict(BATCH)):
        assert torch.equal(a.boxes, b.boxes)
        torch.testing.assert_close(a.boxes, c.boxes, atol=1e-2, rtol=0)  # whose convolutions are fused


def test_bad_input_is_not_blamed_on_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f: f)
    fast = optimize(detector({}), compile=True)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="channels"):
        warnings.simplefilter("error")
        fast.predict(replace(BATCH, images=IMAGES[:, :2]))


@pytest.mark.slow
def test_compiled() -> None:
    plain = detector({})
    fast = optimize(plain, compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OptimizationWarning)
        got = raw_outputs(fast, BATCH)
    assert largest_change(got, raw_outputs(plain, BATCH)) <= 1e-4


def test_nothing_is_said_when_all_is_done() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimize(detector({}), dtype="auto")


def _broken(_images: torch.Tensor) -> None:
    raise RuntimeError("no compiler here\nand more")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimized_on_a_gpu(dtype: Any) -> None:
    plain = detector({})
    fast = optimize(copy.deepcopy(plain).cuda(), dtype=dtype)
    got, reference = raw_outputs(fast, BATCH.to("cuda")), raw_outputs(plain, BATCH)
    # TF32, which convolutions may use, has 10 bits.
    assert largest_change([x.cpu() for x in got], reference) <= (1e-1 if dtype == "bfloat16" else 1e-2)
    for prediction in fast.predict(BATCH.to("cuda")):
        assert prediction.boxes.is_cuda and prediction.boxes.dtype == torch.float32 and len(prediction) > 10
