"""YOLO: Redmon et al. 2015, "You Only Look Once: Unified, Real-Time Object Detection", 1506.02640.

Shape legend: B images, S x S cells, K boxes a cell (the paper's B), C classes, P cells of the batch with an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.base import Detector, Preprocessing
from detectors.blocks.backbones import Backbone
from detectors.blocks.cell_matching import match_cells
from detectors.blocks.darknet import LEAK, ConvNormAct
from detectors.blocks.heads import DenseOutputs
from detectors.blocks.matchers import BACKGROUND
from detectors.blocks.norms import NORMS, Norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloV1Options:
    """All choices; the defaults are the paper's but for the backbone, the head's norm and its last layers.

    The classification loss is no choice here: squared errors of scores that are not squashed are what this model is,
    and ``lambda_noobj`` is its answer to the many cells without an object.

    Attributes:
        backbone: a timm ``features_only`` network; its map at stride 32 is used.
        mean, std: of its preprocessing, 0..255.
        image_size: every image is stretched to this square, a multiple of 32 pixels.
        norm: of the backbone: frozen_bn, bn or gn.
        head: ``conv``: a 1x1 convolution; ``fc``: two fully connected layers as in the paper, with 211 million weights.
        head_channels: of the four 3x3 convolutions after the backbone.
        head_norm: of these: gn, bn (darknet's later files) or none (the paper).
        head_stride: of the second of them, 2 or 1; at 448 pixels 2 gives the 7 x 7 cells. Where the map is of another
            size than the grid, it is averaged to it.
        fc_channels, dropout: of the first fully connected layer.
        grid: S, cells a side.
        boxes_per_cell: boxes a cell predicts; the one that fits the object best answers for it.
        lambda_coord, lambda_noobj: weights of the box loss and of the confidence where there is no object.
        score_threshold, topk, nms_iou, max_detections: see ``DenseSelection``; a score is confidence x class, both cut
            to 0..1.
    """

    backbone: str = "resnet34"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    image_size: int = 448
    norm: Norm = "frozen_bn"
    head: Literal["conv", "fc"] = "conv"
    head_channels: int = 1024
    head_norm: Norm = "gn"
    head_stride: int = 2
    fc_channels: int = 4096
    dropout: float = 0.5
    grid: int = 7
    boxes_per_cell: int = 2
    lambda_coord: float = 5.0
    lambda_noobj: float = 0.5
    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 300

    def __post_init__(self) -> None:
        check_choices(self, head=("fc", "conv"), head_norm=NORMS)
        if self.head_stride not in (1, 2):
            raise ValueError(f"head_stride is {self.head_stride}; choose 1 or 2")
        if self.image_size < 64 or self.image_size % 32:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of 32, from 64 on")
        check_at_least(self, grid=1, boxes_per_cell=1, head_channels=1, fc_channels=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in 0 <= dropout < 1")


class YoloV1(Detector):
    """Backbone, four convolutions, one prediction for the whole image; see ``YoloV1Options``."""

    def __init__(self, num_classes: int, options: YoloV1Options) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(
            mean=options.mean, std=options.std, size=options.image_size, divisor=32, resize="stretch"
        )
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.topk,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
            activation="identity",
        )
        self.backbone = Backbone(options.backbone, norm=options.norm)
        wide, norm = options.head_channels, options.head_norm
        self.convs = nn.Sequential(
            ConvNormAct(self.backbone.channels[-1], wide, 3, norm=norm),
            ConvNormAct(wide, wide, 3, stride=options.head_stride, norm=norm),
            ConvNormAct(wide, wide, 3, norm=norm),
            ConvNormAct(wide, wide, 3, norm=norm),
        )
        per_cell = 5 * options.boxes_per_cell + num_classes
        cells = options.grid**2
        self.predicting: nn.Module
        if options.head == "fc":
            self.predicting = nn.Sequential(
                nn.Flatten(),
                nn.Linear(wide * cells, options.fc_channels),
                nn.LeakyReLU(LEAK, inplace=True),
                nn.Dropout(options.dropout),
                nn.Linear(options.fc_channels, cells * per_cell),
            )
        else:
            self.predicting = nn.Conv2d(wide, per_cell, 1)

    def dense(self, images: Tensor) -> Tensor:
        """What every cell of (B, 3, H, W) normalised images says.

        Returns:
            (B, S * S, 5 * K + C): for each box the centre's x, y in its cell (0..1), the roots of width and height as
            parts of the image, its confidence; then one score a class. Cells go by row and column.
        """
        features = self.convs(self.backbone(images)[-1])
        grid = self.options.grid
        if features.shape[-2:] != (grid, grid):
            features = F.adaptive_avg_pool2d(features, grid)
        predicted: Tensor = self.predicting(features)
        if self.options.head == "conv":
            return predicted.flatten(2).transpose(1, 2)
        return predicted.view(len(images), grid * grid, -1)

    def split(self, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., 5 * K + C) to coordinates (..., K, 4), confidences (..., K) and class scores (..., C)."""
        boxes, classes = predicted.split([5 * self.options.boxes_per_cell, self.num_classes], -1)
        boxes = boxes.unflatten(-1, (-1, 5))
        return boxes[..., :4], boxes[..., 4], classes

    def cells(self, batch: Batch) -> Tensor:
        """(S * S, 4): left, top, width and height of the cells in model pixels."""
        height, width = batch.images.shape[-2:]
        side = torch.arange(self.options.grid, device=batch.images.device)
        row, column = torch.meshgrid(side, side, indexing="ij")
        step = batch.images.new_tensor([width, height], dtype=torch.float32) / self.options.grid
        corner = torch.stack([column, row], -1).reshape(-1, 2) * step
        return torch.cat([corner, step.expand_as(corner)], 1)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """Equation 3 of the paper in its four parts, a mean over images."""
        coordinates, confidences, scores = self.split(self.dense(batch.images).float())
        size = (batch.images.shape[-2], batch.images.shape[-1])
        matched = torch.stack([match_cells(t.boxes, t.iscrowd, grid=self.options.grid, size=size) for t in targets])
        image, cell = (matched >= 0).nonzero(as_tuple=True)
        boxes = torch.cat([t.boxes[m[m >= 0]].float() for t, m in zip(targets, matched)])
        labels = torch.cat([t.labels[m[m >= 0]] for t, m in zip(targets, matched)])
        cells = self.cells(batch)[cell]
        found = coordinates[image, cell]  # (P, K, 4)
        iou, best = self._responsible(found, cells, boxes)

        true = encode_roots(boxes, cells, self.options.grid)
        place = torch.arange(len(best), device=best.device)
        box_loss = (found[place, best] - true).square().sum()
        # Crowded cells, and the boxes that answer for an object, are not told to be sure of nothing.
        empty = (matched == BACKGROUND)[..., None].repeat(1, 1, confidences.shape[-1])
        empty[image, cell] = True
        empty[image, cell, best] = False
        object_loss = (confidences[image, cell, best] - iou).square().sum()
        class_loss = (scores[image, cell] - F.one_hot(labels, self.num_classes)).square().sum()
        return {
            "box_regression": self.options.lambda_coord * box_loss / len(targets),
            "objectness": object_loss / len(targets),
            "no_objectness": self.options.lambda_noobj * (confidences.square() * empty).sum() / len(targets),
            "classification": class_loss / len(targets),
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        coordinates, confidences, classes = self.split(self.dense(batch.images).float())
        # A handful of boxes: their scores need no care about logits.
        scores = confidences.clamp(0, 1)[..., None] * classes.clamp(0, 1)[..., None, :]
        grid = self.options.grid
        outputs = DenseOutputs(
            logits=[scores.flatten(1, 2)], deltas=[coordinates.flatten(1, 2)], shapes=((grid, grid),)
        )
        cells = self.cells(batch).repeat_interleave(self.options.boxes_per_cell, 0)
        return select_detections(
            outputs, cells, batch, self.selection, lambda found, corner: decode_roots(found, corner, grid)
        )

    @torch.no_grad()
    def _responsible(self, found: Tensor, cells: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) highest IoU of each cell's boxes with its object, and which of them has it.

        Where none overlaps, the one whose numbers are nearest answers, as in darknet.
        """
        decoded = decode_roots(found, cells[:, None], self.options.grid)
        highest, best = _iou(decoded, boxes[:, None]).max(1)
        true = encode_roots(boxes, cells, self.options.grid)
        nearest = (found - true[:, None]).square().sum(-1).argmin(1)
        return highest, torch.where(highest > 0, best, nearest)


def encode_roots(boxes: Tensor, cells: Tensor, grid: int) -> Tensor:
    """(P, 4) xyxy and their (P, 4) cells to x, y in the cell and the roots of width and height in the image."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([(centre - cells[:, :2]) / cells[:, 2:], (size / (cells[:, 2:] * grid)).sqrt()], 1)


def decode_roots(coordinates: Tensor, cells: Tensor, grid: int) -> Tensor:
    """The inverse of ``encode_roots``; (..., 4) each. Roots count by their size, whatever their sign."""
    centre = cells[..., :2] + coordinates[..., :2] * cells[..., 2:]
    half = coordinates[..., 2:].square() * cells[..., 2:] * grid / 2
    return torch.cat([centre - half, centre + half], -1)


def _iou(found: Tensor, boxes: Tensor) -> Tensor:
    """(...) IoU of pairs of (..., 4) xyxy boxes."""
    inside = (torch.minimum(found[..., 2:], boxes[..., 2:]) - torch.maximum(found[..., :2], boxes[..., :2])).clamp(
        min=0
    )
    areas = (found[..., 2:] - found[..., :2]).prod(-1) + (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return inside.prod(-1) / (areas - inside.prod(-1)).clamp(min=1e-9)


YOLO_V1S: dict[str, YoloV1Options] = {"yolo_v1_resnet34": YoloV1Options()}
