"""Convolutions that write what follows them, beside the modules that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import Tensor, nn

from detectors import create
from detectors.blocks.fused_conv import FusedConv2d, activation_of, can_fuse
from detectors.blocks.winograd import WinogradConv2d
from detectors.optimize import OptimizationWarning, optimize
from detectors.probing import largest_change, pairs_of, probe_batch, raw_outputs
from tests.unit.detectors.test_optimize import detector

ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.1)]


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=0)


@given(
    kind=st.sampled_from([nn.Conv2d, Conv2dSame]),
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    kernel=st.sampled_from([1, 3, 5, (3, 5)]),
    stride=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 8]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_as_the_modules_one_after_the_other(
    kind, size, kernel, stride, groups, dilation, bias, activation, channels_last, seed
):
    torch.manual_seed(seed)
    dilation = 1 if kind is Conv2dSame else dilation
    conv = kind(8, 16, kernel, stride=stride, groups=groups, dilation=dilation, bias=bias)
    if kind is nn.Conv2d:
        conv = nn.Conv2d(8, 16, kernel, stride, padding=2, groups=groups, dilation=dilation, bias=bias)
    assert can_fuse(conv)
    images = 3 * torch.randn(2, 8, *size)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    fused = FusedConv2d(conv) if activation is None else FusedConv2d(conv, activation_of(activation))
    with torch.no_grad():
        close(fused(images), conv(images) if activation is None else activation(conv(images)))
        assert fused(images[:0]).shape == conv(images[:0]).shape  # no regions


def test_one_module_serves_maps_of_every_size():
    conv = Conv2dSame(4, 4, 3, stride=2)
    fused = FusedConv2d(conv, activation_of(nn.ReLU()))
    with torch.no_grad():
        for height, width in ((8, 8), (9, 8), (8, 9), (9, 9), (30, 7)):
            images = torch.randn(1, 4, height, width)
            close(fused(images), conv(images).relu())


def test_another_type_takes_the_kernels_along():
    conv = Conv2dSame(4, 4, 3, stride=2)
    fused, images = FusedConv2d(conv), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        fused(images)
        close(copy.deepcopy(fused)(images), conv(images))
        with torch.no_grad():
            conv.weight.mul_(2)
        fused.load_state_dict(FusedConv2d(conv).state_dict())
        fused.to(memory_format=torch.channels_last)
        close(fused(images), conv(images))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        Conv2dSame(4, 4, 3, dilation=2),
        nn.ConvTranspose2d(4, 4, 2),
        type("Own", (nn.Conv2d,), {})(4, 4, 3),
    ],
)
def test_what_is_not_fused(module):
    assert not can_fuse(module)


def test_activations_that_it_does_not_know():
    assert activation_of(nn.Sigmoid()) is activation_of(nn.Hardtanh(-1, 1)) is activation_of(nn.Identity()) is None


def test_activations_go_into_the_convolutions_that_they_follow():
    fast = optimize(detector({}))
    kinds = [type(module) for module in fast.backbone.modules()]
    assert nn.ReLU6 not in kinds and nn.Conv2d not in kinds and Conv2dSame not in kinds
    clamped = [m for m in fast.backbone.modules() if isinstance(m, FusedConv2d) and m._activation[0] == "hardtanh"]
    assert len(clamped) == sum(isinstance(m, nn.ReLU6) for m in detector({}).eval().backbone.modules()) > 20


def test_wide_convolutions_stay_winograds():
    fast = optimize(create("retinanet_r18_fpn", num_classes=2, image_size=96).eval())
    wide = [module for module in fast.modules() if isinstance(module, WinogradConv2d)]
    assert wide and all(type(module.conv) is nn.Conv2d for module in wide)


def test_an_activation_that_others_need_stays():
    convs = [nn.Conv2d(4, 4, 1) for _ in range(3)]
    shared, own = nn.ReLU(), nn.ReLU()
    network = nn.Sequential(convs[0], shared, convs[1], shared, convs[2], own)
    assert pairs_of(network, lambda: network(torch.randn(1, 4, 2, 2)), can_fuse, _is_activation) == [(convs[2], own)]


def _is_activation(module: nn.Module) -> bool:
    return activation_of(module) is not None


def test_what_cannot_be_fused_is_told_and_goes_without(monkeypatch: pytest.MonkeyPatch):
    plain = detector({})
    monkeypatch.setattr("detectors.fusing.activation_of", lambda module: ("relu", []) if _is_relu6(module) else None)
    with pytest.warns(OptimizationWarning, match=r"stay beside its convolutions: its outputs would change"):
        fast = optimize(_loud(plain))
    assert not any(isinstance(module, FusedConv2d) for module in fast.modules())
    batch = probe_batch(plain)
    assert largest_change(raw_outputs(fast, batch), raw_outputs(plain, batch)) <= 1e-5


def _is_relu6(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU6)


def _loud(made):
    """So loud that it matters where an activation ends at six."""
    with torch.no_grad():
        for module in made.backbone.modules():
            if hasattr(module, "scale"):
                module.scale.mul_(20)
    return made
