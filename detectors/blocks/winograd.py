"""3 x 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4 x 4, 3 x 3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016 (arXiv 1509.09308). An output tile of 4 x 4 is
made of an input tile of 6 x 6: both tile and kernel go to 36 points, where a convolution is one product a pair of
channels, and all tiles and channels of a point are one matrix product. GPUs' libraries do this by themselves; the one
that torch uses on CPUs does not.

Legend: B images, C and D channels in and out, P tiles.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE, REACH = 4, 6  # pixels of an output tile, of an input tile
LEAST_CHANNELS = 256  # below, moving tiles costs more than multiplications save
_LEAST_TILES = 16  # of all images; for fewer the transformed kernel, four times as large, is not worth being read
_TILES_AT_ONCE = 256  # what they are turned into stays in the processor's cache
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity; with 2 and -2 the largest rounding error is 2.5 times as large


class WinogradConv2d(nn.Module):
    """A ``Conv2d`` of 3 x 3, stride 1, padding 1, for prediction on CPUs in float32.

    Sums are taken in another order than in ``Conv2d``; rounding differs by some 3e-6 of the largest output, which is
    what two implementations of ``Conv2d`` differ by.

    Args:
        conv: that it does the work of; see ``is_worth_it``. Maps of a few pixels are left to it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        to_tile, of_kernel, to_points = minimal_filter()
        in_points = torch.einsum("pi,qj,dcij->pqcd", of_kernel, of_kernel, conv.weight.detach().double())
        self.register_buffer("weight", in_points.reshape(REACH * REACH, conv.in_channels, -1).float())
        self.register_buffer("to_points", to_points.float())
        self.register_buffer("to_tile", to_tile.float())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H, W), channels_last."""
        images, _, height, width = x.shape
        if images * -(-height // TILE) * -(-width // TILE) < _LEAST_TILES:
            return self.conv(x)
        return _convolve(x, self.weight, self.conv.bias, self.to_points, self.to_tile)


# One operation for torch.compile: it has nothing to fuse in here, and would unroll the loops.
@torch.library.custom_op("boxmill::winograd_conv2d", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, to_points: Tensor, to_tile: Tensor) -> Tensor:
    height, width = x.shape[2:]
    down, across = -(-height // TILE), -(-width // TILE)
    out = _channels_last(x, weight.shape[2], down * TILE, across * TILE).permute(0, 2, 3, 1)
    images, rows = max(1, _TILES_AT_ONCE // (down * across)), max(1, _TILES_AT_ONCE // across)
    for part, made in zip(x.permute(0, 2, 3, 1).split(images), out.split(images)):
        padded = F.pad(part, (0, 0, 1, across * TILE - width + 1, 1, down * TILE - height + 1))
        for top in range(0, down, rows):
            band = made[:, top * TILE : (top + rows) * TILE]
            _convolve_padded(padded[:, top * TILE :][:, : band.shape[1] + 2], band, weight, bias, to_points, to_tile)
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _convolve_padded(
    x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, to_points: Tensor, to_tile: Tensor
) -> None:
    """(B, H + 2, W + 2, C) into (B, H, W, D)."""
    tiles = x.unfold(1, REACH, TILE).unfold(2, REACH, TILE).permute(4, 5, 0, 1, 2, 3)
    columns = (to_points @ tiles.reshape(REACH, -1)).view(REACH, REACH, -1)
    points = torch.bmm(to_points.expand(REACH, -1, -1), columns).view(REACH * REACH, -1, x.shape[3])
    rows = to_tile @ torch.bmm(points, weight).view(REACH, REACH, -1)
    images, down, across = tiles.shape[2:5]
    pixels = (to_tile @ rows.view(REACH, -1)).view(TILE, TILE, images, down, across, -1).permute(2, 3, 0, 4, 1, 5)
    target = out.unflatten(2, (across, TILE)).unflatten(1, (down, TILE))
    if bias is None:
        target.copy_(pixels)
    else:
        torch.add(pixels, bias, out=target)


@_convolve.register_fake
def _shape_of(x: Tensor, weight: Tensor, bias: Tensor | None, to_points: Tensor, to_tile: Tensor) -> Tensor:
    height, width = x.shape[2:]
    out = _channels_last(x, weight.shape[2], -(-height // TILE) * TILE, -(-width // TILE) * TILE)
    return out[:, :, :height, :width]


def _channels_last(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def use_winograd(module: nn.Module) -> int:
    """Puts ``WinogradConv2d`` where it is worth it, anywhere in a module; returns how many."""
    replaced = 0
    for name, child in module.named_children():
        if is_worth_it(child):
            setattr(module, name, WinogradConv2d(child))
            replaced += 1
        elif not isinstance(child, WinogradConv2d):
            replaced += use_winograd(child)
    return replaced


def is_worth_it(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution that ``WinogradConv2d`` does, and does faster on CPUs."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.padding == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS
    )


def minimal_filter() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of F(4, 3), float64: (4, 6) points to outputs, (6, 3) kernel to points, (6, 6) inputs to points.

    By Toom and Cook: outputs are coefficients of a product of polynomials, which is evaluated at points and
    interpolated; the filter is the transpose of that.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64)
    to_tile = torch.cat([points[None] ** torch.arange(TILE)[:, None], torch.zeros(TILE, 1, dtype=torch.float64)], 1)
    to_tile[-1, -1] = 1
    scale = torch.stack([torch.prod(p - points[points != p]) for p in points])
    of_kernel = torch.cat([points[:, None] ** torch.arange(3) / scale[:, None], torch.zeros(1, 3)])
    of_kernel[-1, -1] = 1
    to_points = torch.zeros(REACH, REACH, dtype=torch.float64)
    for row, point in enumerate(_POINTS):
        to_points[row, :-1] = _coefficients([other for other in _POINTS if other != point])
    to_points[-1] = _coefficients(list(_POINTS))
    return to_tile, of_kernel, to_points


def _coefficients(roots: list[float]) -> Tensor:
    """Of the product of (x - root), the lowest power first."""
    product = torch.ones(1, dtype=torch.float64)
    for root in roots:
        product = F.pad(product, (1, 0)) - root * F.pad(product, (0, 1))
    return product
