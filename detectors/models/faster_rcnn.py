"""Faster R-CNN: Ren et al. 2015, 1506.01497; with a pyramid: Lin et al. 2017, 1612.03144.

Shape legend: B images, N anchors of all levels, R regions of all images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from detectors.base import Detector, Preprocessing
from detectors.blocks.anchors import AnchorGrid, grid_anchors
from detectors.blocks.backbones import Backbone
from detectors.blocks.box_heads import (
    BoxHead,
    BoxSelection,
    Detected,
    box_head_losses,
    select_boxes,
    to_predictions,
    vgg_classifier_layers,
)
from detectors.blocks.heads import DenseOutputs
from detectors.blocks.matchers import IouMatcher
from detectors.blocks.necks import FeaturePyramid
from detectors.blocks.norms import BACKBONE_NORMS, HEAD_NORMS, Norm
from detectors.blocks.roi import RoiPooler, RoiPooling, RoiSampling, SampledRois, sample_rois
from detectors.blocks.rpn import ProposalSelection, RpnHead, RpnTraining, proposal_losses, select_proposals
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterRcnnOptions:
    """All choices; the defaults are those of the pyramid's paper and, for what it leaves open, torchvision's.

    Attributes:
        backbone: a timm ``features_only`` network.
        mean, std: of its preprocessing, 0..255.
        image_size: longer side, pixels.
        norm: of the backbone: frozen_bn, bn, gn or sync_bn (over the batches of all workers).
        neck_norm, head_norm: of the pyramid and of the box head's convolutions: none, gn, bn or sync_bn.
        frozen_stages: first stages of the backbone that never change, 0 to 5.
        strides: of the backbone's maps. Several make a pyramid of ``fpn_channels`` and a coarser map on top of it, on
            which there are proposals alone; one is used as it is.
        fpn_channels: the pyramid's width.
        anchor_scale, anchor_octaves, anchor_doublings, anchor_ratios, anchor_offset, anchor_style: see ``AnchorGrid``.
        rpn_depth: 3x3 convolutions of the proposal head.
        rpn_match_high, rpn_match_low: IoU with an object from which on, and below which, an anchor is one, and none.
        rpn_batch, rpn_positive_fraction, rpn_inside_only: see ``RpnTraining``.
        rpn_topk_train, rpn_topk, rpn_nms_iou, proposals_train, proposals: see ``ProposalSelection``.
        roi_pooling, roi_size, roi_samples, roi_aligned: see ``RoiPooler``.
        roi_stage: the backbone's stage behind the one map runs on the pooled regions, and what is averaged of it is
            predicted from (C4: He et al. 2015, 1512.03385, appendix A); else the regions go to the box head at once.
        box_convs, box_fcs, box_channels, dropout: see ``BoxHead``.
        match_iou, background_iou, roi_batch, roi_positive_fraction: see ``RoiSampling``.
        box_weights: what the four deltas of the box head are multiplied by.
        smooth_l1_beta: knee of both box losses.
        score_threshold, nms_iou, max_detections: see ``BoxSelection``.
    """

    backbone: str
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    image_size: int = 640
    norm: Norm = "frozen_bn"
    neck_norm: Norm = "none"
    head_norm: Norm = "none"
    frozen_stages: int = 0
    strides: tuple[int, ...] = (4, 8, 16, 32)
    fpn_channels: int = 256
    anchor_scale: float = 8.0
    anchor_octaves: int = 1
    anchor_doublings: float = 1.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0
    anchor_style: Literal["paper", "torchvision"] = "paper"
    rpn_depth: int = 1
    rpn_match_high: float = 0.7
    rpn_match_low: float = 0.3
    rpn_batch: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_inside_only: bool = False
    rpn_topk_train: int = 2000
    rpn_topk: int = 1000
    rpn_nms_iou: float = 0.7
    proposals_train: int = 2000
    proposals: int = 1000
    roi_pooling: RoiPooling = "align"
    roi_size: int = 7
    roi_samples: int = 2
    roi_aligned: bool = False
    roi_stage: bool = False
    box_convs: int = 0
    box_fcs: int = 2
    box_channels: int = 1024
    dropout: float = 0.0
    match_iou: float = 0.5
    background_iou: float = 0.0
    roi_batch: int = 512
    roi_positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1 / 9
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_choices(
            self,
            anchor_style=("paper", "torchvision"),
            roi_pooling=get_args(RoiPooling),
            norm=BACKBONE_NORMS,
            neck_norm=HEAD_NORMS,
            head_norm=HEAD_NORMS,
        )
        check_at_least(self, image_size=32)
        if any(b != 2 * a for a, b in zip(self.strides, self.strides[1:])):
            raise ValueError(f"strides {self.strides} must double from map to map, such as (4, 8, 16, 32)")
        if self.roi_stage and len(self.strides) > 1:
            raise ValueError(f"roi_stage needs one map, and strides are {self.strides}; choose such as (16,)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in 0..1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FirstStage:
    """What is computed of whole images.

    Attributes:
        maps: of the pyramid, or the one of the backbone.
        proposals: objectness and deltas of every anchor.
    """

    maps: list[Tensor]
    proposals: DenseOutputs


class FasterRcnn(Detector):
    """Backbone, pyramid, proposals, pooled regions, box head; see ``FasterRcnnOptions``."""

    network: ClassVar[tuple[str, ...]] = ("dense", "box_outputs")

    def __init__(self, num_classes: int, options: FasterRcnnOptions) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(mean=options.mean, std=options.std, size=options.image_size, divisor=32)
        self.backbone = Backbone(
            options.backbone,
            norm=options.norm,
            frozen_stages=options.frozen_stages,
            strides=options.strides,
            held_back=options.roi_stage,
        )
        levels, channels = options.strides, self.backbone.channels[-1]
        self.neck: FeaturePyramid | None = None
        if len(options.strides) > 1:
            levels, channels = (*options.strides, 2 * options.strides[-1]), options.fpn_channels
            self.neck = FeaturePyramid(self.backbone.channels, channels, p6_source="pool", norm=options.neck_norm)
        self.grid = AnchorGrid(
            strides=levels,
            scale=options.anchor_scale,
            octaves=options.anchor_octaves,
            doublings=options.anchor_doublings,
            ratios=options.anchor_ratios,
            offset=options.anchor_offset,
            style=options.anchor_style,
        )
        self.map_channels = channels
        self.region_channels = self.backbone.held_back_channels if options.roi_stage else channels
        self.rpn = RpnHead(channels, num_anchors=self.grid.num_anchors, depth=options.rpn_depth)
        self.rpn_training = RpnTraining(
            matcher=IouMatcher(high=options.rpn_match_high, low=options.rpn_match_low),
            batch=options.rpn_batch,
            positive_fraction=options.rpn_positive_fraction,
            inside_only=options.rpn_inside_only,
            beta=options.smooth_l1_beta,
        )
        self.proposals_train = ProposalSelection(
            topk=options.rpn_topk_train, nms_iou=options.rpn_nms_iou, limit=options.proposals_train
        )
        self.proposals = ProposalSelection(topk=options.rpn_topk, nms_iou=options.rpn_nms_iou, limit=options.proposals)
        self.pooler = RoiPooler(
            kind=options.roi_pooling,
            size=options.roi_size,
            strides=options.strides,
            samples=options.roi_samples,
            aligned=options.roi_aligned,
        )
        self.sampling = RoiSampling(
            positive_iou=options.match_iou,
            background_iou=options.background_iou,
            batch=options.roi_batch,
            positive_fraction=options.roi_positive_fraction,
        )
        self.box_head = BoxHead(
            in_channels=self.region_channels,
            size=options.roi_size,
            convs=options.box_convs,
            norm=options.head_norm,
            fcs=options.box_fcs,
            fc_channels=options.box_channels,
            dropout=options.dropout,
            num_classes=num_classes,
            average=options.roi_stage,
        )
        self.selection = BoxSelection(
            score_threshold=options.score_threshold, nms_iou=options.nms_iou, max_detections=options.max_detections
        )

    def dense(self, images: Tensor) -> FirstStage:
        """Maps and proposals' raw outputs of (B, 3, H, W) normalised images."""
        features: list[Tensor] = self.backbone(images)
        maps = features if self.neck is None else self.neck(features)
        return FirstStage(maps=maps, proposals=self.rpn(maps))

    def box_outputs(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + C), background first, and deltas (R, 4, C) of pooled regions."""
        outputs: tuple[Tensor, Tensor] = self.box_head(self.region_features(pooled))
        return outputs

    def region_features(self, pooled: Tensor) -> Tensor:
        """(R, map_channels, s, s) pooled regions to what heads take, (R, region_channels, ...)."""
        return self.backbone.run_held_back(pooled) if self.options.roi_stage else pooled

    def arithmetic(self, images: Tensor) -> object:
        regions = len(images) * self.options.proposals
        return self.dense(images), self.box_outputs(self.pooled_shape(images, regions, self.options.roi_size))

    def pooled_shape(self, images: Tensor, regions: int, size: int) -> Tensor:
        """A tensor like so many pooled regions, of any values."""
        return images.new_empty((regions, self.map_channels, size, size))

    def classifier_layers(self) -> Mapping[str, str]:
        return vgg_classifier_layers(self.box_head, "box_head") if "vgg" in self.options.backbone else {}

    def anchors(self, outputs: DenseOutputs, images: Tensor) -> Tensor:
        """(N, 4) xyxy, model pixels."""
        return grid_anchors(self.grid, outputs.shapes, (images.shape[-2], images.shape[-1]), outputs.logits[0].device)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``objectness`` and ``proposal_regression`` of the first stage, ``classification`` and ``box_regression``."""
        losses, maps, rois = self.box_losses(batch, targets)
        return {**losses, **self.branch_losses(maps, rois, targets)}

    def branch_losses(self, maps: list[Tensor], rois: list[SampledRois], targets: list[Target]) -> dict[str, Tensor]:
        """Losses of what is learnt beside the boxes of the sampled regions; here of nothing."""
        return {}

    def box_losses(
        self, batch: Batch, targets: list[Target]
    ) -> tuple[dict[str, Tensor], list[Tensor], list[SampledRois]]:
        """The losses, and the maps and regions that further heads learn from."""
        first = self.dense(batch.images)
        anchors = self.anchors(first.proposals, batch.images)
        proposals = select_proposals(first.proposals, anchors, batch.sizes, self.proposals_train)
        objectness, proposal_regression = proposal_losses(
            first.proposals, anchors, batch.sizes, targets, self.rpn_training
        )
        rois = sample_rois(proposals, targets, self.sampling)
        logits, deltas = self.box_outputs(self.pooler.pool(first.maps, [r.boxes for r in rois]))
        classification, box_regression = box_head_losses(
            logits,
            deltas,
            rois,
            targets,
            codec_weights=self.options.box_weights,
            beta=self.options.smooth_l1_beta,
        )
        losses = {
            "objectness": objectness,
            "proposal_regression": proposal_regression,
            "classification": classification,
            "box_regression": box_regression,
        }
        return losses, first.maps, rois

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        return self.predictions(*self.detect(batch), batch)

    def predictions(self, maps: list[Tensor], found: list[Detected], batch: Batch) -> list[Prediction]:
        """What was found in original pixels, with all that is said of it beside its box."""
        return to_predictions(found, batch)

    def detect(self, batch: Batch) -> tuple[list[Tensor], list[Detected]]:
        """The maps, and each image's detections in model pixels."""
        first = self.dense(batch.images)
        anchors = self.anchors(first.proposals, batch.images)
        proposals = select_proposals(first.proposals, anchors, batch.sizes, self.proposals)
        logits, deltas = self.box_outputs(self.pooler.pool(first.maps, proposals))
        return first.maps, select_boxes(
            logits, deltas, proposals, batch.sizes, self.selection, codec_weights=self.options.box_weights
        )


