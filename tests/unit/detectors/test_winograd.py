"""Winograd's convolutions against torch's: any size of map, with and without bias, alone and in a detector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detectors import create
from detectors.blocks.winograd import WinogradConv2d, is_worth_it, minimal_filter, use_winograd
from detectors.optimize import optimize


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 75), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_the_convolution(images: int, height: int, width: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(7, 5, 3, padding=1, bias=bias).requires_grad_(False)
    x = torch.randn(images, 7, height, width)
    made, expected = WinogradConv2d(conv)(x), conv.double()(x.double())
    assert made.shape == expected.shape
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_wide_sums_round_as_those_of_torch_do() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 256, 32, 28).relu()
    plain, made = conv(x), WinogradConv2d(conv)(x)
    exact = conv.double()(x.double())
    largest = float(exact.abs().max())
    assert float((made - exact).abs().max()) <= 1e-5 * largest
    assert float((plain - exact).abs().max()) <= 1e-5 * largest


def test_the_matrices_are_a_convolution_in_one_dimension() -> None:
    to_tile, of_kernel, to_points = minimal_filter()
    x, kernel = torch.arange(6, dtype=torch.float64) ** 2 - 7, torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)
    made = to_tile @ ((of_kernel @ kernel) * (to_points @ x))
    torch.testing.assert_close(made, torch.stack([x[i : i + 3] @ kernel for i in range(4)]))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(256, 256, 3, stride=2, padding=1),
        nn.Conv2d(256, 256, 3),
        nn.Conv2d(256, 256, 3, padding=2, dilation=2),
        nn.Conv2d(256, 256, 3, padding=1, groups=2),
        nn.Conv2d(256, 256, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(256, 256, 1),
        nn.Conv2d(256, 36, 3, padding=1),
        nn.ConvTranspose2d(256, 256, 3, padding=1),
    ],
)
def test_other_convolutions_stay(conv: nn.Module) -> None:
    assert not is_worth_it(conv)
    assert use_winograd(nn.Sequential(conv)) == 0


def test_an_optimized_detector_has_them_once_and_finds_the_same() -> None:
    torch.manual_seed(0)
    detector = create("retinanet_r18_fpn", num_classes=3, image_size=128, prior=0.2).eval()
    fast = optimize(detector)
    made = [m for m in fast.modules() if isinstance(m, WinogradConv2d)]
    wide = [m for m in detector.modules() if is_worth_it(m)]
    # Those whose norm was folded into them come on top.
    assert len(made) > len(wide) > 8 and use_winograd(fast) == 0
    assert not any(isinstance(m, WinogradConv2d) for m in detector.modules())
    with torch.no_grad():
        got, want = (d.dense(torch.linspace(-2, 2, 3 * 128 * 96).view(1, 3, 128, 96)) for d in (fast, detector))
    for a, b in ((got.logits, want.logits), (got.deltas, want.deltas)):
        for ours, theirs in zip(a, b):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_the_compiler_knows_its_shape() -> None:
    made = WinogradConv2d(nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False))
    operation = torch.ops.boxmill.winograd_conv2d.default
    torch.library.opcheck(
        operation, (torch.randn(2, 4, 9, 18), made.weight, made.conv.bias, made.to_points, made.to_tile)
    )
