"""BatchNorms of an evaluating detector multiplied into the convolutions before them, and proof that nothing changed."""

from __future__ import annotations

from collections.abc import Callable

from timm.layers import Conv2dSame
from torch import nn

from detectors.base import Detector
from detectors.blocks.norms import FrozenNormConv2d
from detectors.blocks.separable import LevelSubnet
from detectors.probing import change_in_place, named, pairs_of


def fold_norms(detector: Detector) -> None:
    """Multiplies every BatchNorm that directly follows a convolution into it, in place: frozen and evaluating ones.

    Which norm follows which convolution is seen by predicting one image of noise; what is used twice is folded only
    where both always come together. The raw outputs of the same image are compared afterwards.

    Args:
        detector: in ``eval`` mode, its ``network`` methods unchanged.
    Raises:
        ChangeFailed: the detector cannot predict the noise, or its outputs would change; it may then be half folded.
    """

    def fold(run: Callable[[], object]) -> None:
        _fold_modules(detector)
        _fold_pairs(detector, run)

    change_in_place(detector, fold)


def _fold_modules(network: nn.Module) -> None:
    """What knows by itself how it is folded."""
    for module, names in named(network):
        folded: nn.Module
        match module:
            case FrozenNormConv2d():
                folded = module.to_conv()
            case LevelSubnet():
                folded = module.to_folded()
            case _:
                continue
        for name in names:
            network.set_submodule(name, folded)


def _fold_pairs(network: nn.Module, run: Callable[[], object]) -> None:
    names_of = {id(module): names for module, names in named(network)}
    for conv, norm in pairs_of(network, run, _is_convolution, _is_evaluating_norm):
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded = FrozenNormConv2d(conv, norm, conv_name="", norm_name="").to_conv()
        act = getattr(norm, "act", None)
        for name in names_of[id(conv)]:
            network.set_submodule(name, folded)
        for name in names_of[id(norm)]:
            network.set_submodule(name, act if isinstance(act, nn.Module) else nn.Identity())


def _is_evaluating_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _is_convolution(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, Conv2dSame)  # others may do something of their own with their weights
