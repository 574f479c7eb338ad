"""Regions of interest: their features, and which of them a second stage learns from.

Shape legend: R regions of all images, P proposals of an image, M objects of an image, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_align, roi_pool

from detectors.blocks.matchers import BACKGROUND, IGNORED, IouMatcher
from detectors.blocks.roi_align import can_gather, gather_align
from detectors.blocks.samplers import balanced
from detectors.structures import Target

RoiPooling = Literal["align", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiPooler:
    """From regions to maps of one size.

    Attributes:
        kind: ``align`` (bilinear samples, nothing is rounded; He et al. 2017, 1703.06870, section 3) or ``max`` over
            the cells of each bin (Girshick 2015, 1504.08083, section 2.1).
        size: height and width of what comes out.
        strides: of the maps; with several, each region takes the one of its size.
        samples: along each side of a bin, of ``align``; 0 is as many as the bin has cells.
        aligned: of ``align``: pixels are shifted by half a one, so that samples lie where they should; torchvision's
            detectors do without.
        canonical_size, canonical_stride: a region of so many pixels is pooled from the map of that stride; each
            halving of its size goes one map finer (Lin et al. 2017, 1612.03144, equation 1).
    """

    kind: RoiPooling = "align"
    size: int = 7
    strides: tuple[int, ...] = (4, 8, 16, 32)
    samples: int = 2
    aligned: bool = False
    canonical_size: float = 224.0
    canonical_stride: int = 16

    def pool(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Pools the regions of all images.

        Args:
            maps: (B, C, H / stride, W / stride), one for each of ``strides``; more are not looked at.
            boxes: of each image (n, 4) xyxy, model pixels.
        Returns:
            (R, C, size, size), image after image.
        """
        maps = maps[: len(self.strides)]
        rois = _with_image(boxes).to(maps[0])
        if self.kind == "align" and self.samples and can_gather(maps):
            return gather_align(
                maps,
                rois,
                self.levels(rois[:, 1:]) if len(maps) > 1 else torch.zeros(len(rois), dtype=torch.int64),
                strides=self.strides,
                size=self.size,
                samples=self.samples,
                aligned=self.aligned,
            )
        if len(maps) == 1:
            return self._pool_level(maps[0], rois, self.strides[0])
        level = self.levels(rois[:, 1:])
        places = [(level == i).nonzero().squeeze(1) for i in range(len(maps))]
        pooled = [self._pool_level(x, rois[place], stride) for x, place, stride in zip(maps, places, self.strides)]
        # One gather instead of writing into a tensor level by level: half the memory traffic, and of its gradient.
        return torch.cat(pooled)[torch.cat(places).argsort()]

    def levels(self, boxes: Tensor) -> Tensor:
        """(R,) which map each of (R, 4) boxes is pooled from: k = 4 + log2(sqrt(wh) / 224), as index."""
        side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        of_stride = torch.log2(side / self.canonical_size) + self.canonical_stride.bit_length() - 1
        k = torch.floor(of_stride + 1e-6) - (self.strides[0].bit_length() - 1)
        return k.clamp(0, len(self.strides) - 1).long()

    def _pool_level(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        match self.kind:
            case "align":
                pooled: Tensor = roi_align(x, rois, self.size, 1 / stride, self.samples or -1, self.aligned)
            case "max":
                pooled = roi_pool(x, rois, self.size, 1 / stride)
        return pooled


def _with_image(boxes: list[Tensor]) -> Tensor:
    """(R, 5): the image's number and the box."""
    return torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(boxes)])


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiSampling:
    """Which proposals the second stage learns from.

    Attributes:
        positive_iou: from this IoU with an object on a proposal is that object; below it is background.
        background_iou: below this IoU with every object a proposal does not count; Fast R-CNN's 0.1 leaves the
            harder ones.
        batch: proposals an image.
        positive_fraction: of them at most so many positive.
    """

    positive_iou: float = 0.5
    background_iou: float = 0.0
    batch: int = 512
    positive_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.background_iou <= self.positive_iou <= 1:
            raise ValueError(
                f"background_iou={self.background_iou} and positive_iou={self.positive_iou} must be 0 <= background "
                "<= positive <= 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledRois:
    """Proposals of one image that count.

    Attributes:
        boxes: (n, 4) xyxy, model pixels.
        matched_idxs: (n,) int64 which object of the image each is, or BACKGROUND.
    """

    boxes: Tensor
    matched_idxs: Tensor


@torch.no_grad()
def sample_rois(proposals: list[Tensor], targets: list[Target], sampling: RoiSampling) -> list[SampledRois]:
    """Samples the proposals of each image, objects themselves among them, so that each image with any has positives.

    Args:
        proposals: of each image (P, 4) xyxy, model pixels.
        targets: of the images; crowd regions and boxes without area are no objects.
        sampling: how many of which.
    Source: Girshick 2015, 1504.08083, section 2.3; torchvision.models.detection.roi_heads.
    """
    return [_balanced([matched], sampling)[0] for matched in _match(proposals, targets, sampling)]


@torch.no_grad()
def sample_rois_together(proposals: list[Tensor], targets: list[Target], sampling: RoiSampling) -> list[SampledRois]:
    """``sample_rois`` of all images at once: ``sampling.batch`` regions, however many of which image.

    Source: Girshick et al. 2013, 1311.2524, section 2.3.
    """
    return _balanced(_match(proposals, targets, sampling), sampling)


def _match(proposals: list[Tensor], targets: list[Target], sampling: RoiSampling) -> list[SampledRois]:
    """All proposals of each image and its objects, and what each of them is."""
    matcher = IouMatcher(high=sampling.positive_iou, low=sampling.positive_iou, low_quality=False)
    every = []
    for boxes, target in zip(proposals, targets):
        real = ~target.iscrowd & (target.boxes[:, 2:] > target.boxes[:, :2]).all(1)
        boxes = torch.cat([boxes, target.boxes[real].to(boxes)])
        matched = matcher.match(target.boxes, target.iscrowd, boxes)
        if sampling.background_iou > 0 and len(target):
            far = box_iou(target.boxes.to(boxes), boxes).amax(0) < sampling.background_iou
            matched[far & (matched == BACKGROUND)] = IGNORED
        every.append(SampledRois(boxes=boxes, matched_idxs=matched))
    return every


def _balanced(every: list[SampledRois], sampling: RoiSampling) -> list[SampledRois]:
    """So many of all of them."""
    chosen = balanced(
        torch.cat([rois.matched_idxs for rois in every])[None],
        batch_size=sampling.batch,
        positive_fraction=sampling.positive_fraction,
    ).squeeze(0)
    return [
        SampledRois(boxes=rois.boxes[kept], matched_idxs=rois.matched_idxs[kept])
        for rois, kept in zip(every, chosen.split([len(rois.boxes) for rois in every]))
    ]
