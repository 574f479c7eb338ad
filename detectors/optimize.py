"""A detector made fast for prediction: BatchNorms folded, channels_last, bf16 and compilation on request."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.blocks.norms import FrozenNormConv2d, conv_norm_pairs
from detectors.blocks.sync_norm import SyncBatchNorm2d
from detectors.models.retinanet import RetinaNet


class OptimizationWarning(UserWarning):
    """An optimisation that was asked for is not in effect."""


def optimize(
    detector: Detector,
    *,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    compile: bool = False,
) -> Detector:
    """A copy of a detector that predicts faster; it cannot be trained.

    Tolerances against the original, on the same batch, of a level's raw outputs relative to their largest: 1e-5 in
    float32, 1e-1 in bfloat16 (whose 8 bits round in each of some 60 layers; 3e-2 in the mean).

    Args:
        detector: any; it is not changed.
        dtype: of the network's arithmetic; ``auto`` takes bfloat16 where the processor or GPU has instructions for
            it. Scores and boxes are computed in float32 in any case.
        compile: run the network through ``torch.compile``. Needs a C++ compiler on the CPU, and a minute for each
            new shape of batch.
    Warns:
        OptimizationWarning: something asked for could not be done, and the result goes without it.
    """
    fast = copy.deepcopy(detector).eval().requires_grad_(False)
    fold_norms(fast)
    fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not isinstance(fast, RetinaNet):
        if dtype != "float32" or compile:
            _warn(f"{type(fast).__name__} can only be folded; dtype and compile are ignored")
        return fast
    if dtype == "auto":
        dtype = "bfloat16" if has_fast_bfloat16(next(fast.parameters()).device) else "float32"
    elif dtype == "bfloat16" and not has_fast_bfloat16(next(fast.parameters()).device):
        _warn("this processor has no bfloat16 instructions; staying with float32, which is faster here")
        dtype = "float32"
    if dtype == "bfloat16":
        _to_bfloat16(fast)
    if compile:
        _compile(fast)
    return fast


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def fold_norms(network: nn.Module) -> None:
    """Multiplies every frozen BatchNorm, and every BatchNorm of an evaluating network, into its convolution."""
    for name, module in list(network.named_modules()):
        if isinstance(module, FrozenNormConv2d):
            network.set_submodule(name, module.to_conv())
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fold_neighbours(module)
    body = getattr(getattr(network, "backbone", None), "body", None)
    if isinstance(body, nn.Module) and any(isinstance(m, nn.BatchNorm2d) for m in body.modules()):
        _fold_pairs(body)


def _fold_neighbours(layers: nn.Sequential) -> None:
    names = list(layers._modules)
    for first, second in pairwise(names):
        conv, norm = layers._modules[first], layers._modules[second]
        if type(conv) is nn.Conv2d and type(norm) in (nn.BatchNorm2d, SyncBatchNorm2d):
            assert isinstance(norm, nn.BatchNorm2d)
            layers._modules[first] = FrozenNormConv2d(conv, norm, conv_name=first, norm_name=second).to_conv()
            layers._modules[second] = norm.act if isinstance(norm, SyncBatchNorm2d) else nn.Identity()


def _fold_pairs(body: nn.Module) -> None:
    probe = torch.zeros((1, 3, 64, 64), device=next(body.parameters()).device)
    for conv_name, norm_name in conv_norm_pairs(body, probe):
        conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        merged = FrozenNormConv2d(conv, norm, conv_name=conv_name, norm_name=norm_name)
        body.set_submodule(conv_name, merged.to_conv())
        act = getattr(norm, "act", None)
        body.set_submodule(norm_name, act if isinstance(act, nn.Module) else nn.Identity())


def _to_bfloat16(detector: RetinaNet) -> None:
    """Network in bfloat16; the pixels are cast on the way in, post-processing casts what survives."""
    detector.to(torch.bfloat16)
    dense = detector.dense

    def in_bfloat16(images: Tensor) -> object:
        return dense(images.to(torch.bfloat16))

    detector.dense = in_bfloat16  # type: ignore[method-assign, assignment]


def _compile(detector: RetinaNet) -> None:
    eager = detector.dense
    compiled = torch.compile(eager)
    probe = torch.zeros((1, 3, 64, 64), device=next(detector.parameters()).device)
    try:
        with torch.no_grad():
            compiled(probe.to(memory_format=torch.channels_last))
    except Exception as error:
        _warn(f"torch.compile failed, running without it: {str(error).splitlines()[0]}")
        return
    detector.dense = compiled  # type: ignore[method-assign]


def _warn(message: str) -> None:
    warnings.warn(message, OptimizationWarning, stacklevel=3)
