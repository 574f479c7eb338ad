"""YOLOv3: Redmon & Farhadi 2018, "YOLOv3: An Incremental Improvement", 1804.02767.

Shape legend: B images, L maps (coarse to fine in the network, fine to coarse in the outputs), n places of one map
(rows x columns x A anchors), N of all, P positive places of the batch, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.base import Detector, Preprocessing
from detectors.blocks.backbones import Backbone
from detectors.blocks.cell_matching import (
    cell_priors,
    decode_cells,
    encode_cells,
    match_priors,
    prior_boxes,
)
from detectors.blocks.class_losses import ClassLoss, ClassLossOptions, dense_class_loss
from detectors.blocks.darknet import ConvNormAct, DarkNet53, TinyDarkNet
from detectors.blocks.heads import DenseOutputs, anchors_last
from detectors.blocks.norms import Norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target

COCO_ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)
"""The paper's nine anchors, k-means on COCO at 416 pixels: width, height, width, height, ..."""
TINY_ANCHORS = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)
"""darknet's six for YOLOv3-tiny."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloV3Options:
    """All choices; the defaults are the paper's, and for what it leaves open darknet's.

    Attributes:
        backbone: ``darknet53``, ``tiny_darknet`` (two maps), or a timm ``features_only`` network.
        mean, std: of its preprocessing, 0..255.
        image_size: longer side, pixels.
        norm: of all convolutions but the last ones: bn, gn or frozen_bn.
        anchors: width, height, width, height, ... in pixels of the model, small to large; as many for each map. For a
            dataset of your own take those of ``boxmill anchors``.
        ignore_iou: a place that answers for no object but overlaps one by more is neither object nor background.
        ignore_by: whether the overlap is that of the anchor in the middle of its cell (``prior``, the paper) or that
            of the predicted box (``prediction``, darknet).
        prior: objectness that an untrained network gives every place; darknet starts at 0.5.
        loss, focal_alpha, focal_gamma, ce_alpha, ohem_batch, ohem_nms_iou, ohem_balanced, negatives_per_positive,
        min_negatives: of the objectness, see ``ClassLossOptions``; ``ce`` is the paper's. Classes are told apart by
            cross-entropy at places with an object alone, so that there is no imbalance to treat.
        small_box_weight: weigh the box loss by 2 - (the object's share of the image), as darknet does.
        box_loss_weight, class_loss_weight: factors on these losses.
        normalize_by: the losses are sums over an image's places, averaged over the images (``none``, the paper), or
            divided by the positives of each image or of the batch.
        score_threshold, topk, nms_iou, max_detections: see ``DenseSelection``; a score is objectness x class.
    """

    backbone: str = "darknet53"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    image_size: int = 416
    norm: Norm = "bn"
    anchors: tuple[float, ...] = COCO_ANCHORS
    ignore_iou: float = 0.5
    ignore_by: Literal["prior", "prediction"] = "prior"
    prior: float = 0.01
    loss: ClassLoss = "ce"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    ce_alpha: float = 0.75
    ohem_batch: int = 128
    ohem_nms_iou: float = 0.5
    ohem_balanced: bool = False
    negatives_per_positive: float = 3.0
    min_negatives: int = 0
    small_box_weight: bool = True
    box_loss_weight: float = 1.0
    class_loss_weight: float = 1.0
    normalize_by: Literal["none", "image", "batch"] = "none"
    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.45
    max_detections: int = 300

    def __post_init__(self) -> None:
        check_choices(self, ignore_by=("prior", "prediction"), normalize_by=("none", "image", "batch"))
        if not 0 < self.prior < 1 or not 0 <= self.ignore_iou <= 1:
            raise ValueError(f"prior={self.prior}, ignore_iou={self.ignore_iou} must lie between 0 and 1")
        check_at_least(self, image_size=32)
        pairs, maps = len(self.anchors) / 2, len(_WIDTHS.get(self.backbone, _WIDTHS["darknet53"]))
        if not self.anchors or pairs % maps:
            raise ValueError(
                f"anchors has {len(self.anchors)} numbers; {self.backbone} has {maps} maps and needs width and height "
                f"of {maps}, {2 * maps}, {3 * maps}, ... anchors, as in anchors=[10,13,16,30,...]"
            )
        if not all(isinstance(side, int | float) and side > 0 for side in self.anchors):
            raise ValueError(f"anchors is {self.anchors}; widths and heights must be numbers above 0")
        ClassLossOptions.of(self)


class YoloScale(nn.Module):
    """What the network does at one map: narrow and wide convolutions in turn, then one that predicts.

    Args:
        channels: of the backbone's map.
        above: channels that come from the next coarser map, 0 where there is none.
        width: of the narrow convolutions; wide ones have twice as many channels.
        depth: convolutions whose result the next finer map gets too.
        outputs: channels of the prediction.
    Attributes:
        shared_channels: of what the next finer map gets.
    """

    def __init__(self, channels: int, *, above: int, width: int, depth: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        # Registered in the order of darknet's files.
        self.lateral = ConvNormAct(above, width, 1, norm=norm) if above else None
        channels += width if above else 0
        self.shared = nn.Sequential()
        for i in range(depth):
            wide = i % 2 == 1
            self.shared.append(ConvNormAct(channels, 2 * width if wide else width, 3 if wide else 1, norm=norm))
            channels = 2 * width if wide else width
        self.shared_channels = channels
        self.wide = ConvNormAct(channels, 2 * width, 3, norm=norm)
        self.predict = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, features: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the next finer map gets, and the prediction."""
        if self.lateral is not None and above is not None:
            features = torch.cat([F.interpolate(self.lateral(above), scale_factor=2.0, mode="nearest"), features], 1)
        shared = self.shared(features)
        return shared, self.predict(self.wide(shared))


_WIDTHS = {"darknet53": ((512, 5), (256, 5), (128, 5)), "tiny_darknet": ((256, 1), (128, 0))}
"""Width and depth of the scales, coarse to fine; a timm backbone has those of DarkNet-53."""


class YoloV3(Detector):
    """Backbone, top-down scales, nine anchors; see ``YoloV3Options``."""

    def __init__(self, num_classes: int, options: YoloV3Options) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(mean=options.mean, std=options.std, size=options.image_size, divisor=32)
        self.class_loss = ClassLossOptions.of(options)
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.topk,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
        )
        self.backbone: DarkNet53 | TinyDarkNet | Backbone
        match options.backbone:
            case "darknet53":
                self.backbone = DarkNet53(options.norm)
            case "tiny_darknet":
                self.backbone = TinyDarkNet(options.norm)
            case _:
                self.backbone = Backbone(options.backbone, norm=options.norm)
        self.strides = (16, 32) if options.backbone == "tiny_darknet" else (8, 16, 32)
        self.sizes = _by_map(options.anchors, len(self.strides))
        widths = _WIDTHS.get(options.backbone, _WIDTHS["darknet53"])
        outputs, above, scales = len(self.sizes[0]) * (5 + num_classes), 0, []
        for (width, depth), channels in zip(widths, reversed(self.backbone.channels), strict=True):
            scale = YoloScale(channels, above=above, width=width, depth=depth, outputs=outputs, norm=options.norm)
            self._start(scale.predict)
            above = scale.shared_channels
            scales.append(scale)
        self.scales = nn.ModuleList(scales)

    def dense(self, images: Tensor) -> DenseOutputs:
        """Class logits, tx ty tw th and objectness of every place of (B, 3, H, W) normalised images."""
        maps = []
        shared: Tensor | None = None
        for scale, features in zip(self.scales, reversed(self.backbone(images))):
            shared, predicted = scale(features, shared)
            maps.append(predicted)
        maps.reverse()
        places = [anchors_last(m, 5 + self.num_classes) for m in maps]
        return DenseOutputs(
            logits=[p[..., 5:] for p in places],
            deltas=[p[..., :4] for p in places],
            objectness=[p[..., 4] for p in places],
            shapes=tuple((m.shape[-2], m.shape[-1]) for m in maps),
        )

    def priors(self, outputs: DenseOutputs) -> Tensor:
        """(N, 5), see ``cell_priors``."""
        return cell_priors(self.sizes, self.strides, outputs.shapes, outputs.deltas[0].device)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``objectness``, ``classification`` and ``box_regression``."""
        outputs = self.dense(batch.images)
        priors = self.priors(outputs)
        anchors = prior_boxes(priors)
        deltas = torch.cat(outputs.deltas, 1).float()
        matched = self._match(targets, outputs.shapes, priors, anchors, deltas)
        image, place = (matched >= 0).nonzero(as_tuple=True)
        chosen = [t.boxes[m[m >= 0]].float() for t, m in zip(targets, matched)]
        boxes, labels = torch.cat(chosen), torch.cat([t.labels[m[m >= 0]] for t, m in zip(targets, matched)])
        per_image = self._weights(matched)
        assert outputs.objectness is not None
        objectness = dense_class_loss(
            [o[..., None] for o in outputs.objectness],
            matched,
            torch.zeros_like(labels),
            self.class_loss,
            anchors=anchors,
        )
        logits = torch.cat(outputs.logits, 1)[image, place].float()
        of_class = F.binary_cross_entropy_with_logits(
            logits, F.one_hot(labels, self.num_classes).float(), reduction="none"
        ).sum(1)
        of_box = cell_box_loss(deltas[image, place], boxes, priors[place])
        if self.options.small_box_weight:
            area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            of_box = of_box * (2 - area / batch.sizes.to(area).prod(1)[image])
        return {
            "objectness": (objectness * per_image).sum(),
            "classification": (of_class * per_image[image]).sum() * self.options.class_loss_weight,
            "box_regression": (of_box * per_image[image]).sum() * self.options.box_loss_weight,
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        outputs = self.dense(batch.images)
        return select_detections(outputs, self.priors(outputs), batch, self.selection, decode_cells)

    @torch.no_grad()
    def _match(
        self,
        targets: list[Target],
        shapes: tuple[tuple[int, int], ...],
        priors: Tensor,
        anchors: Tensor,
        deltas: Tensor,
    ) -> Tensor:
        """(B, N) matched_idxs."""
        sizes = torch.tensor(self.sizes, dtype=torch.float32, device=priors.device)
        candidates = [anchors] * len(targets)
        if self.options.ignore_by == "prediction":
            candidates = list(decode_cells(deltas, priors))
        return torch.stack(
            [
                match_priors(
                    target.boxes.float(),
                    target.iscrowd,
                    sizes=sizes,
                    strides=self.strides,
                    shapes=shapes,
                    candidates=found,
                    ignore_iou=self.options.ignore_iou,
                )
                for target, found in zip(targets, candidates)
            ]
        )

    def _weights(self, matched: Tensor) -> Tensor:
        """(B,) weight of each image's places."""
        positives = (matched >= 0).sum(1)
        match self.options.normalize_by:
            case "none":
                return torch.full((len(matched),), 1 / len(matched), device=matched.device)
            case "image":
                return 1.0 / (positives.clamp(min=1) * len(matched))
            case "batch":
                return (1.0 / positives.sum().clamp(min=1)).expand(len(matched))

    def _start(self, predict: nn.Conv2d) -> None:
        """Small weights; every place starts at the prior objectness."""
        nn.init.normal_(predict.weight, std=0.01)
        assert predict.bias is not None
        with torch.no_grad():
            bias = predict.bias.view(-1, 5 + self.num_classes)
            bias.zero_()
            bias[:, 4] = -math.log((1 - self.options.prior) / self.options.prior)


