"""The second stage's box branch: from pooled regions to classes and boxes, its losses and its detections.

Shape legend: R regions of all images, C classes, S candidates (region, class) of all images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blocks.codecs import CodecWeights, decode_boxes
from detectors.blocks.losses import box_regression_loss
from detectors.blocks.nms import first_tried, nms_of_ranked, ranks_of_images
from detectors.blocks.norms import Norm, make_norm
from detectors.blocks.postprocess import scale_boxes
from detectors.blocks.roi import SampledRois
from detectors.structures import Batch, Prediction, Target

SMALLEST_DETECTION = 1e-2
"""Detections with a shorter side, model pixels, are dropped."""


class BoxHead(nn.Module):
    """Convolutions, fully connected layers, and two that predict.

    Args:
        in_channels, size: of the pooled regions.
        convs: how many 3x3 convolutions (torchvision's ``_v2`` has 4, others none), as wide as the input.
        norm: behind each of them.
        fcs: how many fully connected layers.
        fc_channels: their width; 1024 with a pyramid, 4096 with VGG16.
        average: a region's cells are averaged before what is fully connected, as behind a ResNet's last stage.
        dropout: behind each fully connected layer; VGG16's is 0.5.
        num_classes: C.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        convs: int,
        norm: Norm,
        fcs: int,
        fc_channels: int,
        dropout: float,
        num_classes: int,
        average: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.average = average
        self.convs = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=norm == "none"),
                    make_norm(norm, in_channels),
                    nn.ReLU(inplace=True),
                )
                for _ in range(convs)
            )
        )
        layers: list[nn.Module] = []
        width = in_channels * (1 if average else size * size)
        for _ in range(fcs):
            layers += [nn.Linear(width, fc_channels), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            width = fc_channels
        self.fcs = nn.Sequential(*layers)
        self.class_logits = nn.Linear(width, num_classes + 1)
        self.box_deltas = nn.Linear(width, 4 * num_classes)
        for module in self.convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for layer, std in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)  # Girshick 2015, section 2.3
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(R, channels, size, size) to logits (R, 1 + C), background first, and deltas (R, 4, C) of each class."""
        hidden = self.convs(pooled)
        hidden = self.fcs(hidden.mean((2, 3)) if self.average else hidden.flatten(1))
        return self.class_logits(hidden), self.box_deltas(hidden).unflatten(1, (4, self.num_classes))


def vgg_classifier_layers(head: BoxHead, name: str) -> dict[str, str]:
    """fc6 and fc7 of VGG's classifier, as torchvision and as timm call them, and a head's first two layers.

    Args:
        head: whose regions are of VGG's last map, 7 x 7 cells; layers of another shape are left as they are.
        name: of the head in its detector.
    """
    layers = [f"{name}.fcs.{i}" for i, layer in enumerate(head.fcs) if isinstance(layer, nn.Linear)]
    return dict([*zip(("classifier.0", "classifier.3"), layers), *zip(("pre_logits.fc1", "pre_logits.fc2"), layers)])


def box_head_losses(
    logits: Tensor,
    deltas: Tensor,
    rois: list[SampledRois],
    targets: list[Target],
    *,
    codec_weights: CodecWeights,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Losses of classes and of boxes, both divided by the regions.

    Args:
        logits: (R, 1 + C), background first.
        deltas: (R, 4, C); only those of the true class count.
        rois: what the regions are.
        targets: of the images.
        codec_weights, beta: of the box regression.
    Source: Girshick 2015, 1504.08083, equation 1.
    """
    labels = torch.cat([_labels(r, t) for r, t in zip(rois, targets)])
    boxes = torch.cat([r.boxes for r in rois])
    count = max(len(labels), 1)
    classification = F.cross_entropy(logits.float(), labels, reduction="sum") / count
    positive = labels.nonzero().squeeze(1)
    objects = torch.cat([t.boxes[r.matched_idxs[r.matched_idxs >= 0]] for r, t in zip(rois, targets)]).to(boxes)
    regression = box_regression_loss(
        deltas[positive, :, labels[positive] - 1].float(),
        objects,
        boxes[positive],
        kind="smooth_l1",
        beta=beta,
        weights=codec_weights,
    )
    return classification, regression.sum() / count


