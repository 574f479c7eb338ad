"""Necks: from a backbone's maps to a pyramid of maps of one width."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blocks.norms import Norm, make_norm


class FeaturePyramid(nn.Module):
    """P3 to P7 from C3 to C5, or P2 to P6 from C2 to C5.

    1x1 lateral convolutions, nearest x2 top-down additions, 3x3 outputs (Lin et al. 2017, 1612.03144); P6 is a 3x3
    stride-2 convolution on C5 (RetinaNet, 1708.02002) or on P5 (torchvision), P7 = 3x3 stride 2 on ReLU(P6). With
    ``pool`` every second cell of P5 is P6, and there is no P7 (the R-CNN line).
    """

    def __init__(
        self, in_channels: tuple[int, ...], channels: int, *, p6_source: Literal["c5", "p5", "pool"], norm: Norm
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv_norm(c, channels, 1, norm) for c in in_channels)
        self.output = nn.ModuleList(_conv_norm(channels, channels, 3, norm) for _ in in_channels)
        self.p6_source = p6_source
        if p6_source != "pool":
            self.p6 = nn.Conv2d(in_channels[-1] if p6_source == "c5" else channels, channels, 3, 2, 1)
            self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i), each stride twice the one before, to as many maps (B, channels, ...) and the coarser."""
        merged = [lateral(c) for lateral, c in zip(self.lateral, features)]
        for i in range(len(merged) - 1, 0, -1):
            above = F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
            merged[i - 1] = merged[i - 1] + above
        pyramid = [output(m) for output, m in zip(self.output, merged)]
        if self.p6_source == "pool":
            return [*pyramid, pyramid[-1][..., ::2, ::2]]
        p6 = self.p6(features[-1] if self.p6_source == "c5" else pyramid[-1])
        return [*pyramid, p6, self.p7(F.relu(p6))]


def _conv_norm(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(conv, make_norm(norm, out_channels))
