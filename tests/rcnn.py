"""torchvision's R-CNN line as an oracle: its stages without the transform before and after them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn, no_grad
from torchvision.models.detection.image_list import ImageList

from detectors.base import Detector
from detectors.models import faster_rcnn
from detectors.structures import Batch, Target

LOSSES = {
    "objectness": "loss_objectness",
    "proposal_regression": "loss_rpn_box_reg",
    "classification": "loss_classifier",
    "box_regression": "loss_box_reg",
}


def wake_up(model: nn.Module) -> None:
    """Heads so confident that many boxes pass the threshold."""
    for module, std in (
        (model.rpn.head.cls_logits, 0.3),
        (model.rpn.head.bbox_pred, 0.05),
        (model.roi_heads.box_predictor.cls_score, 0.2),
        (model.roi_heads.box_predictor.bbox_pred, 0.2),
    ):
        nn.init.normal_(module.weight, std=std)


def image_list(batch: Batch) -> ImageList:
    return ImageList(batch.images, [(h, w) for h, w in batch.sizes.tolist()])


def their_losses(theirs: nn.Module, batch: Batch, targets: list[Target]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The losses of both stages, and the proposals of the first."""
    named = [_named(target) for target in targets]
    theirs.rpn.training = theirs.roi_heads.training = True  # their norms stay as they are
    try:
        with no_grad():
            features = theirs.backbone(batch.images)
            proposals, losses = theirs.rpn(image_list(batch), features, named)
            _, more = theirs.roi_heads(features, list(proposals), image_list(batch).image_sizes, named)
    finally:
        theirs.eval()
    return {**losses, **more}, proposals


def equal_losses(
    ours: Detector,
    theirs: nn.Module,
    batch: Batch,
    targets: list[Target],
    monkeypatch: pytest.MonkeyPatch,
    **more: str,
) -> dict[str, Tensor]:
    """Our losses, having held them to theirs, with the same draws of the sampler; ``more`` names the branches'."""
    torch.manual_seed(5)
    expected, proposals = their_losses(theirs, batch, targets)
    # Of proposals that are nearly equally good, either may come first; the sampler would then draw others.
    monkeypatch.setattr(faster_rcnn, "select_proposals", lambda *_: proposals)
    torch.manual_seed(5)
    with no_grad():
        losses = ours(batch, targets)
    for name, their_name in {**LOSSES, **more}.items():
        torch.testing.assert_close(losses[name], expected[their_name], atol=1e-5, rtol=1e-5, msg=name)
    return losses


def _named(target: Target) -> dict[str, Tensor]:
    """With labels from 1 on, 0 being background."""
    masks = {} if target.masks is None else {"masks": target.masks}
    keypoints = {} if target.keypoints is None else {"keypoints": target.keypoints}
    return {"boxes": target.boxes, "labels": target.labels + 1, **masks, **keypoints}


def their_detections(theirs: nn.Module, batch: Batch) -> list[dict[str, Tensor]]:
    """In model pixels, masks as crops."""
    features = theirs.backbone(batch.images)
    proposals, _ = theirs.rpn(image_list(batch), features)
    found: list[dict[str, Tensor]] = theirs.roi_heads(features, proposals, image_list(batch).image_sizes)[0]
    return found
