"""From a dense head's raw outputs to detections.

Shape legend: B images, n anchors of a level, C classes, S surviving (anchor, class) pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.blocks.codecs import decode_boxes
from detectors.blocks.heads import DenseOutputs
from detectors.blocks.nms import batched_nms
from detectors.structures import Batch, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSelection:
    """Which detections a dense detector reports.

    Attributes:
        score_threshold: scores must exceed this.
        topk: best candidates of a level that are kept before NMS.
        nms_iou: a box is suppressed by a better one of its class from beyond this IoU.
        max_detections: an image.
    """

    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 300

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1 or not 0 <= self.nms_iou <= 1:
            raise ValueError(f"score_threshold={self.score_threshold}, nms_iou={self.nms_iou} must lie in 0..1")
        if self.topk < 1 or self.max_detections < 1:
            raise ValueError(f"topk={self.topk}, max_detections={self.max_detections} must be at least 1")


def select_detections(
    outputs: DenseOutputs, anchors: Tensor, batch: Batch, selection: DenseSelection
) -> list[Prediction]:
    """Threshold, top-k a level, decode, clip, NMS, scale to original pixels.

    Few anchors pass the threshold, so it is tested on logits, on the best class of each anchor, and only what
    passes is ever turned into scores and boxes.

    Args:
        outputs: of the head.
        anchors: (N, 4) xyxy of all levels, model pixels.
        batch: for the images' sizes.
    """
    hopeful = [logits.amax(-1) > _safe_logit(selection.score_threshold) for logits in outputs.logits]
    level_anchors = anchors.split([logits.shape[1] for logits in outputs.logits])
    predictions = []
    for i, (size, original) in enumerate(zip(batch.sizes.tolist(), batch.original_sizes.tolist())):
        found = [
            _level_candidates(logits[i], deltas[i], hope[i], boxes, selection)
            for logits, deltas, hope, boxes in zip(outputs.logits, outputs.deltas, hopeful, level_anchors)
        ]
        scores, labels, boxes = (torch.cat(parts) for parts in zip(*found))
        boxes = clip_boxes(boxes, (size[0], size[1]))
        keep = batched_nms(boxes, scores, labels, selection.nms_iou, selection.max_detections)
        predictions.append(
            Prediction(
                boxes=scale_boxes(boxes[keep], (size[0], size[1]), (original[0], original[1])),
                labels=labels[keep],
                scores=scores[keep],
                size=(original[0], original[1]),
            )
        )
    return predictions


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


def _safe_logit(probability: float) -> float:
    """A logit just below that of ``probability``: rounding may let a few more pass, never fewer."""
    if probability <= 0:
        return -math.inf
    return math.log(probability / (1 - probability)) - 1e-3


def _level_candidates(
    logits: Tensor, deltas: Tensor, hopeful: Tensor, anchors: Tensor, selection: DenseSelection
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (S,), labels (S,), boxes (S, 4) of one level of one image, at most ``topk``."""
    rows = hopeful.nonzero().squeeze(1)
    best_logits = logits[rows]
    row, label = (best_logits > _safe_logit(selection.score_threshold)).nonzero(as_tuple=True)
    logit = best_logits[row, label]
    if len(logit) > selection.topk:
        logit, best = logit.topk(selection.topk)
        row, label = row[best], label[best]
    score = logit.float().sigmoid()
    sure = score > selection.score_threshold  # exact, now that there are few
    score, row, label = score[sure], row[sure], label[sure]
    anchor = rows[row]
    return score, label, decode_boxes(deltas[anchor].float(), anchors[anchor])
