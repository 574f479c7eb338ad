"""What R-CNN and Fast R-CNN share: proposals from outside the network, and a head that classifies and refines them.

Shape legend: B images, P proposals of an image, R regions of all images, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.base import Detector, Preprocessing
from detectors.blocks.backbones import Backbone
from detectors.blocks.box_heads import (
    BoxHead,
    BoxSelection,
    box_head_losses,
    select_boxes,
    to_predictions,
    vgg_classifier_layers,
)
from detectors.blocks.norms import Norm
from detectors.blocks.proposals import ProposalOptions, Proposer
from detectors.blocks.roi import RoiSampling, SampledRois
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedRegionsOptions(ProposalOptions):
    """What both have to choose; the defaults are those of both papers.

    Attributes:
        backbone: a timm ``features_only`` network.
        mean, std: of its preprocessing, 0..255.
        image_size: longer side, pixels.
        norm: of the backbone: frozen_bn, bn, gn or sync_bn (over the batches of all workers); ``vgg16`` has none,
            ``vgg16_bn`` has.
        frozen_stages: first stages of the backbone that never change, 0 to 5.
        box_fcs, box_channels, dropout: see ``BoxHead``.
        match_iou, background_iou, roi_positive_fraction: see ``RoiSampling``.
        box_weights: what the four deltas of the box head are multiplied by.
        smooth_l1_beta: knee of the box loss.
        score_threshold, nms_iou, max_detections: see ``BoxSelection``.
    """

    backbone: str = "vgg16"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    image_size: int = 640
    norm: Norm = "frozen_bn"
    frozen_stages: int = 0
    box_fcs: int = 2
    box_channels: int = 4096
    dropout: float = 0.5
    match_iou: float = 0.5
    background_iou: float = 0.0
    roi_positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1.0
    score_threshold: float = 0.05
    nms_iou: float = 0.3
    max_detections: int = 100

    def __post_init__(self) -> None:
        ProposalOptions.__post_init__(self)  # super() does not know a class that slots have made anew
        check_choices(self, norm=("frozen_bn", "gn", "bn", "sync_bn"))
        check_at_least(self, image_size=32, box_fcs=0, box_channels=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in 0..1")


class ProposedRegions(Detector):
    """Proposals, features of each in a way that is the subclass's, box head."""

    def __init__(
        self, num_classes: int, options: ProposedRegionsOptions, *, stride: int, region_size: int, roi_batch: int
    ) -> None:
        """Builds the parts.

        Args:
            num_classes: C.
            options: common ones.
            stride: of the backbone's one map.
            region_size: cells along a side of a region's features.
            roi_batch: see ``RoiSampling``.
        """
        super().__init__()
        self.num_classes = num_classes
        self.preprocessing = Preprocessing(mean=options.mean, std=options.std, size=options.image_size, divisor=32)
        self.proposer = Proposer(options, self.preprocessing)
        self.backbone = Backbone(
            options.backbone, norm=options.norm, frozen_stages=options.frozen_stages, strides=(stride,)
        )
        self.sampling = RoiSampling(
            positive_iou=options.match_iou,
            background_iou=options.background_iou,
            batch=roi_batch,
            positive_fraction=options.roi_positive_fraction,
        )
        self.box_head = BoxHead(
            in_channels=self.backbone.channels[-1],
            size=region_size,
            convs=0,
            norm="none",
            fcs=options.box_fcs,
            fc_channels=options.box_channels,
            dropout=options.dropout,
            num_classes=num_classes,
        )
        self.selection = BoxSelection(
            score_threshold=options.score_threshold, nms_iou=options.nms_iou, max_detections=options.max_detections
        )
        self._box_weights, self._smooth_l1_beta = options.box_weights, options.smooth_l1_beta
        self._of_vgg = "vgg" in options.backbone

    @abstractmethod
    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[SampledRois]:
        """The regions that a step learns from."""

    @abstractmethod
    def outputs_of(self, batch: Batch, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + C), background first, and deltas (R, 4, C) of regions, (P, 4) xyxy of each image."""

    def classifier_layers(self) -> Mapping[str, str]:
        return vgg_classifier_layers(self.box_head, "box_head") if self._of_vgg else {}

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``classification`` and ``box_regression``."""
        rois = self.sample(self.proposer.propose(batch), targets)
        logits, deltas = self.outputs_of(batch, [r.boxes for r in rois])
        classification, box_regression = box_head_losses(
            logits, deltas, rois, targets, codec_weights=self._box_weights, beta=self._smooth_l1_beta
        )
        return {"classification": classification, "box_regression": box_regression}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        proposals = self.proposer.propose(batch)
        logits, deltas = self.outputs_of(batch, proposals)
        found = select_boxes(logits, deltas, proposals, batch.sizes, self.selection, codec_weights=self._box_weights)
        return to_predictions(found, batch)
