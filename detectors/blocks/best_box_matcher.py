"""SSD's matcher: the best default box of every object, then every box that overlaps one enough.

Shape legend: M objects of an image, N default boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors.blocks.matchers import BACKGROUND, IGNORED, intersection_over_anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class BestBoxMatcher:
    """No object goes unmatched, however small it is.

    Attributes:
        threshold: a box with an IoU above this answers for the object it overlaps most.
        bipartite: objects take their best boxes one after the other, the best pair first, and no two the same (the
            paper's "bipartite"); False lets each take its best whatever it overlaps, and of two that meet on one the
            later wins (torchvision, fast.ai), so that the other may go unmatched.
    Source: Liu et al. 2015, 1512.02325, section 2.2; torchvision.models.detection._utils.SSDMatcher.
    """

    threshold: float = 0.5
    bipartite: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"matching threshold {self.threshold} must lie in 0..1")

    def match(self, boxes: Tensor, iscrowd: Tensor, anchors: Tensor) -> Tensor:
        """Matches the default boxes of one image.

        A crowd region is no object. A box of which at least half lies inside crowd regions is ignored instead of
        background: what it shows may well be an object.

        Args:
            boxes: (M, 4) xyxy; boxes without area match nothing.
            iscrowd: (M,) bool.
            anchors: (N, 4) xyxy.
        Returns:
            matched_idxs: (N,) int64, index of the object, or BACKGROUND, or IGNORED.
        """
        matched = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects = torch.nonzero(~iscrowd & solid).squeeze(1)
        if len(objects):
            iou = box_iou(boxes[objects], anchors)
            best, nearest = iou.max(0)
            matched = torch.where(best > self.threshold, objects[nearest], matched)
            own = _bipartite(iou) if self.bipartite else iou.argmax(1)
            for i, anchor in enumerate(own.tolist()):
                if anchor >= 0:
                    matched[anchor] = objects[i]
        if bool(iscrowd.any()):
            covered = intersection_over_anchor(boxes[iscrowd], anchors).amax(0) >= 0.5
            matched[covered & (matched == BACKGROUND)] = IGNORED
        return matched


def _bipartite(iou: Tensor) -> Tensor:
    """(M,) box of each object, the best pair of all first; -1 where only boxes that miss it are left."""
    best, place = (values.tolist() for values in iou.max(1))
    own = [-1] * len(iou)
    waiting = set(range(len(iou)))
    while waiting:
        i = max(waiting, key=lambda k: (best[k], -k))
        if best[i] <= 0:
            break
        if place[i] in own:
            # Its best box is gone by now: the best of what is left, and back in line with that.
            left = iou[i].clone()
            left[[box for box in own if box >= 0]] = 0
            value, where = left.max(0)
            best[i], place[i] = float(value), int(where)
            continue
        own[i] = place[i]
        waiting.remove(i)
    return torch.tensor(own)
