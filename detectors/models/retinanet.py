"""RetinaNet: Lin et al. 2017, "Focal Loss for Dense Object Detection", 1708.02002.

Shape legend: B images, N anchors of all levels, n of one level, P positive anchors of the batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detectors.base import Detector, Preprocessing
from detectors.blocks.anchors import AnchorGrid, grid_anchors
from detectors.blocks.backbones import Backbone
from detectors.blocks.class_losses import ClassLoss, ClassLossOptions, dense_class_loss
from detectors.blocks.heads import DenseHead, DenseOutputs
from detectors.blocks.losses import BOX_LOSSES, BoxLoss, box_regression_loss
from detectors.blocks.matchers import IouMatcher
from detectors.blocks.necks import FeaturePyramid
from detectors.blocks.norms import BACKBONE_NORMS, HEAD_NORMS, Norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class RetinaNetOptions:
    """All choices; the defaults are the paper's, and for what it leaves open torchvision's (low_quality_matches).

    Attributes:
        backbone: a timm ``features_only`` network.
        mean, std: of its preprocessing, 0..255.
        image_size: longer side, pixels.
        norm: of the backbone: frozen_bn, bn, gn or sync_bn (over the batches of all workers).
        head_norm: of the subnets: none, gn, bn or sync_bn.
        neck_norm: of the pyramid: the same choice, or ``as_head``.
        frozen_stages: first stages of the backbone that never change, 0 to 5.
        fpn_channels, head_channels, head_depth, head_separable: the pyramid's width, the subnets' width, depth and
            whether their convolutions are depthwise separable.
        p6_source: P6 is made from C5 (paper) or P5 (torchvision).
        anchor_scale, anchor_octaves, anchor_ratios, anchor_offset, anchor_style: see ``AnchorGrid``.
        match_high, match_low, low_quality_matches: see ``IouMatcher``.
        loss, focal_alpha, focal_gamma, ce_alpha, ohem_batch, ohem_nms_iou, ohem_balanced, negatives_per_positive,
            min_negatives: of the classification; see ``ClassLossOptions``. Whatever is summed is divided by the
            positives, as ``normalize_by`` says.
        class_loss_weight: factor of the classification loss.
        prior: probability that the untrained classifier gives every class everywhere.
        box_loss, smooth_l1_beta, box_loss_weight: see ``box_regression_loss``.
        normalize_by: losses are divided by the positives of each image (paper) or of the batch.
        score_threshold, topk, nms_iou, max_detections: see ``DenseSelection``.
    """

    backbone: str
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    image_size: int = 640
    norm: Norm = "frozen_bn"
    head_norm: Norm = "none"
    neck_norm: Literal["as_head", "none", "gn", "bn", "sync_bn"] = "as_head"
    frozen_stages: int = 0
    fpn_channels: int = 256
    head_channels: int = 256
    head_depth: int = 4
    head_separable: bool = False
    p6_source: Literal["c5", "p5"] = "c5"
    anchor_scale: float = 4.0
    anchor_octaves: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0
    anchor_style: Literal["paper", "torchvision"] = "paper"
    match_high: float = 0.5
    match_low: float = 0.4
    low_quality_matches: bool = True
    loss: ClassLoss = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    ce_alpha: float = 0.75
    ohem_batch: int = 128
    ohem_nms_iou: float = 0.5
    ohem_balanced: bool = False
    negatives_per_positive: float = 3.0
    min_negatives: int = 0
    class_loss_weight: float = 1.0
    prior: float = 0.01
    box_loss: BoxLoss = "smooth_l1"
    smooth_l1_beta: float = 1.0
    box_loss_weight: float = 1.0
    normalize_by: Literal["image", "batch"] = "image"
    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 300

    def __post_init__(self) -> None:
        check_choices(
            self,
            p6_source=("c5", "p5"),
            anchor_style=("paper", "torchvision"),
            normalize_by=("image", "batch"),
            box_loss=BOX_LOSSES,
            norm=BACKBONE_NORMS,
            head_norm=HEAD_NORMS,
            neck_norm=("as_head", *HEAD_NORMS),
        )
        ClassLossOptions.of(self)  # checks its own
        if not 0 < self.prior < 1:
            raise ValueError(f"prior is {self.prior}; it must lie between 0 and 1")
        check_at_least(self, image_size=32)


class RetinaNet(Detector):
    """Backbone, pyramid P3-P7, one dense head; see ``RetinaNetOptions``."""

    def __init__(self, num_classes: int, options: RetinaNetOptions) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(mean=options.mean, std=options.std, size=options.image_size, divisor=32)
        self.grid = AnchorGrid(
            scale=options.anchor_scale,
            octaves=options.anchor_octaves,
            ratios=options.anchor_ratios,
            offset=options.anchor_offset,
            style=options.anchor_style,
        )
        self.matcher = IouMatcher(
            high=options.match_high, low=options.match_low, low_quality=options.low_quality_matches
        )
        self.class_loss = ClassLossOptions.of(options)
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.topk,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
        )
        self.backbone = Backbone(options.backbone, norm=options.norm, frozen_stages=options.frozen_stages)
        neck_norm = options.head_norm if options.neck_norm == "as_head" else options.neck_norm
        self.neck = FeaturePyramid(
            self.backbone.channels, options.fpn_channels, p6_source=options.p6_source, norm=neck_norm
        )
        self.head = DenseHead(
            in_channels=options.fpn_channels,
            channels=options.head_channels,
            depth=options.head_depth,
            num_anchors=self.grid.num_anchors,
            num_classes=num_classes,
            prior=options.prior,
            norm=options.head_norm,
            separable=options.head_separable,
        )

    def dense(self, images: Tensor) -> DenseOutputs:
        """Logits and deltas of every anchor of (B, 3, H, W) normalised images."""
        outputs: DenseOutputs = self.head(self.neck(self.backbone(images)))
        return outputs

    def anchors(self, outputs: DenseOutputs, images: Tensor) -> Tensor:
        """(N, 4) xyxy, model pixels."""
        return grid_anchors(self.grid, outputs.shapes, (images.shape[-2], images.shape[-1]), outputs.logits[0].device)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``classification`` (focal by default) and ``box_regression``, each normalised by matched anchors."""
        outputs = self.dense(batch.images)
        anchors = self.anchors(outputs, batch.images)
        matched = torch.stack([self.matcher.match(t.boxes, t.iscrowd, anchors) for t in targets])
        labels, boxes, first = _concatenate(targets)
        per_object = self._weights(matched)
        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        objects = matched[image, anchor] + first[image]
        classification = dense_class_loss(outputs.logits, matched, labels[objects], self.class_loss, anchors=anchors)
        regression = []
        levels = [logits.shape[1] for logits in outputs.logits]
        for deltas, level_matched, level_anchors in zip(
            outputs.deltas, matched.split(levels, 1), anchors.split(levels)
        ):
            image, anchor = (level_matched >= 0).nonzero(as_tuple=True)
            objects = level_matched[image, anchor] + first[image]
            of_anchor = box_regression_loss(
                deltas[image, anchor].float(),
                boxes[objects],
                level_anchors[anchor],
                kind=self.options.box_loss,
                beta=self.options.smooth_l1_beta,
            )
            regression.append((of_anchor * per_object[image]).sum())
        return {
            "classification": (classification * per_object).sum() * self.options.class_loss_weight,
            "box_regression": torch.stack(regression).sum() * self.options.box_loss_weight,
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        outputs = self.dense(batch.images)
        return select_detections(outputs, self.anchors(outputs, batch.images), batch, self.selection)

    def _weights(self, matched: Tensor) -> Tensor:
        """(B,) weight of each image's anchors, so that sums become means over matched anchors."""
        positives = (matched >= 0).sum(1)
        match self.options.normalize_by:
            case "image":
                return 1.0 / (positives.clamp(min=1) * len(matched))
            case "batch":
                return (1.0 / positives.sum().clamp(min=1)).expand(len(matched))


def _concatenate(targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and boxes of all images, and where each image's begin."""
    counts = torch.tensor([len(t) for t in targets])
    first = (counts.cumsum(0) - counts).to(targets[0].boxes.device)
    return torch.cat([t.labels for t in targets]), torch.cat([t.boxes for t in targets]).float(), first


RETINANETS: dict[str, RetinaNetOptions] = {
    "retinanet_r18_fpn": RetinaNetOptions(backbone="resnet18"),
    "retinanet_r34_fpn": RetinaNetOptions(backbone="resnet34"),
    "retinanet_r50_fpn": RetinaNetOptions(backbone="resnet50"),
    "retinanet_r101_fpn": RetinaNetOptions(backbone="resnet101"),
    # The paper's ResNeXt (section 5.3): 32 groups of 8 channels.
    "retinanet_x101_fpn": RetinaNetOptions(backbone="resnext101_32x8d"),
    # Light enough to train on two CPU cores: narrow, GroupNorm in the head so that it learns in few steps at any
    # batch size, anchors for images of half the paper's size.
    "retinanet_lite0": RetinaNetOptions(
        backbone="tf_efficientnet_lite0",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        image_size=320,
        head_norm="gn",
        fpn_channels=64,
        head_channels=64,
        head_depth=2,
        anchor_scale=3.0,
        anchor_offset=0.5,
        box_loss="giou",
        box_loss_weight=2.0,
        normalize_by="batch",
        max_detections=100,
    ),
}
