"""Activations of a predicting detector put into the convolutions before them, and proof that nothing changed."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from detectors.base import Detector
from detectors.blocks.fused_conv import NONE, FusedConv2d, activation_of, can_fuse
from detectors.blocks.winograd import WinogradConv2d
from detectors.folding import largest_change, named, pairs_of, probe_batch, replay, watch

MOST_CHANGE = 1e-2
"""Of an output relative to the largest: what rounding never reaches, and a wrong fusion does."""


class FusingFailed(ValueError):
    """A detector's convolutions cannot take their activations in; says why."""


def fuse_convolutions(detector: Detector) -> None:
    """Makes every convolution a ``FusedConv2d``, with the activation that directly follows it, in place.

    Which follows which is seen as ``folding.fold_norms`` sees it. Winograd's convolutions stay as they are.

    Args:
        detector: predicting on the CPU, its ``network`` methods unchanged.
    Raises:
        FusingFailed: the detector cannot predict noise, or its outputs would change; it may then be half fused.
    """
    probe = probe_batch(detector)
    try:
        calls = watch(detector, probe)
        before = [x for call in calls for x in call.outputs]
        _fuse(detector, lambda: detector.predict(probe))
        after = replay(detector, calls)
    except Exception as error:
        raise FusingFailed(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    change = largest_change(after, before)
    if not change <= MOST_CHANGE:
        raise FusingFailed(f"its outputs would change by {change:.2g} of the largest")


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
