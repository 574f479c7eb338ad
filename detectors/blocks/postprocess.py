"""From a dense head's raw outputs to detections.

Shape legend: B images, N anchors of all levels, S candidates (anchor, class) of all images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from detectors.blocks.candidates import Activation, Background, LabelsPerAnchor, TopkOf, find_candidates
from detectors.blocks.codecs import decode_boxes
from detectors.blocks.heads import DenseOutputs
from detectors.blocks.nms import nms_of_images
from detectors.options import check_choices
from detectors.structures import Batch, Prediction

Decode = Callable[[Tensor, Tensor], Tensor]
"""From (S, 4) deltas and the S rows of ``anchors`` they belong to, to (S, 4) xyxy boxes in model pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSelection:
    """Which detections a dense detector reports.

    Attributes:
        score_threshold: scores must exceed this.
        topk: best candidates that are kept before NMS, of each ``topk_of``.
        nms_iou: a box is suppressed by a better one of its class from beyond this IoU.
        max_detections: an image.
        activation: ``sigmoid`` of each class (RetinaNet), ``softmax`` over classes and background (SSD), ``identity``
            where the head gives scores. All but softmax are multiplied by the sigmoid of ``DenseOutputs.objectness``
            where there is one (YOLO).
        background: where background stands among softmax's values: ``first`` (torchvision) or ``last``; else ``none``.
        topk_of: ``level`` of an image (RetinaNet), ``image`` (EfficientDet) or ``class`` of an image (SSD).
        labels_per_anchor: an anchor is reported for ``all`` classes that pass, or for its ``best`` alone.
        class_thresholds: of each class, that its scores must exceed as well; see ``detectors.class_thresholds``.
    """

    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 300
    activation: Activation = "sigmoid"
    background: Background = "none"
    topk_of: TopkOf = "level"
    labels_per_anchor: LabelsPerAnchor = "all"
    class_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1 or not 0 <= self.nms_iou <= 1:
            raise ValueError(f"score_threshold={self.score_threshold}, nms_iou={self.nms_iou} must lie in 0..1")
        if self.topk < 1 or self.max_detections < 1:
            raise ValueError(f"topk={self.topk}, max_detections={self.max_detections} must be at least 1")
        check_choices(
            self,
            activation=get_args(Activation),
            background=get_args(Background),
            topk_of=get_args(TopkOf),
            labels_per_anchor=get_args(LabelsPerAnchor),
        )
        if (self.activation == "softmax") == (self.background == "none"):
            raise ValueError(
                f"activation={self.activation!r} with background={self.background!r}: softmax needs background to be "
                "first or last, the others have none"
            )


def select_detections(
    outputs: DenseOutputs,
    anchors: Tensor,
    batch: Batch,
    selection: DenseSelection,
    decode: Decode = decode_boxes,
) -> list[Prediction]:
    """Threshold, top-k, decode, clip, NMS, scale to original pixels.

    Args:
        outputs: of the head.
        anchors: (N, ...) of all levels, whatever ``decode`` wants of each: (N, 4) xyxy in model pixels mostly.
        batch: for the images' sizes.
        selection: what is reported.
        decode: called once, with what is left of all images.
    """
    found = find_candidates(
        outputs,
        score_threshold=selection.score_threshold,
        topk=selection.topk,
        activation=selection.activation,
        background=selection.background,
        topk_of=selection.topk_of,
        labels_per_anchor=selection.labels_per_anchor,
        class_thresholds=selection.class_thresholds,
    )
    boxes = decode(found.deltas, anchors[found.anchor])
    limits = batch.sizes.flip(1).repeat(1, 2).to(boxes)  # width, height, width, height
    boxes = torch.minimum(boxes.clamp(min=0), limits[found.image])
    counts = torch.bincount(found.image, minlength=len(batch)).tolist()
    kept = nms_of_images(boxes, found.score, found.label, counts, selection.nms_iou, selection.max_detections)
    every, lengths = torch.cat(kept), [len(of_image) for of_image in kept]
    return [
        Prediction(
            boxes=scale_boxes(of_image, (size[0], size[1]), (original[0], original[1])),
            labels=labels,
            scores=scores,
            size=(original[0], original[1]),
        )
        for size, original, of_image, labels, scores in zip(
            batch.sizes.tolist(),
            batch.original_sizes.tolist(),
            boxes[every].split(lengths),
            found.label[every].split(lengths),
            found.score[every].split(lengths),
        )
    ]


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 4) xyxy boxes cut to an image of ``size`` (height, width)."""
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limit)


def scale_boxes(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """(N, 4) xyxy boxes from an image of ``size`` (height, width) to the same image of ``original`` size."""
    if size == original:
        return boxes
    y, x = original[0] / size[0], original[1] / size[1]
    return clip_boxes(boxes * boxes.new_tensor([x, y, x, y]), original)
