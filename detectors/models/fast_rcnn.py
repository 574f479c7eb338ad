"""Fast R-CNN: Girshick 2015, 1504.08083.

Shape legend: B images, P proposals of an image, R regions of all images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from detectors.blocks.roi import RoiPooler, RoiPooling, SampledRois, sample_rois
from detectors.models.proposed_regions import ProposedRegions, ProposedRegionsOptions
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class FastRcnnOptions(ProposedRegionsOptions):
    """All choices; the defaults are the paper's.

    Attributes:
        background_iou: below this IoU with every object a proposal is not even background.
        stride: of the backbone's map that regions are pooled from.
        roi_pooling, roi_size, roi_samples, roi_aligned: see ``RoiPooler``.
        roi_batch: regions an image and step.
    """

    background_iou: float = 0.1
    stride: int = 16
    roi_pooling: RoiPooling = "max"
    roi_size: int = 7
    roi_samples: int = 2
    roi_aligned: bool = False
    roi_batch: int = 64

    def __post_init__(self) -> None:
        ProposedRegionsOptions.__post_init__(self)
        check_choices(self, roi_pooling=get_args(RoiPooling))
        check_at_least(self, roi_size=1, roi_samples=0, roi_batch=1)


class FastRcnn(ProposedRegions):
    """An image's map is computed once, and proposals are pooled from it; see ``FastRcnnOptions``."""

    network: ClassVar[tuple[str, ...]] = ("dense", "box_outputs")

    def __init__(self, num_classes: int, options: FastRcnnOptions) -> None:
        super().__init__(
            num_classes,
            options,
            stride=options.stride,
            region_size=options.roi_size,
            roi_batch=options.roi_batch,
        )
        self.options = options
        self.pooler = RoiPooler(
            kind=options.roi_pooling,
            size=options.roi_size,
            strides=(options.stride,),
            samples=options.roi_samples,
            aligned=options.roi_aligned,
        )

    def dense(self, images: Tensor) -> Tensor:
        """The map (B, channels, H / stride, W / stride) of (B, 3, H, W) normalised images."""
        maps: list[Tensor] = self.backbone(images)
        return maps[0]

    def box_outputs(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + C), background first, and deltas (R, 4, C) of pooled regions."""
        outputs: tuple[Tensor, Tensor] = self.box_head(pooled)
        return outputs

    def arithmetic(self, images: Tensor) -> object:
        found, size = self.dense(images), self.options.roi_size
        regions = len(images) * self.options.proposals
        return found, self.box_outputs(found.new_empty((regions, found.shape[1], size, size)))

    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[SampledRois]:
        return sample_rois(proposals, targets, self.sampling)

    def outputs_of(self, batch: Batch, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.box_outputs(self.pooler.pool([self.dense(batch.images)], boxes))


FAST_RCNNS: dict[str, FastRcnnOptions] = {
    "fast_rcnn_vgg16": FastRcnnOptions(image_size=800),  # a 4:3 image's shorter side is the paper's 600
    # Light enough to train on two CPU cores: narrow, half the image, a quarter of the search and of the proposals.
    "fast_rcnn_lite0": FastRcnnOptions(
        backbone="tf_efficientnet_lite0",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        image_size=320,
        box_channels=256,
        dropout=0.0,
        proposals=500,
        search_size=320,
        search_colours=("lab",),
        search_scales=(50.0,),
    ),
}
