"""R-CNN: Girshick et al. 2013, "Rich feature hierarchies for accurate object detection", 1311.2524.

It differs from the paper in what predicts: a softmax over background and the classes, learnt together with the network,
where the paper trains a support vector machine for each class afterwards; and boxes are regressed from the last hidden
layer, learnt together as well, by the smooth L1 loss, where the paper fits ridge regressions on the last map. That is
what Fast R-CNN made of it (1504.08083, section 5.4, finds the softmax as good).

Shape legend: B images, P proposals of an image, R regions of all images, S pixels of a crop's side, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.blocks.roi import RoiPooler, SampledRois, sample_rois_together
from detectors.models.proposed_regions import ProposedRegions, ProposedRegionsOptions
from detectors.options import check_at_least
from detectors.structures import Batch, Target

STRIDE = 32
"""Of the map that a crop is classified by: the backbone's last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RcnnOptions(ProposedRegionsOptions):
    """All choices; the defaults are the paper's.

    Attributes:
        crop_size: side that every region is warped to, pixels, a multiple of 32.
        context: of them, how many on each side show what is around the region.
        roi_batch: regions a step, of all images of the batch together.
        crops_at_once: regions that go through the network at a time in prediction; more take more memory.
    """

    crop_size: int = 224
    context: int = 16
    roi_batch: int = 128
    crops_at_once: int = 128

    def __post_init__(self) -> None:
        ProposedRegionsOptions.__post_init__(self)
        check_at_least(self, crop_size=STRIDE, context=0, roi_batch=1, crops_at_once=1)
        if self.crop_size % STRIDE or 2 * self.context >= self.crop_size:
            raise ValueError(
                f"crop_size is {self.crop_size} and context {self.context}; the first must be a multiple of {STRIDE}, "
                "the second less than half of it"
            )


class Rcnn(ProposedRegions):
    """Every proposal is warped to one size and goes through the whole network; see ``RcnnOptions``."""

    network: ClassVar[tuple[str, ...]] = ("crop_outputs",)

    def __init__(self, num_classes: int, options: RcnnOptions) -> None:
        super().__init__(
            num_classes,
            options,
            stride=STRIDE,
            region_size=options.crop_size // STRIDE,
            roi_batch=options.roi_batch,
        )
        self.options = options

    def crop_outputs(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + C), background first, and deltas (R, 4, C) of (R, 3, S, S) normalised crops."""
        outputs: tuple[Tensor, Tensor] = self.box_head(self.backbone(crops)[0])
        return outputs

    def arithmetic(self, images: Tensor) -> object:
        size, regions = self.options.crop_size, len(images) * self.options.proposals
        return self.crop_outputs(images.new_empty((regions, 3, size, size)))

    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[SampledRois]:
        return sample_rois_together(proposals, targets, self.sampling)

    def outputs_of(self, batch: Batch, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return self.crop_outputs(self.warp(batch.images, boxes))
        # Some thousand crops would not fit into memory.
        chunks = [
            self.crop_outputs(self.warp(image[None], [part]))
            for image, of_image in zip(batch.images, boxes)
            for part in of_image.split(self.options.crops_at_once)
        ]
        logits, deltas = zip(*chunks)
        return torch.cat(logits), torch.cat(deltas)

    def warp(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        """Regions and what is around them, stretched or shrunk to squares; beyond the image is the mean colour.

        Args:
            images: (B, 3, H, W) normalised.
            boxes: of each image (P, 4) xyxy, model pixels.
        Returns:
            (R, 3, S, S), each pixel the mean of those that it covers; image after image.
        Source: the paper's appendix A, D.
        """
        size = self.options.crop_size
        grown = [grow(b, size / (size - 2 * self.options.context)) for b in boxes]
        return RoiPooler(kind="align", size=size, strides=(1,), samples=0, aligned=True).pool([images], grown)


def grow(boxes: Tensor, factor: float) -> Tensor:
    """(P, 4) xyxy boxes about their centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    return torch.cat([centre - half, centre + half], 1)


RCNNS: dict[str, RcnnOptions] = {
    "rcnn_vgg16": RcnnOptions(image_size=500),  # that of VOC's images; crops are resampled in any case
    # For CPUs: still a network run for every proposal, but a small one on small crops, and fewer of them.
    "rcnn_lite0": RcnnOptions(
        backbone="tf_efficientnet_lite0",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        image_size=320,
        crop_size=96,
        context=7,
        box_channels=256,
        dropout=0.0,
        roi_batch=64,
        proposals=300,
        search_size=320,
        search_colours=("lab",),
        search_scales=(50.0,),
    ),
}
