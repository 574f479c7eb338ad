"""Matchers: which object an anchor answers for.

Shape legend: M objects of an image, N anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class IouMatcher:
    """Positive from ``high`` IoU on, background below ``low``, ignored between.

    Attributes:
        high, low: IoU limits in [0, 1].
        low_quality: the best anchors of an object are positive even where their IoU is below ``high`` (but > 0), so
            that no object goes unmatched.
    Source: Ren et al. 2015, 1506.01497, section 3.1.2; torchvision.models.detection._utils.Matcher.
    """

    high: float = 0.5
    low: float = 0.4
    low_quality: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"matching limits low={self.low}, high={self.high}: need 0 <= low <= high <= 1")

    def match(self, boxes: Tensor, iscrowd: Tensor, anchors: Tensor) -> Tensor:
        """Matches the anchors of one image.

        A crowd region is no object. An anchor of which at least ``low`` lies inside crowd regions is ignored
        instead of background: what it shows may well be an object.

        Args:
            boxes: (M, 4) xyxy; boxes without area match nothing.
            iscrowd: (M,) bool.
            anchors: (N, 4) xyxy.
        Returns:
            matched_idxs: (N,) int64, index of the object, or BACKGROUND, or IGNORED.
        """
        matched = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
        objects = torch.nonzero(~iscrowd).squeeze(1)
        if len(objects):
            matched = self._match_objects(boxes[objects], anchors)
            matched = torch.where(matched >= 0, objects[matched.clamp(min=0)], matched)
        if len(objects) < len(boxes):
            covered = intersection_over_anchor(boxes[iscrowd], anchors).amax(0) >= max(self.low, 1e-6)
            matched[covered & (matched == BACKGROUND)] = IGNORED
        return matched

    def _match_objects(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        iou = box_iou(boxes, anchors).nan_to_num_(0.0)
        best, nearest = iou.max(0)
        matched = nearest.clone()
        matched[best < self.high] = IGNORED
        matched[best < self.low] = BACKGROUND
        if self.low_quality:
            best_of_object = iou.amax(1, keepdim=True)
            is_best = ((iou == best_of_object) & (best_of_object > 0)).any(0)
            matched = torch.where(is_best, nearest, matched)
        return matched


def intersection_over_anchor(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(M, N) share of each anchor's area that lies inside each box."""
    top_left = torch.maximum(boxes[:, None, :2], anchors[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], anchors[None, :, 2:])
    inside = (bottom_right - top_left).clamp_(min=0).prod(-1)
    return inside / (anchors[:, 2:] - anchors[:, :2]).prod(-1).clamp(min=1e-6)
