"""The single-shot detector to teach with: a few coarse grids, nine boxes a cell, and no background class.

It is SSD (Liu et al. 2015, 1512.02325) made small enough to follow by hand: each cell of each grid answers for boxes
near it, moved by half a cell at most and grown or shrunk to double or half. Classes are sigmoids, and background is
"all of them 0", so that binary cross-entropy and focal loss (Lin et al. 2017, 1708.02002) differ in one option.

Shape legend: B images, N anchors of all grids, P matched ones of the batch, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.base import Detector, Preprocessing
from detectors.blocks.backbones import Backbone
from detectors.blocks.best_box_matcher import BestBoxMatcher
from detectors.blocks.class_losses import ClassLoss, ClassLossOptions, dense_class_loss
from detectors.blocks.default_boxes import tile
from detectors.blocks.heads import DenseOutputs, anchors_last
from detectors.blocks.norms import Norm, make_norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdGridOptions:
    """All choices; the defaults are the classic of 224 pixels and 189 anchors.

    Attributes:
        backbone: a timm ``features_only`` network.
        mean, std: of its preprocessing, 0..255.
        image_size: every image is stretched to this square, pixels.
        norm: of the backbone: frozen_bn, bn or gn; random weights need gn (or bn and large batches).
        head_norm: behind the convolutions of the grids: gn, bn or none.
        frozen_stages: first stages of the backbone that never change, 0 to 5.
        channels: of the grids' maps.
        grids: cells a side, from the finest to the coarsest; the image's maps have image_size / 8 at most.
        zooms: sizes of an anchor relative to its cell.
        ratios: height / width of an anchor.
        match_iou: an anchor above this IoU answers for the object it overlaps most; the best anchor of each object
            does so in any case.
        bipartite: objects that meet on one best anchor get one each; False lets the later have it, as fast.ai's.
        loss: ce (binary cross-entropy), focal, alpha_ce, ohem or hard_negative; see ``ClassLossOptions`` for the
            settings that follow.
        focal_alpha, focal_gamma, ce_alpha, ohem_batch, ohem_nms_iou, ohem_balanced, negatives_per_positive,
        min_negatives: of the classification loss.
        prior: the probability that an untrained head gives every class everywhere.
        box_unit: the L1 distance of corners is counted in sides of the image, or of the matched anchor, which gives
            small objects the same weight as large ones.
        box_loss_weight: of the L1 distance, summed over the four numbers.
        score_threshold, topk, nms_iou, max_detections: see ``DenseSelection``.
    """

    backbone: str
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    image_size: int = 224
    norm: Norm = "frozen_bn"
    head_norm: Norm = "gn"
    frozen_stages: int = 0
    channels: int = 256
    grids: tuple[int, ...] = (4, 2, 1)
    zooms: tuple[float, ...] = (0.7, 1.0, 1.3)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    match_iou: float = 0.4
    bipartite: bool = True
    loss: ClassLoss = "ce"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    ce_alpha: float = 0.75
    ohem_batch: int = 128
    ohem_nms_iou: float = 0.5
    ohem_balanced: bool = False
    negatives_per_positive: float = 3.0
    min_negatives: int = 0
    prior: float = 0.01
    box_unit: Literal["image", "anchor"] = "image"
    box_loss_weight: float = 1.0
    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_choices(self, box_unit=("image", "anchor"))
        ClassLossOptions.of(self)  # checks its own
        if not 0 < self.prior < 1:
            raise ValueError(f"prior is {self.prior}; it must lie between 0 and 1")
        check_at_least(self, image_size=32)
        finest = -(-self.image_size // 8)
        if not self.grids or min(self.grids) < 1 or max(self.grids) > finest:
            raise ValueError(f"grids are {self.grids}; an image of {self.image_size} px has 1 to {finest} cells a side")
        if list(self.grids) != sorted(set(self.grids), reverse=True):
            raise ValueError(f"grids are {self.grids}; list them from the finest to the coarsest, each once")
        if not self.zooms or not self.ratios or min(self.zooms + self.ratios) <= 0:
            raise ValueError(f"zooms {self.zooms} and ratios {self.ratios} must be above 0, and one each at least")


class SsdGrid(Detector):
    """Backbone, grids, one convolution for classes and one for boxes on each; see ``SsdGridOptions``."""

    def __init__(self, num_classes: int, options: SsdGridOptions) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(
            mean=options.mean, std=options.std, size=options.image_size, divisor=1, resize="stretch"
        )
        self.matcher = BestBoxMatcher(threshold=options.match_iou, bipartite=options.bipartite)
        self.class_loss = ClassLossOptions.of(options)
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.topk,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
        )
        self.backbone = Backbone(options.backbone, norm=options.norm, frozen_stages=options.frozen_stages)
        self.neck = GridNeck(
            self.backbone.channels,
            options.channels,
            options.grids,
            image_size=options.image_size,
            norm=options.head_norm,
        )
        anchors = len(options.zooms) * len(options.ratios)
        undecided = -math.log((1 - options.prior) / options.prior)
        self.class_logits, self.box_activations = nn.ModuleList(), nn.ModuleList()
        for _ in options.grids:
            self.class_logits.append(_predictor(options.channels, anchors * num_classes, bias=undecided))
            self.box_activations.append(_predictor(options.channels, anchors * 4, bias=0.0))

    def dense(self, images: Tensor) -> DenseOutputs:
        """Logits, and activations of ``decode_grid_boxes``, of every anchor of (B, 3, H, W) normalised images."""
        maps = self.neck(self.backbone(images))
        return DenseOutputs(
            logits=[anchors_last(conv(x), self.num_classes) for conv, x in zip(self.class_logits, maps)],
            deltas=[anchors_last(conv(x), 4) for conv, x in zip(self.box_activations, maps)],
            shapes=tuple((x.shape[-2], x.shape[-1]) for x in maps),
        )

    def anchors(self, outputs: DenseOutputs, images: Tensor) -> Tensor:
        """(N, 6): see ``grid_boxes``."""
        options = self.options
        image_shape = (images.shape[-2], images.shape[-1])
        return grid_boxes(options.grids, options.zooms, options.ratios, image_shape, outputs.logits[0].device)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``classification`` and ``box_regression``, each a sum divided by the batch's matched anchors."""
        outputs = self.dense(batch.images)
        anchors = self.anchors(outputs, batch.images)
        matched_idxs = torch.stack([self.matcher.match(t.boxes, t.iscrowd, anchors[:, :4]) for t in targets])
        matched = [(of_image >= 0).nonzero().squeeze(1) for of_image in matched_idxs]
        objects = [of_image[rows] for of_image, rows in zip(matched_idxs, matched)]
        labels = torch.cat([t.labels[o] for t, o in zip(targets, objects)])
        boxes = torch.cat([t.boxes[o] for t, o in zip(targets, objects)]).float()
        classification = dense_class_loss(
            outputs.logits, matched_idxs, labels, self.class_loss, anchors=anchors[:, :4], background="none"
        )
        activations = torch.cat(outputs.deltas, 1)
        activations = torch.cat([of_image[rows] for of_image, rows in zip(activations, matched)]).float()
        of_matched = anchors[torch.cat(matched)]
        distance = (decode_grid_boxes(activations, of_matched) - boxes).abs()
        match self.options.box_unit:
            case "image":
                unit = distance.new_tensor([batch.images.shape[-1], batch.images.shape[-2]]).repeat(2)
            case "anchor":
                unit = (of_matched[:, 2:4] - of_matched[:, :2]).repeat(1, 2)
        count = max(1, len(labels))
        return {
            "classification": classification.sum() / count,
            "box_regression": (distance / unit).sum() / count * self.options.box_loss_weight,
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        outputs = self.dense(batch.images)
        anchors = self.anchors(outputs, batch.images)
        return select_detections(outputs, anchors, batch, self.selection, decode=decode_grid_boxes)


class GridNeck(nn.Module):
    """One map of ``channels`` for each grid.

    A grid starts from the coarsest of the backbone's maps that is at least as fine, by a 3x3 convolution; where the
    grid before it started there already, from that grid. A 3x3 convolution of stride 2 makes the map coarser, and
    averaging takes the rest: 224 pixels give 7x7, then 4x4, 2x2 and 1x1.
    """

    def __init__(
        self, in_channels: tuple[int, ...], channels: int, grids: tuple[int, ...], *, image_size: int, norm: Norm
    ) -> None:
        super().__init__()
        self.grids = grids
        cells = [-(-image_size // stride) for stride in (8, 16, 32)]
        self.sources = [max(i for i in range(3) if i == 0 or cells[i] >= grid) for grid in grids]
        self.entries = nn.ModuleDict(
            {str(source): _conv(in_channels[source], channels, 1, norm) for source in sorted(set(self.sources))}
        )
        self.coarser = nn.ModuleList()
        for i, (grid, source) in enumerate(zip(grids, self.sources)):
            enters = i == 0 or source != self.sources[i - 1]
            before = cells[source] if enters else grids[i - 1]
            self.coarser.append(nn.Identity() if grid == before else _conv(channels, channels, 2, norm))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C3, C4, C5 to (B, channels, grid, grid) of each grid."""
        maps: list[Tensor] = []
        for i, (grid, source, coarser) in enumerate(zip(self.grids, self.sources, self.coarser)):
            enters = i == 0 or source != self.sources[i - 1]
            x = coarser(self.entries[str(source)](features[source]) if enters else maps[-1])
            maps.append(x if x.shape[-2:] == (grid, grid) else F.adaptive_avg_pool2d(x, grid))
        return maps


@lru_cache(maxsize=64)
def grid_boxes(
    grids: tuple[int, ...],
    zooms: tuple[float, ...],
    ratios: tuple[float, ...],
    image_shape: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """All anchors of all grids, cached; do not write into them.

    Args:
        grids: cells a side.
        zooms: size relative to the cell: an anchor's area is (zoom * cell)².
        ratios: height / width of an anchor in a square cell.
        image_shape: height and width of the batch's images.
    Returns:
        (N, 6) float32: xyxy, then the width and height of the anchor's cell, pixels; ordered by grid, row, column,
        zoom, ratio.
    """
    height, width = image_shape
    half = torch.tensor(
        [[zoom / math.sqrt(ratio) / 2, zoom * math.sqrt(ratio) / 2] for zoom in zooms for ratio in ratios],
        dtype=torch.float64,
    )
    # A tensor made under inference_mode could never be used in training again, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        parts = []
        for grid in grids:
            cell = torch.tensor([width / grid, height / grid], dtype=torch.float64)
            boxes = tile(torch.cat([-half, half], 1) * cell.repeat(2), (grid, grid), cell)
            parts.append(torch.cat([boxes, cell.expand(len(boxes), 2)], 1))
        return torch.cat(parts).float().to(device)


def decode_grid_boxes(activations: Tensor, anchors: Tensor) -> Tensor:
    """Boxes near their anchors: the centre moves by tanh(a) / 2 cells, the sides grow by 2^tanh(a).

    Args:
        activations: (N, 4), x, y, width, height; any real numbers.
        anchors: (N, 6), see ``grid_boxes``.
    Returns:
        (N, 4) xyxy: half to double the anchor's sides, centres at most half a cell from the anchor's.
    """
    bounded = torch.tanh(activations)
    centre = (anchors[:, :2] + anchors[:, 2:4]) / 2 + bounded[:, :2] / 2 * anchors[:, 4:]
    half = (anchors[:, 2:4] - anchors[:, :2]) / 2 * torch.exp2(bounded[:, 2:])
    return torch.cat([centre - half, centre + half], 1)


def _conv(in_channels: int, channels: int, stride: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, make_norm(norm, channels), nn.ReLU(inplace=True))


def _predictor(in_channels: int, outputs: int, *, bias: float) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, outputs, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


SSD_GRIDS: dict[str, SsdGridOptions] = {
    "ssd_grid_resnet34": SsdGridOptions(backbone="resnet34"),
    "ssd_grid_lite0": SsdGridOptions(
        backbone="tf_efficientnet_lite0", mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
    ),
}