def _labels(rois: SampledRois, target: Target) -> Tensor:
    """(n,) 0 for background, 1 + label for an object."""
    labels = torch.zeros_like(rois.matched_idxs)
    positive = rois.matched_idxs >= 0
    labels[positive] = target.labels[rois.matched_idxs[positive]] + 1
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSelection:
    """Which detections a second stage reports.

    Attributes:
        score_threshold: scores must exceed this.
        nms_iou: a box is suppressed by a better one of its class from beyond this IoU.
        max_detections: an image.
        class_thresholds: of each class, that its scores must exceed as well; see ``detectors.class_thresholds``.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    class_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1 or not 0 <= self.nms_iou <= 1 or self.max_detections < 1:
            raise ValueError(
                f"score_threshold={self.score_threshold}, nms_iou={self.nms_iou} must lie in 0..1, "
                f"max_detections={self.max_detections} must be at least 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detected:
    """Detections of one image in model pixels, by descending score.

    Attributes:
        boxes: (n, 4) xyxy.
        labels: (n,) int64 in 0..C-1.
        scores: (n,).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def select_boxes(
    logits: Tensor,
    deltas: Tensor,
    proposals: list[Tensor],
    sizes: Tensor,
    selection: BoxSelection,
    *,
    codec_weights: CodecWeights,
) -> list[Detected]:
    """Threshold, decode the best of what is left, clip, NMS.

    Args:
        logits: (R, 1 + C), background first.
        deltas: (R, 4, C).
        proposals: of each image (n, 4) xyxy; R in all.
        sizes: (B, 2) height and width of each image inside its padding.
        selection: what is reported.
        codec_weights: of the box regression.
    """
    region, label, score = _candidates(logits, selection.score_threshold)
    if selection.class_thresholds:
        passes = score > torch.tensor(selection.class_thresholds, device=score.device)[label]
        region, label, score = region[passes], label[passes], score[passes]
    starts = accumulate((len(p) for p in proposals), initial=0)
    first = torch.searchsorted(region, torch.tensor(list(starts), device=region.device)).tolist()
    ranks = ranks_of_images(score, [after - before for before, after in pairwise(first)])
    every = torch.cat(proposals)
    limits = sizes.flip(1).repeat(1, 2).to(every)  # width, height, width, height
    tried = first_tried(selection.max_detections)
    while True:  # as NMS does: whether a box survives depends only on better ones, and few have to be decoded
        parts = [of_image[:tried] for of_image in ranks]
        best = torch.cat(parts)
        of_region, labels, scores = (values.index_select(0, best) for values in (region, label, score))
        boxes = decode_boxes(deltas[of_region, :, labels].float(), every.index_select(0, of_region), codec_weights)
        inside = torch.cat([limit.expand(len(part), 4) for limit, part in zip(limits, parts)])
        boxes = torch.minimum(boxes.clamp(min=0), inside)
        counts = [len(part) for part in parts]
        large = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_DETECTION).all(1)
        if not large.all():
            counts = [int(of_image.sum()) for of_image in large.split(counts)]
            boxes, labels, scores = boxes[large], labels[large], scores[large]
        kept = nms_of_ranked(boxes, scores, labels, counts, selection.nms_iou, selection.max_detections)
        if all(len(k) >= selection.max_detections or tried >= len(r) for k, r in zip(kept, ranks)):
            break
        tried *= 2
    return [
        Detected(boxes=boxes.index_select(0, k), labels=labels.index_select(0, k), scores=scores.index_select(0, k))
        for k in kept
    ]


def _candidates(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Regions, ascending, labels and scores of what exceeds the threshold, (S,) each."""
    # p > t needs p / (p + background) > t, a difference of two logits: most regions are out before any exponential.
    least = math.log(threshold / (1 - threshold)) - 1e-3 if threshold > 0 else -math.inf
    region = (logits[:, 1:].amax(1) - logits[:, 0] >= least).nonzero().squeeze(1)
    scores = logits.index_select(0, region).float().softmax(1)  # which is faster than brackets, throughout
    scores[:, 0] = 0  # background is none
    flat = scores.flatten()
    place = (flat > threshold).nonzero().squeeze(1)  # two indices take longer
    row = place // scores.shape[1]
    return region.index_select(0, row), place - row * scores.shape[1] - 1, flat.index_select(0, place)


def to_predictions(detected: list[Detected], batch: Batch) -> list[Prediction]:
    """Detections in original pixels."""
    return [
        Prediction(
            boxes=scale_boxes(found.boxes, (size[0], size[1]), (original[0], original[1])),
            labels=found.labels,
            scores=found.scores,
            size=(original[0], original[1]),
        )
        for found, size, original in zip(detected, batch.sizes.tolist(), batch.original_sizes.tolist())
    ]
