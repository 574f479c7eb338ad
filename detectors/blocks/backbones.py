"""Backbones: any timm ``features_only`` network, its norms replaced, its early stages frozen on request.

What the detectors are made with: ``vgg16`` (and ``vgg16_bn``), ``resnet18`` to ``resnet101``, ``resnext101_32x8d``,
``darknet53``, ``tf_efficientnet_b0`` to ``b7`` and ``tf_efficientnet_lite0``, ``mobilenetv3_large_100``; every other
network that yields maps at the strides asked for does as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from detectors.blocks.norms import Norm, replace_norms

PROBE_SIZE = 64
"""Side of the square input that is run once to see what a network does."""


class Backbone(nn.Module):
    """Feature maps at some strides: C2 at 4, C3 at 8, C4 at 16, C5 at 32.

    With ``held_back`` the stage behind the last of them is there too, but run on pooled regions alone.

    Of VGG16, whose stages end before their pools, C3 is conv4_3, C4 is conv5_3 and C5 the last pool.

    Attributes:
        strides: of the maps.
        channels: of the maps.
        held_back_channels: of what ``run_held_back`` returns; 0 without such a stage.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    held_back_channels: int = 0

    def __init__(
        self,
        name: str,
        *,
        norm: Norm = "frozen_bn",
        frozen_stages: int = 0,
        strides: tuple[int, ...] = (8, 16, 32),
        held_back: bool = False,
    ) -> None:
        """Builds a backbone with random weights.

        Args:
            name: of a timm network that has ``features_only``.
            norm: ``frozen_bn``, ``bn``, ``gn`` or ``sync_bn``, instead of the network's BatchNorms; what has none,
                like ``vgg16``, or LayerNorms, like ``convnext_tiny``, stays as it is.
            frozen_stages: parameters and BatchNorm statistics of the first so many stages (stride 2, 4, 8, ... up to
                5) never change.
            strides: of the maps, ascending; what lies behind the last one is left out of the network.
            held_back: the stage of twice the last stride is kept for ``run_held_back``.
        Raises:
            ValueError: timm has no such network, it has no such maps, or an argument is out of range; or what is to be
                held back is no stage of its own, as it is in ResNets.
        """
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm {timm.__version__} has no network {name!r}; see timm.list_models()")
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages is {frozen_stages}; it must be 0 to 5")
        if not strides or list(strides) != sorted(set(strides)):
            raise ValueError(f"strides {strides} must ascend, such as (8, 16, 32)")
        self.strides = strides
        strides = (*strides, 2 * strides[-1]) if held_back else strides
        self.body = _features_only(name, strides)
        feature_info: Any = self.body.feature_info
        self.channels = tuple(feature_info.channels())
        _check_maps(name, self.body, strides, self.channels)
        self._held_back = ""
        if held_back:
            self._held_back = _last_stage(name, self.body)
            *channels, self.held_back_channels = self.channels
            self.channels = tuple(channels)
        replace_norms(self.body, norm, _probe(self.body))
        self._frozen_norms: list[str] = []
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one map (B, channels[i], H / strides[i], W / strides[i]) for each stride."""
        if not self._held_back:
            features: list[Tensor] = self.body(images)
            return features
        maps, x = [], images
        taps: Any = self.body.return_layers
        for name, stage in self.body.named_children():
            if name == self._held_back:
                break
            x = stage(x)
            if name in taps:
                maps.append(x)
        return maps

    def run_held_back(self, pooled: Tensor) -> Tensor:
        """(R, channels[-1], s, s) to (R, held_back_channels, s / 2, s / 2) by the stage that was held back."""
        features: Tensor = self.body.get_submodule(self._held_back)(pooled)
        return features

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for name in self._frozen_norms:
            self.body.get_submodule(name).eval()
        return self

    def _freeze(self, stages: int) -> None:
        """A stage is what is run until the map halves again; parameters are met in the order of the network."""
        if stages == 0:
            return
        stage_of = _stages(self.body)
        for name, parameter in self.body.named_parameters():
            if stage_of.get(name, 6) <= stages:
                parameter.requires_grad_(False)
        self._frozen_norms = [
            name
            for name, module in self.body.named_modules()
            if isinstance(module, nn.BatchNorm2d) and stage_of.get(f"{name}.weight", 6) <= stages
        ]
        self.train(self.training)


def _features_only(name: str, strides: tuple[int, ...]) -> nn.Module:
    """The network up to its map of the last stride, giving the last map of each stride."""
    usual = tuple(stride.bit_length() - 2 for stride in strides)
    try:
        body = timm.create_model(name, pretrained=False, features_only=True, out_indices=usual)
        if tuple(body.feature_info.reduction()) == strides:
            return body  # type: ignore[no-any-return]
    except (IndexError, AssertionError):
        pass  # a network with fewer maps, or with others
    try:
        with torch.device("meta"):
            reductions = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"timm's {name} cannot give its feature maps: {error}") from error
    if lacking := [stride for stride in strides if stride not in reductions]:
        raise ValueError(f"{name} has maps at strides {tuple(reductions)}; {lacking} are needed")
    last = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)
    chosen: nn.Module = timm.create_model(name, pretrained=False, features_only=True, out_indices=last)
    return chosen


def _last_stage(name: str, body: nn.Module) -> str:
    """The child that makes the last map from the one before."""
    children, taps = [child for child, _ in body.named_children()], list(getattr(body, "return_layers", ()))
    if len(taps) < 2 or children[-2:] != taps[-2:]:
        raise ValueError(f"the last stage of {name} cannot be run on regions; choose a ResNet, such as resnet50")
    return taps[-1]


def _check_maps(name: str, body: nn.Module, strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Some networks want one input size only, or give maps with the channels last."""
    was_training = body.training
    try:
        with torch.no_grad():
            maps = body.eval()(_probe(body))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} does not take images of any size: {error}") from error
    finally:
        body.train(was_training)
    expected = [(1, c, PROBE_SIZE // s, PROBE_SIZE // s) for c, s in zip(channels, strides)]
    if (shapes := [tuple(m.shape) for m in maps]) != expected:
        raise ValueError(f"{name} gives maps {shapes} of a {PROBE_SIZE} px image; a backbone gives {expected}")


def in_names_of(body: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole network's tensors in the names of its ``features_only`` form.

    timm lifts the members of a network's sequences out of them: VGG's ``features.0`` is ``features_0`` there.
    """
    children = dict(body.named_children())
    named = {}
    for key, value in state.items():
        first, *rest = key.split(".")
        lifted = "_".join([first, *rest[:1]])
        named[".".join([lifted, *rest[1:]]) if first not in children and lifted in children else key] = value
    return named


def _probe(network: nn.Module) -> Tensor:
    return torch.zeros((1, 3, PROBE_SIZE, PROBE_SIZE), device=next(network.parameters()).device)


def _stages(network: nn.Module) -> dict[str, int]:
    """Stage 1..5 of each parameter: log2 of the stride of the largest map its module has written."""
    probe = _probe(network)
    stage: dict[str, int] = {}
    hooks = []
    for module_name, module in network.named_modules():
        names = [f"{module_name}.{p}" for p, _ in module.named_parameters(recurse=False)]
        if not names:
            continue

        def note(_m: nn.Module, _x: object, y: Tensor, names: list[str] = names) -> None:
            for name in names:
                stage[name] = (probe.shape[-1] // y.shape[-1]).bit_length() - 1

        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        network.eval()(probe)
    network.train()
    for hook in hooks:
        hook.remove()
    return stage