def cell_box_loss(deltas: Tensor, boxes: Tensor, priors: Tensor) -> Tensor:
    """Loss of each positive place, summed over its four numbers; 0 where all are right.

    Its gradient is the paper's "ground truth value minus our prediction" in the form that darknet computes it:
    sigmoid(tx) - place and tw - log(w / pw). That is the divergence of two Bernoulli variables for tx and ty, and half
    the squared error for tw and th.

    Args:
        deltas: (P, 4) tx, ty, tw, th.
        boxes: (P, 4) xyxy, true.
        priors: (P, 5) of ``cell_priors``.
    Returns:
        (P,) losses.
    """
    true = encode_cells(boxes, priors)
    place = true[:, :2]
    centre = F.binary_cross_entropy_with_logits(deltas[:, :2], place, reduction="none")
    lowest = F.binary_cross_entropy(place, place, reduction="none")
    return (centre - lowest).sum(1) + 0.5 * (deltas[:, 2:] - true[:, 2:]).square().sum(1)


def _by_map(anchors: tuple[float, ...], maps: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    pairs = tuple((float(w), float(h)) for w, h in zip(anchors[::2], anchors[1::2]))
    each = len(pairs) // maps
    return tuple(pairs[i * each : (i + 1) * each] for i in range(maps))


YOLO_V3S: dict[str, YoloV3Options] = {
    "yolo_v3_darknet53": YoloV3Options(),
    "yolo_v3_tiny": YoloV3Options(backbone="tiny_darknet", anchors=TINY_ANCHORS),
}
