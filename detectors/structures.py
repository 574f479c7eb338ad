"""What goes into a detector and what comes out of it.

Shape legend: B images a batch, N objects of an image, K keypoints, H x W pixels (padded), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.blocks.masks import THRESHOLD, mask_rles
from detectors.blocks.pasting import paste_masks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Normalised images, padded to one size at the right and the bottom.

    Attributes:
        images: (B, 3, H, W) float, normalised by the model's preprocessing; padding is 0.
        sizes: (B, 2) int64 height, width of each image inside its padding, in model pixels.
        original_sizes: (B, 2) int64 height, width of each image as stored.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, images=self.images.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The truth of one image, in model pixels (the frame of ``Batch.images``).

    Attributes:
        boxes: (N, 4) float32 xyxy.
        labels: (N,) int64 in 0..C-1.
        iscrowd: (N,) bool; crowd regions are neither objects nor background.
        masks: (N, h, w) bool or None.
        keypoints: (N, K, 3) float32 x, y, visibility (0 not labelled, 1 hidden, 2 visible) or None. Objects without
            keypoints have visibility 0 everywhere, and teach none.
        mask_valid: (N,) bool, objects whose mask is known, or None where all are. The others (a box without an
            outline in its source) have an empty mask; they teach boxes and labels, but no masks.
    """

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    mask_valid: Tensor | None = None

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def to(self, device: torch.device | str) -> Target:
        return Target(
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            iscrowd=self.iscrowd.to(device),
            masks=None if self.masks is None else self.masks.to(device),
            keypoints=None if self.keypoints is None else self.keypoints.to(device),
            mask_valid=None if self.mask_valid is None else self.mask_valid.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a detector found in one image, by descending score.

    Attributes:
        boxes: (N, 4) float32 xyxy, absolute pixels of the original image, clipped to it.
        labels: (N,) int64 in 0..C-1.
        scores: (N,) float32 in [0, 1].
        masks: (N, M, M) float32 probabilities of the mask inside its box, or None.
        keypoints: (N, K, 3) float32 x, y (original pixels), score, or None.
        size: height, width of the original image.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    size: tuple[int, int]
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def take(self, index: Tensor) -> Prediction:
        """The detections at (M,) int64 ``index``, in its order."""
        return replace(
            self,
            boxes=self.boxes[index],
            labels=self.labels[index],
            scores=self.scores[index],
            masks=None if self.masks is None else self.masks[index],
            keypoints=None if self.keypoints is None else self.keypoints[index],
        )

    def rle(self, threshold: float = THRESHOLD) -> list[NDArray[np.int64]]:
        """COCO's uncompressed run lengths of each mask in the original image, see ``mask_rles``.

        Raises:
            ValueError: there are no masks, or the threshold is out of range.
        """
        return mask_rles(self._crops(), self.boxes, self.size, threshold)

    def dense(self) -> Tensor:
        """(N, H, W) float32 probabilities of the masks in the original image, 0 outside their boxes.

        Raises:
            ValueError: there are no masks.
        """
        return paste_masks(self._crops(), self.boxes, self.size)

    def _crops(self) -> Tensor:
        if self.masks is None:
            raise ValueError("this prediction has no masks; a detector of masks, such as mask_rcnn_*, gives them")
        return self.masks
