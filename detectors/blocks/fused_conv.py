"""Convolutions that write what follows them: activation and padding in the same pass over memory, on CPUs.

At one thread and some megabytes a map, what a network of separable convolutions waits for is memory. ``Conv2d`` writes
its output, the activation reads and writes it once more, padding for TensorFlow's "same" copies it, and 1 x 1
convolutions at one thread take a way of their own, which adds the bias by yet another pass. oneDNN, which torch uses on
CPUs, does all of it while the output is in the registers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

Activation = tuple[str, list[float]]
"""oneDNN's name of it, and its numbers."""
NONE: Activation = ("none", [])


def activation_of(module: nn.Module) -> Activation | None:
    """What ``FusedConv2d`` can do of an activation; None where it cannot."""
    match module:
        case nn.ReLU6():  # before Hardtanh, which it is one of
            return "hardtanh", [0.0, 6.0]
        case nn.ReLU():
            return "relu", []
        case nn.SiLU():
            return "swish", []
        case nn.Hardswish():
            return "hardswish", []
        case nn.LeakyReLU():
            return "leaky_relu", [float(module.negative_slope)]
        case _:
            return None


def can_fuse(module: nn.Module) -> bool:
    """Whether ``FusedConv2d`` does the work of a module."""
    return (
        type(module) in (nn.Conv2d, Conv2dSame)
        and isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and (type(module) is nn.Conv2d or module.dilation == (1, 1))
    )


def is_available() -> bool:
    """Whether this build of torch has oneDNN, and its convolutions with activations."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedConv2d(nn.Module):
    """A ``Conv2d`` or timm's ``Conv2dSame`` with the activation that follows it, for prediction on CPUs.

    Rounding differs by what two implementations of ``Conv2d`` differ by.

    Args:
        conv: see ``can_fuse``.
        activation: see ``activation_of``.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation = NONE) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._stride, self._dilation = list(conv.stride), list(conv.dilation)
        self._groups, self._activation = conv.groups, activation
        # None: as much as the output takes to have a side of ceil(input / stride).
        self._padding = None if isinstance(conv, Conv2dSame) else [int(pixels) for pixels in conv.padding]
        self._kernels: dict[tuple[int, int], Tensor] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedConv2d:
        self._kernels = {}  # made of the weight, which changes
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, h, w)."""
        padding, kernel = (self._padding, self.weight) if self._padding is not None else self._same(x)
        # In torch's layout: one that oneDNN likes for a map of this size can make it many times slower for another.
        name, numbers = self._activation
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, kernel, self.bias, padding, self._stride, self._dilation, self._groups, name, numbers, ""
        )
        return y

    def _same(self, x: Tensor) -> tuple[list[int], Tensor]:
        """Pixels around the map, and the kernel.

        An odd number of pixels has one more behind the map than before it, which oneDNN does not know: the same comes
        of one more on both sides and of a kernel with zeros for the one before.
        """
        missing = [
            max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
            for side, stride, kernel, dilation in zip(
                x.shape[2:], self._stride, self.weight.shape[2:], self._dilation, strict=True
            )
        ]
        top, left = (pixels % 2 for pixels in missing)
        if (top, left) not in self._kernels:
            kernel = F.pad(self.weight, (left, 0, top, 0)).contiguous(memory_format=torch.channels_last)
            self._kernels[top, left] = kernel
        return [(pixels + 1) // 2 for pixels in missing], self._kernels[top, left]
