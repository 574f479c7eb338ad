"""The size of a detector: parameters, and multiply-adds of one image, counted without computing anything."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from detectors.base import Detector


def count_parameters(detector: nn.Module) -> int:
    """Numbers that training could change, frozen ones too; the constants of a frozen BatchNorm are none."""
    return sum(parameter.numel() for parameter in detector.parameters())


def count_multiply_adds(detector: Detector, size: int | tuple[int, int] | None = None) -> int:
    """Multiply-adds of a detector's network for one image: convolutions and matrix products, as papers count.

    The network is run on shapes alone (the meta device), so the largest takes a second and no memory.

    Args:
        detector: on any device, meta included; it is not changed.
        size: height and width of the padded input or one number for both, pixels; None is the model's own size,
            rounded up to its divisor.
    Raises:
        ValueError: a size below one pixel, or a detector that does not say what its arithmetic is, see
            ``Detector.arithmetic``.
    """
    if size is None:
        own = detector.preprocessing
        size = -(-own.size // own.divisor) * own.divisor
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"an input of {height} x {width} pixels; need at least 1 x 1")
    network = _Network(detector)
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(network, shapes, (torch.empty((1, 3, height, width), device="meta"),))
    finally:
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops()) // 2


class _Network(nn.Module):
    """A detector's arithmetic as a module's ``forward``."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> object:
        return self.detector.arithmetic(images)
