"""Activations of a predicting detector put into the convolutions before them, and proof that nothing changed."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from detectors.base import Detector
from detectors.blocks.fused_conv import NONE, FusedConv2d, activation_of, can_fuse
from detectors.blocks.winograd import WinogradConv2d
from detectors.probing import change_in_place, named, pairs_of


def fuse_convolutions(detector: Detector) -> None:
    """Makes every convolution a ``FusedConv2d``, with the activation that directly follows it, in place.

    Which follows which is seen by predicting one image of noise. Winograd's convolutions stay as they are.

    Args:
        detector: predicting on the CPU, its ``network`` methods unchanged.
    Raises:
        ChangeFailed: the detector cannot predict the noise, or its outputs would change; it may then be half fused.
    """
    change_in_place(detector, lambda run: _fuse(detector, run))


def _fuse(network: nn.Module, run: Callable[[], object]) -> None:
    names_of = dict(named(network))
    activations = dict(pairs_of(network, run, can_fuse, lambda module: activation_of(module) is not None))
    kept = {module.conv for module in network.modules() if isinstance(module, WinogradConv2d)}
    for conv, names in names_of.items():
        if not can_fuse(conv) or conv in kept:
            continue
        assert isinstance(conv, nn.Conv2d)
        activation = activations.get(conv)
        does = None if activation is None else activation_of(activation)
        fused = FusedConv2d(conv, does or NONE)
        for name in names:
            network.set_submodule(name, fused)
        for name in [] if activation is None else names_of[activation]:
            network.set_submodule(name, nn.Identity())
