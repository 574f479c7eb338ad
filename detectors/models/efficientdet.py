"""EfficientDet: Tan, Pang & Le 2019, "EfficientDet: Scalable and Efficient Object Detection", 1911.09070.

Shape legend: B images, N anchors of all levels, n of one level, P positive anchors of the batch, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.base import Detector, Preprocessing
from detectors.blocks.anchors import AnchorGrid, AnchorStyle, grid_anchors
from detectors.blocks.backbones import Backbone
from detectors.blocks.best_box_matcher import BestBoxMatcher
from detectors.blocks.bifpn import FUSIONS, BiFPN, Fusion
from detectors.blocks.class_losses import ClassLoss, ClassLossOptions, dense_class_loss
from detectors.blocks.codecs import encode_boxes
from detectors.blocks.heads import DenseOutputs, anchors_last
from detectors.blocks.losses import BOX_LOSSES, BoxLoss, box_regression_loss
from detectors.blocks.norms import Norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.blocks.separable import ACTIVATIONS, Activation, LevelSubnet
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientDetOptions:
    """All choices; the defaults are the paper's, and for what it leaves open the official code's.

    Attributes:
        backbone: a timm ``features_only`` network.
        channels, layers: width and depth of the BiFPN; the heads are as wide.
        head_depth: hidden convolutions of each head.
        image_size: longer side, pixels.
        divisor: the padded batch is a multiple of this; 128 makes every level half of the one below it exactly.
        mean, std: of its preprocessing, 0..255.
        fusion: ``fast``, ``softmax`` or ``sum``, see ``WeightedSum``.
        activation: of BiFPN and heads.
        norm: of the backbone: frozen_bn, bn, sync_bn or gn.
        head_norm: of BiFPN and heads: bn, sync_bn, gn, or frozen_bn, which needs weights to start from.
        norm_momentum: of new BatchNorms; statistics settle after some 3 / momentum steps.
        drop_path: stochastic depth of the backbone's last block in training, falling to 0 at its first.
        frozen_stages: first stages of the backbone that never change, 0 to 5.
        anchor_scale, anchor_octaves, anchor_ratios, anchor_offset, anchor_style: see ``AnchorGrid``.
        match_iou, match_bipartite: see ``BestBoxMatcher``.
        loss, focal_alpha, focal_gamma, ce_alpha, ohem_batch, ohem_nms_iou, ohem_balanced, negatives_per_positive,
            min_negatives: of the classification; see ``ClassLossOptions``. Whatever is summed is divided by 1 + the
            positives of the batch.
        class_loss_weight: factor of the classification loss.
        prior: probability that the untrained classifier gives every class everywhere.
        box_loss: ``huber`` (the mean over the four numbers, knee at ``huber_delta``) or one of
            ``box_regression_loss``.
        huber_delta, smooth_l1_beta, box_loss_weight: of the box loss.
        score_threshold, topk, nms_iou, max_detections: see ``DenseSelection``; ``topk`` is of all levels together.
    """

    backbone: str
    channels: int
    layers: int
    head_depth: int
    image_size: int
    divisor: int = 128
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    fusion: Fusion = "fast"
    activation: Activation = "silu"
    norm: Norm = "frozen_bn"
    head_norm: Norm = "bn"
    norm_momentum: float = 0.01
    drop_path: float = 0.2
    frozen_stages: int = 0
    anchor_scale: float = 4.0
    anchor_octaves: int = 3
    anchor_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    anchor_offset: float = 0.5
    anchor_style: AnchorStyle = "efficientdet"
    match_iou: float = 0.5
    match_bipartite: bool = False
    loss: ClassLoss = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float = 1.5
    ce_alpha: float = 0.75
    ohem_batch: int = 128
    ohem_nms_iou: float = 0.5
    ohem_balanced: bool = False
    negatives_per_positive: float = 3.0
    min_negatives: int = 0
    class_loss_weight: float = 1.0
    prior: float = 0.01
    box_loss: BoxLoss | Literal["huber"] = "huber"
    huber_delta: float = 0.1
    smooth_l1_beta: float = 1.0
    box_loss_weight: float = 50.0
    score_threshold: float = 0.05
    topk: int = 5000
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_choices(
            self,
            fusion=FUSIONS,
            activation=ACTIVATIONS,
            anchor_style=("paper", "torchvision", "efficientdet"),
            box_loss=("huber", *BOX_LOSSES),
        )
        ClassLossOptions.of(self)  # checks its own
        if self.head_norm == "none":
            raise ValueError("head_norm is 'none', and a BiFPN needs one; choose bn, sync_bn, gn or frozen_bn")
        check_at_least(self, channels=1, layers=1, divisor=1, head_depth=0, image_size=32)
        if not 0 < self.prior < 1:
            raise ValueError(f"prior is {self.prior}; it must lie between 0 and 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must lie in [0, 1)")


class EfficientDet(Detector):
    """EfficientNet, BiFPN over P3-P7, a head for classes and one for boxes; see ``EfficientDetOptions``."""

    def __init__(self, num_classes: int, options: EfficientDetOptions) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(
            mean=options.mean, std=options.std, size=options.image_size, divisor=options.divisor
        )
        self.grid = AnchorGrid(
            scale=options.anchor_scale,
            octaves=options.anchor_octaves,
            ratios=options.anchor_ratios,
            offset=options.anchor_offset,
            style=options.anchor_style,
        )
        self.matcher = BestBoxMatcher(threshold=options.match_iou, bipartite=options.match_bipartite)
        self.class_loss = ClassLossOptions.of(options)
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.topk,
            topk_of="image",
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
        )
        self.backbone = Backbone(options.backbone, norm=options.norm, frozen_stages=options.frozen_stages)
        set_drop_path(self.backbone, options.drop_path)
        self.neck = BiFPN(
            self.backbone.channels,
            options.channels,
            layers=options.layers,
            fusion=options.fusion,
            norm=options.head_norm,
            norm_momentum=options.norm_momentum,
            activation=options.activation,
        )
        self.class_subnet: nn.Module = self._subnet(num_classes)
        self.box_subnet: nn.Module = self._subnet(4)
        bias = self.class_subnet.get_parameter("predict.pointwise.bias")
        nn.init.constant_(bias, -math.log((1 - options.prior) / options.prior))

    def _subnet(self, values: int) -> LevelSubnet:
        return LevelSubnet(
            self.options.channels,
            self.options.head_depth,
            len(self.grid.strides),
            self.grid.num_anchors * values,
            norm=self.options.head_norm,
            norm_momentum=self.options.norm_momentum,
            activation=self.options.activation,
        )

    def dense(self, images: Tensor) -> DenseOutputs:
        """Logits and deltas of every anchor of (B, 3, H, W) normalised images."""
        pyramid: list[Tensor] = self.neck(self.backbone(images))
        return DenseOutputs(
            logits=[anchors_last(x, self.num_classes) for x in self.class_subnet(pyramid)],
            deltas=[anchors_last(x, 4) for x in self.box_subnet(pyramid)],
            shapes=tuple((p.shape[-2], p.shape[-1]) for p in pyramid),
        )

    def anchors(self, outputs: DenseOutputs, images: Tensor) -> Tensor:
        """(N, 4) xyxy, model pixels."""
        return grid_anchors(self.grid, outputs.shapes, (images.shape[-2], images.shape[-1]), outputs.logits[0].device)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``classification`` (focal by default) and ``box_regression``, over 1 + the matched anchors of the batch."""
        outputs = self.dense(batch.images)
        anchors = self.anchors(outputs, batch.images)
        matched = torch.stack([self.matcher.match(t.boxes, t.iscrowd, anchors) for t in targets])
        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        first = torch.tensor([0, *(len(t) for t in targets[:-1])], device=matched.device).cumsum(0)
        objects = matched[image, anchor] + first[image]
        labels, boxes = torch.cat([t.labels for t in targets]), torch.cat([t.boxes for t in targets])
        classification = dense_class_loss(outputs.logits, matched, labels[objects], self.class_loss, anchors=anchors)
        deltas = torch.cat(outputs.deltas, 1)[image, anchor].float()
        regression = self._box_losses(deltas, boxes[objects].float(), anchors[anchor])
        count = 1 + len(objects)
        return {
            "classification": classification.sum() * (self.options.class_loss_weight / count),
            "box_regression": regression.sum() * (self.options.box_loss_weight / count),
        }

    def _box_losses(self, deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) loss of each matched anchor from (P, 4) deltas, true boxes and anchors."""
        kind, delta = self.options.box_loss, self.options.huber_delta
        if kind == "huber":
            return F.huber_loss(deltas, encode_boxes(boxes, anchors), delta=delta, reduction="none").mean(1)
        return box_regression_loss(deltas, boxes, anchors, kind=kind, beta=self.options.smooth_l1_beta)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        outputs = self.dense(batch.images)
        return select_detections(outputs, self.anchors(outputs, batch.images), batch, self.selection)


def set_drop_path(backbone: nn.Module, rate: float) -> None:
    """Stochastic depth of EfficientNet's blocks with a shortcut, from 0 at the first to ``rate`` behind the last."""
    blocks = [m for m in backbone.modules() if hasattr(m, "drop_path") and hasattr(m, "has_skip")]
    for i, block in enumerate(blocks):
        block.drop_path = DropPath(rate * i / len(blocks)) if block.has_skip and rate * i > 0 else nn.Identity()


