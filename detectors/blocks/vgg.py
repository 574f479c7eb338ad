"""VGG as SSD has it: fc6 and fc7 as convolutions, and ever smaller maps behind them.

Shape legend: B images, H x W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blocks.norms import Norm, make_norm

VGG16_STAGES: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage. Source: Simonyan & Zisserman 2014, 1409.1556, table 1, column D."""

ExtraLayer = Literal["halve", "valid", "last"]
EXTRA_LAYERS: tuple[ExtraLayer, ...] = ("halve", "valid", "last")
_EXTRA_WIDTHS = ((256, 512), (128, 256))  # of the first extra layer, and of all others: bottleneck, output


class VggFeatures(nn.Module):
    """The five stages of VGG-16, numbered as in torchvision's ``vgg16().features``.

    The third pool rounds up, so that 300 pixels make a map of 38 cells (of 37 otherwise); the fifth is left out.
    """

    def __init__(self, *, width: float, norm: Norm) -> None:
        super().__init__()
        self.channels = tuple(scaled(channels, width) for channels, _ in VGG16_STAGES)
        layers: list[nn.Module] = []
        self.cuts: list[int] = []  # where each stage ends, its pool not included
        before = 3
        for stage, (channels, (_, depth)) in enumerate(zip(self.channels, VGG16_STAGES)):
            for _ in range(depth):
                layers += conv_norm_relu(before, channels, 3, norm=norm)
                before = channels
            self.cuts.append(len(layers))
            if stage < 4:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=stage == 2))
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to conv4_3 at stride 8 and conv5_3 at stride 16."""
        conv4 = self.features[: self.cuts[3]](images)
        return [conv4, self.features[self.cuts[3] :](conv4)]


class SsdVgg16(nn.Module):
    """The maps that SSD predicts on: conv4_3 (L2-normalised), fc7, and one of each extra layer.

    Args:
        width: channels relative to the paper's.
        norm: behind each convolution but those of ``l2_norm``; ``none`` is the paper's.
        extra_layers: 1x1 and then ``halve``: 3x3, stride 2; ``valid``: 3x3 without padding, the map loses 2 cells a
            side; ``last``: 4x4, padding 1, the map loses 1.
        frozen_stages: first stages of VGG that never change, 0 to 5.
    Source: Liu et al. 2015, 1512.02325, section 3 and figure 2; the à trous fc6 is Chen et al. 2014, 1412.7062.
    """

    def __init__(
        self, *, width: float, norm: Norm, extra_layers: tuple[ExtraLayer, ...], frozen_stages: int = 0
    ) -> None:
        super().__init__()
        self.body = VggFeatures(width=width, norm=norm)
        conv4, conv5 = self.body.channels[3:]
        self.l2_norm = L2Norm(conv4)
        fc = scaled(1024, width)
        self.fc = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1),
            *conv_norm_relu(conv5, fc, 3, norm=norm, padding=6, dilation=6),
            *conv_norm_relu(fc, fc, 1, norm=norm),
        )
        self.extra_layers = extra_layers
        self.extra = nn.ModuleList()
        self.channels = [conv4, fc]
        for i, kind in enumerate(extra_layers):
            narrow, wide = (scaled(channels, width) for channels in _EXTRA_WIDTHS[min(i, 1)])
            self.extra.append(
                nn.Sequential(
                    *conv_norm_relu(self.channels[-1], narrow, 1, norm=norm),
                    *_extra_conv(kind, narrow, wide, norm),
                )
            )
            self.channels.append(wide)
        for part in (self.fc, self.extra):
            for conv in (m for m in part.modules() if isinstance(m, nn.Conv2d)):
                nn.init.xavier_uniform_(conv.weight)
        self._frozen = self.body.cuts[frozen_stages - 1] if frozen_stages else 0
        self.body.features[: self._frozen].requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to two maps and one for each extra layer.

        Raises:
            ValueError: the images are too small for the last maps.
        """
        map_sizes(min(images.shape[-2:]), self.extra_layers)
        conv4, conv5 = self.body(images)
        maps = [self.l2_norm(conv4), self.fc(conv5)]
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        return maps

    def train(self, mode: bool = True) -> SsdVgg16:
        super().train(mode)
        self.body.features[: self._frozen].eval()  # statistics of frozen norms stay as they are, too
        return self


class L2Norm(nn.Module):
    """Each cell's vector of channels made as long as 1, then scaled channel by channel; the scales start at 20.

    Source: Liu et al. 2015, 1506.04579 (ParseNet).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None, None] * F.normalize(x, dim=1)


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    norm: Norm,
    stride: int = 1,
    padding: int = -1,
    dilation: int = 1,
) -> list[nn.Module]:
    """A convolution (padded to keep the size unless told otherwise), its norm unless that is ``none``, and a ReLU."""
    padding = kernel // 2 if padding < 0 else padding
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return [conv, *([] if norm == "none" else [make_norm(norm, out_channels)]), nn.ReLU(inplace=True)]


def scaled(channels: int, width: float) -> int:
    """Channels of a narrower or wider network, a multiple of 8."""
    return max(8, round(channels * width / 8) * 8)


def map_sizes(image_size: int, extra_layers: tuple[ExtraLayer, ...]) -> list[int]:
    """Cells along a side of each map of ``SsdVgg16`` for an image of this side.

    Raises:
        ValueError: a map would have no cell left.
    """
    conv4 = -(-(image_size // 4) // 2)
    sizes = [conv4, conv4 // 2]
    for kind in extra_layers:
        size = sizes[-1]
        sizes.append({"halve": (size + 1) // 2, "valid": size - 2, "last": size - 1}[kind])
    if min(sizes) < 1:
        raise ValueError(
            f"images of {image_size} px leave no cell on map {1 + [s < 1 for s in sizes].index(True)} of "
            f"{len(sizes)}; take a larger image_size, or extra_layers that shrink less"
        )
    return sizes


def _extra_conv(kind: ExtraLayer, narrow: int, wide: int, norm: Norm) -> list[nn.Module]:
    match kind:
        case "halve":
            return conv_norm_relu(narrow, wide, 3, norm=norm, stride=2)
        case "valid":
            return conv_norm_relu(narrow, wide, 3, norm=norm, padding=0)
        case "last":
            return conv_norm_relu(narrow, wide, 4, norm=norm, padding=1)
