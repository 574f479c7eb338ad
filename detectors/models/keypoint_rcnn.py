"""Keypoint R-CNN: He et al. 2017, 1703.06870, section 5.

Shape legend: B images, R regions of all images, K keypoints, M x M cells of a heat map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from detectors.blocks.box_heads import Detected
from detectors.blocks.keypoint_head import KeypointHead, keypoint_loss, keypoint_regions, locate_keypoints
from detectors.blocks.roi import RoiPooler, SampledRois
from detectors.models.faster_rcnn import FasterRcnn
from detectors.models.mask_rcnn import MASK_RCNNS, MaskRcnn, MaskRcnnOptions
from detectors.options import check_at_least
from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointRcnnOptions(MaskRcnnOptions):
    """All choices; the defaults are those of the paper with a pyramid.

    Attributes:
        num_keypoints: K, those of the one kind of objects that has any; a dataset says it.
        keypoint_flip: the index that each keypoint takes in a mirror image, such as (0, 2, 1) where the second and the
            third are a left and a right one; () where no side matters. A dataset says it too. What looks at mirrored
            images with this detector needs it.
        keypoint_roi_size: cells along a side of what is pooled for keypoints, by RoIAlign; a heat map has four times
            as many.
        keypoint_convs, keypoint_channels: see ``KeypointHead``; its norm is ``head_norm``.
        keypoint_rois: regions of an image that keypoints are learnt from, at most.
        with_masks: masks are learnt and found as well; the options of masks count then alone.
    """

    num_keypoints: int = 17
    keypoint_flip: tuple[int, ...] = ()
    keypoint_roi_size: int = 14
    keypoint_convs: int = 8
    keypoint_channels: int = 512
    keypoint_rois: int = 128
    with_masks: bool = False

    def __post_init__(self) -> None:
        MaskRcnnOptions.__post_init__(self)  # super() does not know a class that slots have made anew
        check_at_least(
            self, num_keypoints=1, keypoint_roi_size=2, keypoint_convs=0, keypoint_channels=1, keypoint_rois=1
        )
        check_flip(self.keypoint_flip, self.num_keypoints)


def check_flip(keypoint_flip: Sequence[int], num_keypoints: int) -> None:
    """Two mirror images must be none.

    Raises:
        ValueError: they are not, or an index is missing.
    """
    places = range(num_keypoints)
    if keypoint_flip and (
        sorted(keypoint_flip) != list(places) or any(keypoint_flip[keypoint_flip[i]] != i for i in places)
    ):
        raise ValueError(
            f"keypoint_flip is {tuple(keypoint_flip)}; it must give each of the {num_keypoints} keypoints the index "
            "that it changes with, or its own, such as (0, 2, 1), or be () where no side matters"
        )


class KeypointRcnn(FasterRcnn):
    """Faster R-CNN and, beside its box head, one that says where each detection's keypoints are.

    Every detection gets keypoints; of classes that have none in the dataset they mean nothing.
    """

    network: ClassVar[tuple[str, ...]] = (*FasterRcnn.network, "keypoint_outputs")
    needs = frozenset({"keypoints"})
    options: KeypointRcnnOptions

    def __init__(self, num_classes: int, options: KeypointRcnnOptions) -> None:
        super().__init__(num_classes, options)
        self.keypoint_pooler = RoiPooler(
            size=options.keypoint_roi_size,
            strides=options.strides,
            samples=options.roi_samples,
            aligned=options.roi_aligned,
        )
        self.keypoint_head = KeypointHead(
            in_channels=self.region_channels,
            channels=options.keypoint_channels,
            convs=options.keypoint_convs,
            norm=options.head_norm,
            num_keypoints=options.num_keypoints,
        )

    def keypoint_outputs(self, pooled: Tensor) -> Tensor:
        """Logits (R, K, M, M) of pooled regions."""
        logits: Tensor = self.keypoint_head(self.region_features(pooled))
        return logits

    def arithmetic(self, images: Tensor) -> object:
        regions = len(images) * self.options.max_detections
        pooled = self.pooled_shape(images, regions, self.options.keypoint_roi_size)
        return super().arithmetic(images), self.keypoint_outputs(pooled)

    def branch_losses(self, maps: list[Tensor], rois: list[SampledRois], targets: list[Target]) -> dict[str, Tensor]:
        """``keypoint``, and those of other branches."""
        taught = keypoint_regions(rois, targets, self.options.keypoint_rois)
        logits = self.keypoint_outputs(self.keypoint_pooler.pool(maps, [r.boxes for r in taught]))
        return {**super().branch_losses(maps, rois, targets), "keypoint": keypoint_loss(logits, taught, targets)}

    def predictions(self, maps: list[Tensor], found: list[Detected], batch: Batch) -> list[Prediction]:
        boxes = [f.boxes for f in found]
        logits = self.keypoint_outputs(self.keypoint_pooler.pool(maps, boxes))
        keypoints = locate_keypoints(logits, torch.cat(boxes)).split([len(b) for b in boxes])
        scales = (batch.original_sizes / batch.sizes).flip(1).to(logits.device, torch.float32)  # of x and y
        return [
            replace(prediction, keypoints=torch.cat([points[..., :2] * scale, points[..., 2:]], 2))
            for prediction, points, scale in zip(super().predictions(maps, found, batch), keypoints, scales)
        ]


class KeypointMaskRcnn(KeypointRcnn, MaskRcnn):
    """Both branches side by side."""

    network: ClassVar[tuple[str, ...]] = (*MaskRcnn.network, "keypoint_outputs")
    needs = KeypointRcnn.needs | MaskRcnn.needs
    options: KeypointRcnnOptions


def keypoint_rcnn(num_classes: int, options: KeypointRcnnOptions) -> KeypointRcnn:
    """The detector that the options ask for."""
    return (KeypointMaskRcnn if options.with_masks else KeypointRcnn)(num_classes, options)


def _with_keypoints(mask_rcnn: str, **options: Any) -> KeypointRcnnOptions:
    return KeypointRcnnOptions(**{**asdict(MASK_RCNNS[mask_rcnn]), **options})


KEYPOINT_RCNNS: dict[str, KeypointRcnnOptions] = {
    "keypoint_rcnn_r50_fpn": _with_keypoints("mask_rcnn_r50_fpn"),
    "keypoint_rcnn_lite0_fpn": _with_keypoints(
        "mask_rcnn_lite0_fpn", keypoint_convs=4, keypoint_channels=128, keypoint_rois=16
    ),
}
