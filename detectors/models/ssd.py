"""SSD: Liu et al. 2015, "SSD: Single Shot MultiBox Detector", 1512.02325.

Shape legend: B images, L maps, N default boxes of all maps, n of one map, P matched ones of the batch, C classes. A
box's C + 1 logits are a softmax over background (first) and the classes; labels outside are 0..C-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from detectors.base import Detector, Preprocessing
from detectors.blocks.best_box_matcher import BestBoxMatcher
from detectors.blocks.class_losses import ClassLoss, ClassLossOptions, dense_class_loss
from detectors.blocks.codecs import CodecWeights, decode_boxes
from detectors.blocks.default_boxes import DefaultBoxes, tile_default_boxes
from detectors.blocks.heads import DenseOutputs, anchors_last
from detectors.blocks.losses import BOX_LOSSES, BoxLoss, box_regression_loss
from detectors.blocks.norms import Norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.blocks.vgg import EXTRA_LAYERS, ExtraLayer, SsdVgg16, map_sizes
from detectors.options import check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdOptions:
    """All choices; the defaults are the paper's SSD300 for COCO.

    Attributes:
        backbone: VGG-16 is the one there is.
        mean, std: of its preprocessing, 0..255.
        image_size: every image is stretched to this square, pixels.
        norm: behind the convolutions: none (paper); gn, bn or sync_bn make learning from random weights possible.
        width: channels relative to the paper's.
        frozen_stages: first stages of VGG that never change, 0 to 5.
        extra_layers: behind fc7, see ``SsdVgg16``.
        box_scales, box_ratios, box_ratio_counts, box_strides, clip_boxes: see ``DefaultBoxes``. torchvision's have
            ``box_strides`` (8, 16, 32, 64, 100, 300) and ``clip_boxes``.
        match_iou, bipartite: see ``BestBoxMatcher``; torchvision's is not bipartite.
        codec_weights: of the box codec.
        loss: hard_negative (paper), focal, alpha_ce, ce or ohem, all of them on the softmax, so that they
            compare on one network; see ``ClassLossOptions`` for the settings that follow.
        focal_alpha, focal_gamma, ce_alpha, ohem_batch, ohem_nms_iou, ohem_balanced, negatives_per_positive,
        min_negatives: of the classification loss.
        prior: with the losses that count every box (focal, alpha_ce, ce), the probability of an object that an
            untrained head gives each.
        box_loss, smooth_l1_beta, box_loss_weight: see ``box_regression_loss``.
        score_threshold, topk, nms_iou, max_detections: see ``DenseSelection``; ``topk`` is for each class.
    """

    backbone: str = "vgg16"
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    image_size: int = 300
    norm: Norm = "none"
    width: float = 1.0
    frozen_stages: int = 0
    extra_layers: tuple[ExtraLayer, ...] = ("halve", "halve", "valid", "valid")
    box_scales: tuple[float, ...] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    box_ratios: tuple[float, ...] = (2.0, 3.0)
    box_ratio_counts: tuple[int, ...] = (1, 2, 2, 2, 1, 1)
    box_strides: tuple[float, ...] = ()
    clip_boxes: bool = False
    match_iou: float = 0.5
    bipartite: bool = True
    codec_weights: CodecWeights = (10.0, 10.0, 5.0, 5.0)
    loss: ClassLoss = "hard_negative"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    ce_alpha: float = 0.75
    ohem_batch: int = 128
    ohem_nms_iou: float = 0.5
    ohem_balanced: bool = False
    negatives_per_positive: float = 3.0
    min_negatives: int = 0
    prior: float = 0.01
    box_loss: BoxLoss = "smooth_l1"
    smooth_l1_beta: float = 1.0
    box_loss_weight: float = 1.0
    score_threshold: float = 0.01
    topk: int = 400
    nms_iou: float = 0.45
    max_detections: int = 200

    def __post_init__(self) -> None:
        if self.backbone != "vgg16":
            raise ValueError(f"backbone is {self.backbone!r}; SSD has vgg16 (ssd_grid_resnet34 takes any timm network)")
        if self.norm not in ("none", "gn", "bn", "sync_bn"):
            raise ValueError(f"norm is {self.norm!r}; VGG has none to freeze: choose none, gn, bn or sync_bn")
        check_choices(self, box_loss=BOX_LOSSES)
        if unknown := set(self.extra_layers) - set(EXTRA_LAYERS):
            raise ValueError(f"extra_layers has {', '.join(sorted(unknown))}; choose of {', '.join(EXTRA_LAYERS)}")
        if len(self.box_ratio_counts) != len(self.extra_layers) + 2:
            raise ValueError(
                f"{len(self.box_ratio_counts)} box_ratio_counts for {len(self.extra_layers) + 2} maps (conv4_3, fc7 "
                "and the extra layers); there must be as many"
            )
        ClassLossOptions.of(self)  # checks its own
        if not 0 < self.prior < 1:
            raise ValueError(f"prior is {self.prior}; it must lie between 0 and 1")
        if not self.width > 0 or not 0 <= self.frozen_stages <= 5:
            raise ValueError(f"width={self.width} must be above 0, frozen_stages={self.frozen_stages} in 0..5")
        if len(self.codec_weights) != 4 or min(self.codec_weights) <= 0:
            raise ValueError(f"codec_weights are {self.codec_weights}; give four numbers above 0")
        map_sizes(self.image_size, self.extra_layers)


class SSD(Detector):
    """VGG-16 with maps of ever coarser grids, and two 3x3 convolutions on each; see ``SsdOptions``."""

    def __init__(self, num_classes: int, options: SsdOptions) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(
            mean=options.mean, std=options.std, size=options.image_size, divisor=1, resize="stretch"
        )
        self.default_boxes = DefaultBoxes(
            scales=options.box_scales,
            ratios=options.box_ratios,
            ratio_counts=options.box_ratio_counts,
            strides=options.box_strides,
            clip=options.clip_boxes,
        )
        self.matcher = BestBoxMatcher(threshold=options.match_iou, bipartite=options.bipartite)
        self.class_loss = ClassLossOptions.of(options)
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.topk,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
            activation="softmax",
            background="first",
            topk_of="class",
        )
        self.backbone = SsdVgg16(
            width=options.width,
            norm=options.norm,
            extra_layers=options.extra_layers,
            frozen_stages=options.frozen_stages,
        )
        counts_all = options.loss in ("focal", "alpha_ce", "ce")
        self.head = SsdHead(
            self.backbone.channels,
            self.default_boxes.num_boxes,
            num_classes,
            prior=options.prior if counts_all else None,
        )

    def dense(self, images: Tensor) -> DenseOutputs:
        """Logits (C + 1, background first) and deltas of every default box of (B, 3, H, W) normalised images."""
        outputs: DenseOutputs = self.head(self.backbone(images))
        return outputs

    def anchors(self, outputs: DenseOutputs, images: Tensor) -> Tensor:
        """(N, 4) xyxy default boxes, model pixels."""
        image_shape = (images.shape[-2], images.shape[-1])
        return tile_default_boxes(self.default_boxes, outputs.shapes, image_shape, outputs.logits[0].device)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``classification`` and ``box_regression``, each a sum divided by the batch's matched default boxes."""
        outputs = self.dense(batch.images)
        anchors = self.anchors(outputs, batch.images)
        matched_idxs = torch.stack([self.matcher.match(t.boxes, t.iscrowd, anchors) for t in targets])
        matched = [(of_image >= 0).nonzero().squeeze(1) for of_image in matched_idxs]
        objects = [of_image[rows] for of_image, rows in zip(matched_idxs, matched)]
        labels = torch.cat([t.labels[o] for t, o in zip(targets, objects)])
        boxes = torch.cat([t.boxes[o] for t, o in zip(targets, objects)]).float()
        classification = dense_class_loss(
            outputs.logits, matched_idxs, labels, self.class_loss, anchors=anchors, background="first"
        )
        deltas = torch.cat(outputs.deltas, 1)
        regression = box_regression_loss(
            torch.cat([of_image[rows] for of_image, rows in zip(deltas, matched)]).float(),
            boxes,
            anchors[torch.cat(matched)],
            kind=self.options.box_loss,
            beta=self.options.smooth_l1_beta,
            weights=self.options.codec_weights,
        )
        count = max(1, len(labels))
        return {
            "classification": classification.sum() / count,
            "box_regression": regression.sum() / count * self.options.box_loss_weight,
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        outputs = self.dense(batch.images)
        return select_detections(
            outputs,
            self.anchors(outputs, batch.images),
            batch,
            self.selection,
            decode=partial(decode_boxes, weights=self.options.codec_weights),
        )


class SsdHead(nn.Module):
    """One 3x3 convolution for the classes and one for the boxes of each map.

    Args:
        channels: of the maps.
        num_boxes: a cell of each map.
        num_classes: C; background is added in front.
        prior: probability of an object that the untrained head gives each box; None leaves all C + 1 classes alike.
    """

    def __init__(
        self, channels: list[int], num_boxes: tuple[int, ...], num_classes: int, *, prior: float | None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_logits = nn.ModuleList()
        self.box_deltas = nn.ModuleList()
        for wide, boxes in zip(channels, num_boxes):
            logits = _predictor(wide, boxes * (num_classes + 1))
            if prior is not None:
                assert logits.bias is not None
                by_class = logits.bias.detach().view(boxes, num_classes + 1)
                by_class[:, 0] = math.log(num_classes * (1 - prior) / prior)
            self.class_logits.append(logits)
            self.box_deltas.append(_predictor(wide, boxes * 4))

    def forward(self, maps: list[Tensor]) -> DenseOutputs:
        return DenseOutputs(
            logits=[anchors_last(conv(x), self.num_classes + 1) for conv, x in zip(self.class_logits, maps)],
            deltas=[anchors_last(conv(x), 4) for conv, x in zip(self.box_deltas, maps)],
            shapes=tuple((x.shape[-2], x.shape[-1]) for x in maps),
        )


def _predictor(in_channels: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, outputs, 3, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


SSDS: dict[str, SsdOptions] = {
    "ssd300_vgg16": SsdOptions(),
    "ssd512_vgg16": SsdOptions(
        image_size=512,
        extra_layers=("halve", "halve", "halve", "halve", "last"),
        box_scales=(0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
        box_ratio_counts=(1, 2, 2, 2, 2, 1, 1),
    ),
}
