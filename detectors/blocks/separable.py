"""Separable convolutions with a norm, and a subnet of them that is slid over levels of which each has its own norms.

Shape legend: B images, n positions of a level, F features.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detectors.blocks.norms import FrozenNormConv2d, Norm, make_norm

Activation = Literal["silu", "relu6"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "relu6")

NORM_EPS = 1e-3
"""Of EfficientDet's BatchNorms (1911.09070, the official code)."""


class SeparableConv2d(nn.Sequential):
    """A depthwise 3x3 and a 1x1 convolution with a bias, then a norm (if any)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Norm | None = None, norm_momentum: float = 0.01
    ) -> None:
        super().__init__()
        self.depthwise = depthwise(in_channels)
        self.pointwise: nn.Module = nn.Conv2d(in_channels, out_channels, 1)
        if norm is not None:
            self.pointwise, self.norm = with_norm(self.pointwise, "pointwise", norm, norm_momentum)


class ConvNorm(nn.Sequential):
    """A 1x1 convolution with a bias, then a norm."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, norm_momentum: float = 0.01) -> None:
        super().__init__()
        self.conv, self.norm = with_norm(nn.Conv2d(in_channels, out_channels, 1), "conv", norm, norm_momentum)


class LevelSubnet(nn.Module):
    """Separable convolutions whose weights are shared over the levels of a pyramid and whose norms are not.

    The levels differ in their statistics, so each has BatchNorms of its own.

    Args:
        channels: of the pyramid and of every hidden map.
        depth: hidden convolutions before the predicting one.
        levels: of the pyramid.
        outputs: channels of the predicting convolution, which has neither norm nor activation.
        norm, norm_momentum: behind each hidden convolution.
        activation: behind each norm.
    Source: Tan et al. 2019, 1911.09070, section 4.1.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        levels: int,
        outputs: int,
        *,
        norm: Norm,
        norm_momentum: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.depthwise = nn.ModuleList(depthwise(channels) for _ in range(depth))
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.ModuleList(channel_norm(norm, channels, norm_momentum) for _ in range(levels)) for _ in range(depth)
        )
        self.activation = make_activation(activation)
        self.predict = SeparableConv2d(channels, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=1 / math.sqrt(fan_in))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels, ...) of all levels to maps (B, outputs, ...) of the same sizes."""
        found = []
        for level, x in enumerate(pyramid):
            for spatial, mixing, norm in self._hidden(level):
                x = self.activation(norm(mixing(spatial(x))))
            found.append(self.predict(x))
        return found

    def to_folded(self) -> FoldedLevels:
        """The same without BatchNorms: each level gets 1x1 convolutions with its own multiplied in."""
        subnets = []
        for level in range(self.levels):
            layers: list[nn.Module] = []
            for spatial, mixing, norm in self._hidden(level):
                layers.append(spatial)
                if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                    layers.append(FrozenNormConv2d(mixing, norm, conv_name="", norm_name="").to_conv())
                else:
                    layers += [mixing, norm]
                layers.append(self.activation)
            subnets.append(nn.Sequential(*layers, self.predict))
        return FoldedLevels(subnets)

    def _hidden(self, level: int) -> list[tuple[nn.Module, nn.Conv2d, nn.Module]]:
        """The hidden convolutions, depthwise and 1x1, with the norms of one level."""
        hidden = []
        for spatial, mixing, norms in zip(self.depthwise, self.pointwise, self.norms):
            assert isinstance(mixing, nn.Conv2d) and isinstance(norms, nn.ModuleList)
            hidden.append((spatial, mixing, norms[level]))
        return hidden


class FoldedLevels(nn.ModuleList):
    """One subnet a level; what they share is shared still."""

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        return [subnet(x) for subnet, x in zip(self, pyramid, strict=True)]


def depthwise(channels: int) -> nn.Conv2d:
    """A 3x3 convolution of each channel alone; at stride 1 TensorFlow's "SAME" padding is one pixel all around."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def with_norm(conv: nn.Module, conv_name: str, norm: Norm, momentum: float) -> tuple[nn.Module, nn.Module]:
    """A convolution and the norm behind it (to be called ``norm``), as one where the norm is frozen."""
    assert isinstance(conv, nn.Conv2d)
    behind = channel_norm(norm, conv.out_channels, momentum)
    if isinstance(behind, FrozenBatchNorm2d):
        return FrozenNormConv2d(conv, behind, conv_name=conv_name, norm_name="norm"), nn.Identity()
    return conv, behind


def channel_norm(norm: Norm, channels: int, momentum: float) -> nn.Module:
    """A norm layer with EfficientDet's eps; a frozen one starts as the identity and waits for weights."""
    if norm == "frozen_bn":
        return FrozenBatchNorm2d(channels, eps=NORM_EPS)
    layer = make_norm(norm, channels)
    if isinstance(layer, nn.BatchNorm2d):
        layer.eps, layer.momentum = NORM_EPS, momentum
    return layer


def make_activation(name: Activation) -> nn.Module:
    match name:
        case "silu":
            return nn.SiLU(inplace=True)
        case "relu6":
            return nn.ReLU6(inplace=True)
