"""Normalisation as a choice: frozen BatchNorm, GroupNorm, BatchNorm of each worker or of all together.

A frozen BatchNorm is a constant scale and shift per channel. Behind a convolution it costs nothing when the scale
is multiplied into the (small) weight on every call instead of into the (large) activations, so that is how it is
kept here, in training too: the gradients are those of the two modules, the memory traffic is that of one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from detectors.blocks.sync_norm import SyncBatchNorm2d, to_sync

Norm = Literal["frozen_bn", "bn", "gn", "sync_bn", "none"]
NORMS: tuple[Norm, ...] = ("frozen_bn", "bn", "gn", "sync_bn", "none")
BACKBONE_NORMS: tuple[Norm, ...] = ("frozen_bn", "gn", "bn", "sync_bn")
HEAD_NORMS: tuple[Norm, ...] = ("none", "gn", "bn", "sync_bn")
"""Of necks and heads, whose norms have no statistics that could be frozen."""


class FrozenNormConv2d(nn.Module):
    """A convolution and the frozen BatchNorm behind it, as one convolution.

    Args:
        conv: the convolution; its weight stays trainable.
        norm: the BatchNorm behind it; becomes constant.
        conv_name, norm_name: what both were called in their network, so that foreign weights still find their place.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, conv_name: str, norm_name: str) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        self.same_padding = isinstance(conv, Conv2dSame)
        self.eps = norm.eps
        self.conv_name, self.norm_name = conv_name, norm_name
        scale, shift = scale_and_shift(norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded()
        padding = self.padding
        if self.same_padding:
            x, padding = pad_same(x, weight.shape[-2:], self.stride, self.dilation), (0, 0)
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # oneDNN has no fast bfloat16 gradient of depthwise kernels: 34 ms for a 5x5 that takes 11 in float32.
            with torch.autocast("cpu", enabled=False):
                y = F.conv2d(x.float(), weight, bias, self.stride, padding, self.dilation, self.groups)
                return y.to(x.dtype)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals both modules."""
        weight = self.weight * self.scale[:, None, None, None]
        bias = self.shift if self.bias is None else self.bias * self.scale + self.shift
        return weight, bias

    def to_conv(self) -> nn.Conv2d:
        """The plain convolution with the scale and shift multiplied in."""
        weight, bias = self.folded()
        make: Any = Conv2dSame if self.same_padding else nn.Conv2d
        conv: nn.Conv2d = make(
            weight.shape[1] * self.groups,
            weight.shape[0],
            tuple(weight.shape[-2:]),
            stride=self.stride,
            padding=0 if self.same_padding else self.padding,
            dilation=self.dilation,
            groups=self.groups,
            device="meta",
        )
        conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
        conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return conv

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}"


class GroupNorm(nn.GroupNorm):
    """GroupNorm that stays in float32 under autocast: more exact, and on the CPU five times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


class GroupNormAct(GroupNorm):
    """GroupNorm and the activation that came with the BatchNorm it replaces."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(num_groups(channels), channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The constant affine map, (C,) each, that a BatchNorm is when its statistics are frozen."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale.float(), shift.float()


def num_groups(channels: int) -> int:
    """The most groups, 32 at most (Wu & He 2018), that divide the channels and hold at least eight of them.

    At 256 channels that is the usual 32; in a narrow head, groups of two would normalise a 1x1 map to its signs.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 8 or g == 1))


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """A norm layer for a neck or a head.

    Raises:
        ValueError: an unknown norm, or ``frozen_bn``, which has no statistics to freeze in a new layer.
    """
    match norm:
        case "gn":
            return GroupNorm(num_groups(channels), channels)
        case "bn":
            return nn.BatchNorm2d(channels)
        case "sync_bn":
            return SyncBatchNorm2d(channels)
        case "none":
            return nn.Identity()
        case _:
            raise ValueError(f"norm {norm!r} is not one a neck or head can have; choose gn, bn, sync_bn or none")


def replace_norms(network: nn.Module, norm: Norm, probe: Tensor) -> None:
    """Turns every BatchNorm of a network into the norm asked for, in place.

    Args:
        network: any network of convolutions and BatchNorms (with or without activations, as timm has them).
        norm: ``frozen_bn``, ``bn`` (leaves all as it is), ``gn`` or ``sync_bn``.
        probe: (1, 3, H, W) input to run once, to see which BatchNorm stands behind which convolution.
    Raises:
        ValueError: an unknown norm.
    """
    match norm:
        case "bn":
            return
        case "gn":
            for name, module in _batch_norms(network):
                network.set_submodule(name, GroupNormAct(module.num_features, _activation(module)))
        case "sync_bn":
            for name, module in _batch_norms(network):
                network.set_submodule(name, to_sync(module))
        case "frozen_bn":
            _wake_sleeping_branches(network)
            pairs = conv_norm_pairs(network, probe)
            for conv_name, norm_name in pairs:
                conv, behind = network.get_submodule(conv_name), network.get_submodule(norm_name)
                assert isinstance(conv, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d)
                merged = FrozenNormConv2d(conv, behind, conv_name=conv_name, norm_name=norm_name)
                network.set_submodule(conv_name, merged)
                network.set_submodule(norm_name, _activation(behind))
            for name, module in _batch_norms(network):
                network.set_submodule(name, _frozen_alone(module))
        case _:
            raise ValueError(f"backbone norm {norm!r} is unknown; choose frozen_bn, bn, gn or sync_bn")


def conv_norm_pairs(network: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Names of each convolution and the BatchNorm that is fed by it, found by watching one forward pass."""
    made_by: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is only unique while its tensor lives
    pairs: list[tuple[str, str]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def remember(_m: nn.Module, _x: object, y: Tensor, name: str = name) -> None:
                made_by[id(y)] = name
                alive.append(y)

            hooks.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d):

            def pair(_m: nn.Module, x: tuple[Tensor, ...], name: str = name) -> None:
                if id(x[0]) in made_by:
                    pairs.append((made_by[id(x[0])], name))

            hooks.append(module.register_forward_pre_hook(pair))
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(probe)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return pairs


def _batch_norms(network: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]


def _wake_sleeping_branches(network: nn.Module) -> None:
    """Gives the norms that start at zero a scale of 1 / sqrt(how many there are).

    timm starts the last norm of each residual branch at zero and lets it grow; a frozen one would stay there, and
    with it the branch's convolutions without a gradient for ever. With this scale the sum over all branches is of
    the size of the input. Weights that are loaded later replace it.
    """
    weights = [m.weight for _, m in _batch_norms(network) if m.affine and not m.weight.is_meta]
    asleep = [weight for weight in weights if not weight.any()]
    with torch.no_grad():
        for weight in asleep:
            weight.fill_(len(asleep) ** -0.5)


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()


def _frozen_alone(norm: nn.BatchNorm2d) -> nn.Module:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return nn.Sequential(frozen, _activation(norm))
