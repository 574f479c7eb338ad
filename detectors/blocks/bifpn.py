"""BiFPN: a pyramid whose levels exchange features top-down and bottom-up, as often as wanted.

Shape legend: B images, F features of every level of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blocks.norms import Norm
from detectors.blocks.separable import Activation, ConvNorm, SeparableConv2d, make_activation

Fusion = Literal["fast", "softmax", "sum"]
FUSIONS: tuple[Fusion, ...] = ("fast", "softmax", "sum")


class BiFPN(nn.Module):
    """P3 to P7 from C3 to C5.

    P6 is a 1x1 convolution of C5 and a max-pool, P7 one more max-pool. Maps may have any size: each is half of the one
    below it, rounded up.

    Args:
        in_channels: of C3, C4 and C5.
        channels: F.
        layers: passes top-down and bottom-up.
        fusion, norm, norm_momentum, activation: see ``WeightedSum``, ``make_norm``, ``make_activation``.
    Source: Tan et al. 2019, 1911.09070, section 3, and the official code for P6 and the place of the activations.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        *,
        layers: int,
        fusion: Fusion,
        norm: Norm,
        norm_momentum: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.p6 = ConvNorm(in_channels[-1], channels, norm=norm, norm_momentum=norm_momentum)
        of_layer = [(*in_channels, channels, channels)] + [(channels,) * (len(in_channels) + 2)] * (layers - 1)
        self.layers = nn.ModuleList(
            BiFPNLayer(widths, channels, fusion=fusion, norm=norm, norm_momentum=norm_momentum, activation=activation)
            for widths in of_layer
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) at strides 8, 16, 32 to five maps (B, F, ...) at strides 8 to 128."""
        p6 = halve(self.p6(features[-1]))
        pyramid = [*features, p6, halve(p6)]
        for layer in self.layers:
            pyramid = layer(pyramid)
        return pyramid


class BiFPNLayer(nn.Module):
    """One pass from the top level down and one back up.

    Going up, a level is fed by its input, by what it became on the way down, and by the level below; the lowest level
    is done when the way down is, and the highest only takes part in the way up.

    Args:
        in_channels: of each level's input; what is not F wide yet is projected, anew for each node that takes it.
        channels: F.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        *,
        fusion: Fusion,
        norm: Norm,
        norm_momentum: float,
        activation: Activation,
    ) -> None:
        super().__init__()

        def node(width: int, inputs: int) -> FusionNode:
            return FusionNode(
                width,
                channels,
                inputs,
                fusion=fusion,
                norm=norm,
                norm_momentum=norm_momentum,
                activation=activation,
            )

        self.down = nn.ModuleList(node(width, 2) for width in in_channels[:-1])
        middle = [node(width, 3) for width in in_channels[1:-1]]
        self.up = nn.ModuleList([*middle, node(in_channels[-1], 2)])

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Five maps, lowest level first, to five (B, F, ...) of the same sizes."""
        down = list(pyramid)
        for i in reversed(range(len(down) - 1)):
            down[i] = self.down[i]([pyramid[i], enlarge(down[i + 1], pyramid[i])])
        up = [down[0]]
        for i, node in enumerate(self.up, start=1):
            between = [] if down[i] is pyramid[i] else [down[i]]
            up.append(node([pyramid[i], *between, halve(up[-1])]))
        return up


class FusionNode(nn.Module):
    """A weighted sum, an activation and a separable convolution; its first input is projected where it must be."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        inputs: int,
        *,
        fusion: Fusion,
        norm: Norm,
        norm_momentum: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        if in_channels != channels:
            self.project = ConvNorm(in_channels, channels, norm=norm, norm_momentum=norm_momentum)
        self.fuse = WeightedSum(inputs, fusion)
        self.activation = make_activation(activation)
        self.conv = SeparableConv2d(channels, channels, norm=norm, norm_momentum=norm_momentum)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fused: Tensor = self.conv(self.activation(self.fuse([self.project(maps[0]), *maps[1:]])))
        return fused


class WeightedSum(nn.Module):
    """sum_i w_i * I_i of maps of one shape, by running sums: no stack of them is ever made.

    Args:
        inputs: how many maps.
        kind: ``fast``: w_i = ReLU(v_i) / (1e-4 + sum_j ReLU(v_j)) with learned v; ``softmax``: w = softmax(v);
            ``sum``: all weights are 1.
    Source: Tan et al. 2019, 1911.09070, section 3.3.
    """

    def __init__(self, inputs: int, kind: Fusion) -> None:
        super().__init__()
        self.kind = kind
        self.weights = None if kind == "sum" else nn.Parameter(torch.ones(inputs))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if self.weights is None:
            total = maps[0] + maps[1]
            for further in maps[2:]:
                total += further
            return total
        weights = self.normalised().to(maps[0].dtype)
        total = maps[0] * weights[0]
        for i in range(1, len(maps)):
            total = torch.addcmul(total, maps[i], weights[i])
        return total

    def normalised(self) -> Tensor:
        """The weight of each map."""
        assert self.weights is not None
        match self.kind:
            case "fast":
                positive = F.relu(self.weights)
                return positive / (positive.sum() + 1e-4)
            case "softmax":
                return self.weights.softmax(0)
            case "sum":
                return torch.ones_like(self.weights)
            case _:
                assert_never(self.kind)

    def extra_repr(self) -> str:
        return self.kind


def halve(x: Tensor) -> Tensor:
    """3x3 max-pool of stride 2 with TensorFlow's "SAME" padding: a map of half the size, rounded up.

    TensorFlow pads an even side at its end only, which is what ``ceil_mode`` does without a padded copy.
    """
    return F.max_pool2d(x, 3, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2), ceil_mode=True)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbours at the height and width of another map."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
