"""A detector made fast for prediction: BatchNorms folded, channels_last, fewer multiplications on CPUs, bf16 and
compilation on request."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from detectors.base import Detector
from detectors.blocks.fused_conv import is_available
from detectors.blocks.heads import DenseOutputs
from detectors.blocks.winograd import use_winograd
from detectors.folding import fold_norms
from detectors.fusing import fuse_convolutions
from detectors.probing import ChangeFailed, map_tensors


class OptimizationWarning(UserWarning):
    """An optimisation that was asked for is not in effect."""


def optimize(
    detector: Detector,
    *,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    compile: bool = False,
) -> Detector:
    """A copy of a detector that predicts faster; it cannot be trained, nor moved to another device.

    On CPUs convolutions take their activations in (``blocks.fused_conv``), unless a compiler is to do that, and in
    float32 wide 3 x 3 convolutions become Winograd's (``blocks.winograd``).

    Tolerances on the same batch of what each ``Detector.network`` method returns, relative to its largest value: in
    float32 1e-5 against float64, as the original's, so that the two are within 2e-5; in bfloat16 1e-1 against the
    original (its 8 bits round in each of some 60 layers; 5e-2 in the mean). After ``compile`` in float32: 1e-4 against
    the original, as sums are taken in another order.

    Args:
        detector: any; it is not changed.
        dtype: of the arithmetic in the ``network`` methods; ``auto`` takes bfloat16 where the processor or GPU has
            instructions for it. Scores and boxes are computed in float32 in any case.
        compile: run those methods through ``torch.compile``. Needs a C++ compiler on the CPU, and a minute at the
            first batch, and again when first another shape comes.
    Warns:
        OptimizationWarning: something asked for could not be done, and the result goes without it. Of compilation,
            this may come as late as the first batch.
    """
    fast = _folded(detector).requires_grad_(False)
    fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(fast.parameters()).device
    if dtype == "auto":
        dtype = "bfloat16" if has_fast_bfloat16(device) else "float32"
    elif dtype == "bfloat16" and not has_fast_bfloat16(device):
        _warn("this processor has no bfloat16 instructions; staying with float32, which is faster here")
        dtype = "float32"
    if compile:
        compile = _compiler_works(device)
    if device.type == "cpu":
        if dtype == "float32":
            use_winograd(fast)
        if not compile:
            fast = _fused(fast)
    if dtype == "bfloat16":
        fast.to(torch.bfloat16)
    for name in fast.network:
        method = getattr(fast, name)
        if compile:
            method = _Compiled(method, f"{type(detector).__name__}.{name}")
        if dtype == "bfloat16":
            method = _InBfloat16(method)
        if method is not getattr(fast, name):
            object.__setattr__(fast, name, method)
    return fast


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _folded(detector: Detector) -> Detector:
    folded = copy.deepcopy(detector).eval()
    try:
        fold_norms(folded)
    except ChangeFailed as error:
        _warn(f"the norms of {type(detector).__name__} are not folded: {error}", stacklevel=4)
        return copy.deepcopy(detector).eval()
    return folded


def _fused(detector: Detector) -> Detector:
    if not is_available():
        _warn("this build of torch has no oneDNN; activations stay beside their convolutions", stacklevel=4)
        return detector
    fused = copy.deepcopy(detector)
    try:
        fuse_convolutions(fused)
    except ChangeFailed as error:
        _warn(f"activations of {type(detector).__name__} stay beside its convolutions: {error}", stacklevel=4)
        return detector
    return fused


def _compiler_works(device: torch.device) -> bool:
    """Tries a trivial function, so that a machine without a compiler says so at once, not at the first batch."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except Exception as error:
        _warn(f"torch.compile failed, running without it: {_first_line(error)}", stacklevel=4)
        return False
    return True


def _add_one(x: Tensor) -> Tensor:
    return x + 1


class _Compiled:
    """A compiled method, and the plain one from when the compiler first fails on it."""

    def __init__(self, method: Callable[..., Any], name: str) -> None:
        self._plain, self._name = method, name
        self._compiled: Callable[..., Any] | None = torch.compile(method)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._compiled is None:
            return self._plain(*arguments, **named)
        try:
            return self._compiled(*arguments, **named)
        except Exception as error:
            failure = error
        result = self._plain(*arguments, **named)  # what is wrong with the arguments is raised here
        self._compiled = None
        _warn(f"torch.compile failed on {self._name}, running without it: {_first_line(failure)}")
        return result


class _InBfloat16:
    """A method whose module is bfloat16: tensors are cast on the way in, results back where they are used as they are.

    ``DenseOutputs`` stay: post-processing casts the few that survive.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        cast_arguments, cast_named = map_tensors((arguments, named), _to_bfloat16)
        result = self._method(*cast_arguments, **cast_named)
        return result if isinstance(result, DenseOutputs) else map_tensors(result, _to_float32)


def _to_bfloat16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16) if x.is_floating_point() else x


def _to_float32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _warn(message: str, stacklevel: int = 3) -> None:
    warnings.warn(message, OptimizationWarning, stacklevel=stacklevel)