# One map and nine anchors a position, of 128, 256 and 512 pixels.
_ONE_MAP: dict[str, Any] = {
    "strides": (16,),
    "anchor_octaves": 3,
    "anchor_doublings": 3.0,
    "rpn_topk_train": 12000,
    "rpn_topk": 6000,
    "proposals": 300,
}

FASTER_RCNNS: dict[str, FasterRcnnOptions] = {
    # As in the first paper, two stages trained at once.
    "faster_rcnn_vgg16": FasterRcnnOptions(
        backbone="vgg16",
        **_ONE_MAP,
        rpn_inside_only=True,
        roi_pooling="max",
        box_channels=4096,
        dropout=0.5,
        background_iou=0.1,
        roi_batch=64,
        nms_iou=0.3,
    ),
    "faster_rcnn_r50_c4": FasterRcnnOptions(
        backbone="resnet50", **_ONE_MAP, roi_size=14, roi_stage=True, box_fcs=0, roi_batch=64
    ),
    "faster_rcnn_r50_fpn": FasterRcnnOptions(backbone="resnet50"),
    "faster_rcnn_r101_fpn": FasterRcnnOptions(backbone="resnet101"),
    "faster_rcnn_mobilenet_v3_fpn": FasterRcnnOptions(backbone="mobilenetv3_large_100"),
    # Light enough to train on two CPU cores: narrow, no map finer than stride 8, anchors for images of half the size.
    "faster_rcnn_lite0_fpn": FasterRcnnOptions(
        backbone="tf_efficientnet_lite0",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        image_size=320,
        neck_norm="gn",
        strides=(8, 16, 32),
        fpn_channels=64,
        anchor_scale=4.0,
        anchor_offset=0.5,
        rpn_topk_train=500,
        rpn_topk=300,
        proposals_train=500,
        proposals=300,
        box_channels=256,
        roi_batch=128,
    ),
}
