"""Dense heads: the same small subnets slid over every level of a pyramid.

Shape legend: B images, L levels, n anchors of a level (rows x columns x anchors a position), C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from detectors.blocks.norms import Norm, make_norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseOutputs:
    """What a dense head says of every anchor, level by level.

    Attributes:
        logits: L tensors (B, n, C).
        deltas: L tensors (B, n, 4), in the codec's units.
        shapes: height and width of each level's map.
        objectness: L tensors (B, n), logits of "there is an object" where the head has them (YOLO), or None.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    shapes: tuple[tuple[int, int], ...]
    objectness: list[Tensor] | None = None


class DenseHead(nn.Module):
    """RetinaNet's two subnets: ``depth`` 3x3 convolutions and one that predicts, shared over levels.

    Args:
        in_channels: of the pyramid.
        channels: width of the subnets.
        depth: convolutions before the predicting one.
        num_anchors: a position.
        num_classes: C, without background.
        prior: the probability that an untrained head gives every class everywhere.
        norm: behind each convolution; ``none`` is the paper's.
        separable: depthwise 3x3 + 1x1 instead of 3x3.
    Source: Lin et al. 2017, 1708.02002, section 4.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        depth: int,
        num_anchors: int,
        num_classes: int,
        prior: float,
        norm: Norm,
        separable: bool,
    ) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes
        self.class_subnet = subnet(in_channels, channels, depth, norm, separable)
        self.box_subnet = subnet(in_channels, channels, depth, norm, separable)
        width = channels if depth else in_channels
        self.class_logits = nn.Conv2d(width, num_anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(width, num_anchors * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # The paper's 0.01 is for plain 3x3 convolutions; a depthwise one has too few inputs to survive it.
                depthwise = module.groups > 1
                nn.init.normal_(module.weight, std=1 / 3 if depthwise else 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]

    def forward(self, pyramid: list[Tensor]) -> DenseOutputs:
        logits = [self.class_logits(self.class_subnet(p)) for p in pyramid]
        deltas = [self.box_deltas(self.box_subnet(p)) for p in pyramid]
        return DenseOutputs(
            logits=[anchors_last(x, self.num_classes) for x in logits],
            deltas=[anchors_last(x, 4) for x in deltas],
            shapes=tuple((p.shape[-2], p.shape[-1]) for p in pyramid),
        )


def anchors_last(x: Tensor, values: int) -> Tensor:
    """(B, A * values, H, W) to (B, H * W * A, values): a view where memory is channels_last, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


def subnet(in_channels: int, channels: int, depth: int, norm: Norm, separable: bool = False) -> nn.Sequential:
    """``depth`` 3x3 convolutions, each with its norm and a ReLU.

    Args: see ``DenseHead``.
    """
    layers: list[nn.Module] = []
    for i in range(depth):
        wide = in_channels if i == 0 else channels
        if separable:
            layers.append(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False))
        kernel = 1 if separable else 3
        layers.append(nn.Conv2d(wide, channels, kernel, padding=kernel // 2, bias=norm == "none"))
        if norm != "none":
            layers.append(make_norm(norm, channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
