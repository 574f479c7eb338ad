"""DarkNet-53 and the small network of YOLOv3-tiny: Redmon & Farhadi 2018, "YOLOv3", 1804.02767, table 1.

Modules are registered in the order of darknet's configuration files, so that ``Module.modules`` visits convolutions as
a ``.weights`` file stores them. Names: ``stem``, ``stages.<s>.down``, ``stages.<s>.blocks.<b>.narrow`` and ``.wide``,
each a ``ConvNormAct`` with ``conv`` and ``norm``.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from detectors.blocks.norms import FrozenNormConv2d, Norm, make_norm

LEAK = 0.1
"""Slope of the leaky ReLU below zero."""
_RESIDUALS = 23


class ConvNormAct(nn.Sequential):
    """Convolution without bias, norm, leaky ReLU: darknet's ``[convolutional]`` section.

    Args:
        norm: ``bn`` is the paper's; ``gn``, ``frozen_bn`` or ``none`` (then the convolution has a bias).
        gain: first scale of a frozen norm, which no statistics will correct.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, norm: Norm, gain: float = 1.0
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=norm == "none")
        nn.init.kaiming_normal_(conv.weight, a=LEAK)
        act = nn.LeakyReLU(LEAK, inplace=True)
        if norm == "frozen_bn":
            frozen = nn.BatchNorm2d(out_channels)
            nn.init.constant_(frozen.weight, gain)
            merged = FrozenNormConv2d(conv, frozen, conv_name="conv", norm_name="norm")
            super().__init__(OrderedDict[str, nn.Module](conv=merged, act=act))
        else:
            super().__init__(OrderedDict[str, nn.Module](conv=conv, norm=make_norm(norm, out_channels), act=act))


class Residual(nn.Module):
    """x + 3x3(1x1(x)), half as wide in the middle."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.narrow = ConvNormAct(channels, channels // 2, 1, norm=norm)
        # Frozen, 23 branches at full size would grow the activations with every addition.
        self.wide = ConvNormAct(channels // 2, channels, 3, norm=norm, gain=_RESIDUALS**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.wide(self.narrow(x))
        return y


class Stage(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels, then residuals."""

    def __init__(self, in_channels: int, num_blocks: int, norm: Norm) -> None:
        super().__init__()
        self.down = ConvNormAct(in_channels, 2 * in_channels, 3, stride=2, norm=norm)
        self.blocks = nn.Sequential(*(Residual(2 * in_channels, norm) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.down(x))
        return y


class DarkNet53(nn.Module):
    """52 convolutions without the classifier.

    Attributes:
        channels: of C3, C4 and C5, at strides 8, 16 and 32.
    """

    channels: tuple[int, ...] = (256, 512, 1024)
    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self, norm: Norm = "bn") -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 32, 3, norm=norm)
        self.stages = nn.ModuleList(
            Stage(channels, blocks, norm) for channels, blocks in ((32, 1), (64, 2), (128, 8), (256, 8), (512, 4))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to C3, C4, C5."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2:]


class TinyDarkNet(nn.Module):
    """The seven convolutions of YOLOv3-tiny (darknet's ``yolov3-tiny.cfg``), with max-pooling between them.

    Attributes:
        channels: of C4 and C5, at strides 16 and 32.
    """

    channels: tuple[int, ...] = (256, 1024)
    strides: tuple[int, ...] = (16, 32)

    def __init__(self, norm: Norm = "bn") -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128, 256, 512, 1024)
        self.convs = nn.ModuleList(ConvNormAct(i, o, 3, norm=norm) for i, o in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        # The sixth pooling keeps the size: its window reaches one row and one column over the edge.
        self.pool_in_place = nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, stride=1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to C4 and C5."""
        x = images
        for conv in list(self.convs)[:4]:
            x = self.pool(conv(x))
        c4 = self.convs[4](x)
        c5 = self.convs[6](self.pool_in_place(self.convs[5](self.pool(c4))))
        return [c4, c5]
