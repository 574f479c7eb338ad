"""Mask R-CNN: He et al. 2017, 1703.06870; ``_v2``: Li et al. 2021, 2111.11429.

Shape legend: B images, R regions of all images, C classes, M x M cells of a crop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from detectors.blocks.box_heads import Detected
from detectors.blocks.mask_head import MaskHead, mask_crops, mask_loss, mask_regions
from detectors.blocks.roi import RoiPooler, SampledRois
from detectors.models.faster_rcnn import FASTER_RCNNS, FasterRcnn, FasterRcnnOptions
from detectors.options import check_at_least
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRcnnOptions(FasterRcnnOptions):
    """All choices; the defaults are those of the paper with a pyramid.

    Attributes:
        mask_roi_size: cells along a side of what is pooled for a mask, by RoIAlign. A crop has twice as many; where the
            backbone's last stage runs on regions (``roi_stage``), which halves them, just as many.
        mask_convs, mask_channels: see ``MaskHead``; its norm is ``head_norm``.
    """

    mask_roi_size: int = 14
    mask_convs: int = 4
    mask_channels: int = 256

    def __post_init__(self) -> None:
        FasterRcnnOptions.__post_init__(self)  # super() does not know a class that slots have made anew
        check_at_least(self, mask_roi_size=2, mask_convs=0, mask_channels=1)


class MaskRcnn(FasterRcnn):
    """Faster R-CNN and, beside its box head, one that draws each detection; see ``MaskRcnnOptions``."""

    network: ClassVar[tuple[str, ...]] = (*FasterRcnn.network, "mask_outputs")
    needs = frozenset({"masks"})
    options: MaskRcnnOptions

    def __init__(self, num_classes: int, options: MaskRcnnOptions) -> None:
        super().__init__(num_classes, options)
        self.mask_pooler = RoiPooler(
            size=options.mask_roi_size,
            strides=options.strides,
            samples=options.roi_samples,
            aligned=options.roi_aligned,
        )
        self.mask_head = MaskHead(
            in_channels=self.region_channels,
            channels=options.mask_channels,
            convs=options.mask_convs,
            norm=options.head_norm,
            num_classes=num_classes,
        )

    def mask_outputs(self, pooled: Tensor) -> Tensor:
        """Logits (R, C, M, M) of pooled regions."""
        logits: Tensor = self.mask_head(self.region_features(pooled))
        return logits

    def arithmetic(self, images: Tensor) -> object:
        return super().arithmetic(images), self.mask_outputs(
            self.pooled_shape(images, len(images) * self.options.max_detections, self.options.mask_roi_size)
        )

    def branch_losses(self, maps: list[Tensor], rois: list[SampledRois], targets: list[Target]) -> dict[str, Tensor]:
        """``mask``, and those of other branches."""
        taught = mask_regions(rois, targets)
        logits = self.mask_outputs(self.mask_pooler.pool(maps, [r.boxes for r in taught]))
        return {**super().branch_losses(maps, rois, targets), "mask": mask_loss(logits, taught, targets)}

    def predictions(self, maps: list[Tensor], found: list[Detected], batch: Batch) -> list[Prediction]:
        logits = self.mask_outputs(self.mask_pooler.pool(maps, [f.boxes for f in found]))
        crops = mask_crops(logits, torch.cat([f.labels for f in found])).split([len(f.labels) for f in found])
        predictions = super().predictions(maps, found, batch)
        return [replace(prediction, masks=of_image) for prediction, of_image in zip(predictions, crops)]


def _with_masks(faster_rcnn: str, **options: Any) -> MaskRcnnOptions:
    return MaskRcnnOptions(**{**asdict(FASTER_RCNNS[faster_rcnn]), **options})


MASK_RCNNS: dict[str, MaskRcnnOptions] = {
    "mask_rcnn_r50_fpn": _with_masks("faster_rcnn_r50_fpn"),
    # A norm behind every convolution, a deeper proposal head, a box head of convolutions.
    "mask_rcnn_r50_fpn_v2": _with_masks(
        "faster_rcnn_r50_fpn", norm="bn", neck_norm="bn", head_norm="bn", rpn_depth=2, box_convs=4, box_fcs=1
    ),
    "mask_rcnn_r101_fpn": _with_masks("faster_rcnn_r101_fpn"),
    "mask_rcnn_x101_fpn": _with_masks("faster_rcnn_r101_fpn", backbone="resnext101_32x8d"),
    "mask_rcnn_r50_c4": _with_masks("faster_rcnn_r50_c4", mask_convs=0),
    "mask_rcnn_lite0_fpn": _with_masks("faster_rcnn_lite0_fpn", head_norm="gn", mask_channels=64),
}