def _scaled(backbone: str, size: int, channels: int, layers: int, head_depth: int) -> EfficientDetOptions:
    return EfficientDetOptions(
        backbone=backbone, image_size=size, channels=channels, layers=layers, head_depth=head_depth
    )


_D6 = EfficientDetOptions(
    backbone="tf_efficientnet_b6", image_size=1280, channels=384, layers=8, head_depth=5, fusion="sum"
)

EFFICIENTDETS: dict[str, EfficientDetOptions] = {
    "efficientdet_d0": _scaled("tf_efficientnet_b0", 512, 64, 3, 3),
    "efficientdet_d1": _scaled("tf_efficientnet_b1", 640, 88, 4, 3),
    "efficientdet_d2": _scaled("tf_efficientnet_b2", 768, 112, 5, 3),
    "efficientdet_d3": _scaled("tf_efficientnet_b3", 896, 160, 6, 4),
    "efficientdet_d4": _scaled("tf_efficientnet_b4", 1024, 224, 7, 4),
    "efficientdet_d5": _scaled("tf_efficientnet_b5", 1280, 288, 7, 4),
    "efficientdet_d6": _D6,
    "efficientdet_d7": replace(_D6, image_size=1536, anchor_scale=5.0),
    # EfficientDet-Lite's network, made to learn in few steps at any batch size: GroupNorm in BiFPN and heads, boxes
    # judged by GIoU.
    "efficientdet_lite0": EfficientDetOptions(
        backbone="tf_efficientnet_lite0",
        image_size=320,
        channels=64,
        layers=3,
        head_depth=3,
        divisor=32,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        fusion="sum",
        activation="relu6",
        head_norm="gn",
        drop_path=0.0,
        anchor_scale=3.0,
        box_loss="giou",
        box_loss_weight=2.0,
    ),
}
