"""Backbones: any timm ``features_only`` network, its norms replaced, its early stages frozen on request."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from detectors.blocks.norms import Norm, replace_norms


class Backbone(nn.Module):
    """C3, C4, C5: feature maps at strides 8, 16 and 32.

    Attributes:
        channels: of the three maps.
    """

    channels: tuple[int, ...]

    def __init__(self, name: str, *, norm: Norm = "frozen_bn", frozen_stages: int = 0) -> None:
        """Builds a backbone with random weights.

        Args:
            name: of a timm network that has ``features_only``.
            norm: ``frozen_bn``, ``bn`` or ``gn``, instead of the network's BatchNorms.
            frozen_stages: parameters of the first so many stages (stride 2, 4, 8, ... up to 5) never change.
        Raises:
            ValueError: timm has no such network, or an argument is out of range.
        """
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm {timm.__version__} has no network {name!r}; see timm.list_models()")
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages is {frozen_stages}; it must be 0 to 5")
        self.body = timm.create_model(name, pretrained=False, features_only=True, out_indices=(2, 3, 4))
        reductions = tuple(self.body.feature_info.reduction())
        if reductions != (8, 16, 32):
            raise ValueError(f"{name} has maps at strides {reductions}; a detector's backbone needs 8, 16, 32")
        self.channels = tuple(self.body.feature_info.channels())
        replace_norms(self.body, norm, _probe(self.body))
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.body(images)
        return features

    def _freeze(self, stages: int) -> None:
        """A stage is what is run until the map halves again; parameters are met in the order of the network."""
        if stages == 0:
            return
        stage_of = _stages(self.body)
        for name, parameter in self.body.named_parameters():
            if stage_of[name] <= stages:
                parameter.requires_grad_(False)


def _probe(network: nn.Module) -> Tensor:
    return torch.zeros((1, 3, 64, 64), device=next(network.parameters()).device)


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
