"""Mask R-CNN, both versions of R50-FPN, against torchvision's, with their random weights copied in by the key map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detectors import create
from detectors.keymaps import load_named
from detectors.keymaps_rcnn import torchvision_rcnn
from detectors.models.mask_rcnn import MaskRcnn
from detectors.structures import Batch, Target
from tests.comparing import TARGETS, assert_same_detections, batch_of_noise, freeze_lively_norms, make_targets
from tests.rcnn import equal_losses, their_detections, wake_up

CLASSES = 7
SIZES = [(96, 160), (90, 130)]  # two, so that padding matters
MAKERS = {"mask_rcnn_r50_fpn": maskrcnn_resnet50_fpn, "mask_rcnn_r50_fpn_v2": maskrcnn_resnet50_fpn_v2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: MaskRcnn
    batch: Batch


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    # Fewer of everything than usual: the branches are the same for each region.
    theirs = MAKERS[request.param](
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        rpn_post_nms_top_n_train=300,
        rpn_post_nms_top_n_test=300,
        box_detections_per_img=50,
    )
    freeze_lively_norms(theirs)
    wake_up(theirs)
    nn.init.normal_(theirs.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.3)
    ours = create(
        request.param,
        num_classes=CLASSES,
        anchor_style="torchvision",
        proposals_train=300,
        proposals=300,
        max_detections=50,
    )
    assert isinstance(ours, MaskRcnn)
    assert ours.needs == {"masks"}
    loaded, untouched, left_out = load_named(ours, torchvision_rcnn(theirs.state_dict()), request.param)
    counted = [key for key in ours.state_dict() if not key.endswith("num_batches_tracked")]
    assert (untouched, left_out) == ((), ()) and len(loaded) == len(counted)
    return Pair(theirs=theirs.eval(), ours=ours.eval(), batch=batch_of_noise(SIZES))


@pytest.mark.parametrize("counts", TARGETS.values(), ids=TARGETS.keys())
def test_losses(pair: Pair, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [with_masks(target, size) for target, size in zip(make_targets(counts, spread=40), SIZES)]
    losses = equal_losses(pair.ours, pair.theirs, pair.batch, targets, monkeypatch, mask="loss_mask")
    assert (losses["mask"] > 0) == (sum(counts) > 0)


def test_detections_and_their_masks(pair: Pair) -> None:
    with torch.no_grad():
        expected = their_detections(pair.theirs, pair.batch)
    filled = 0
    for found, want, size in zip(pair.ours.predict(pair.batch), expected, SIZES):
        order, their_order = assert_same_detections(found, want["boxes"], want["labels"] - 1, want["scores"])
        assert found.masks is not None and found.masks.shape[1:] == (28, 28) and found.masks.std() > 0.1
        crops = want["masks"][their_order]
        torch.testing.assert_close(found.masks[order], crops[:, 0], atol=1e-5, rtol=1e-5)
        # From the same crops and boxes the same pixels: a rounding of 1e-5 may move a border.
        ours = replace(found.take(order), boxes=want["boxes"][their_order], masks=crops[:, 0])
        pasted = paste_masks_in_image(crops, ours.boxes, size)[:, 0]
        assert torch.equal(ours.dense(), pasted)
        for counts, mask in zip(ours.rle(), pasted > 0.5, strict=True):
            run_lengths = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
            assert run_lengths == coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            filled += bool(mask.any())
    assert filled >= 50


def test_nothing_found(pair: Pair) -> None:
    strict = replace(pair.ours.selection, score_threshold=0.999999)
    kept, pair.ours.selection = pair.ours.selection, strict
    try:
        (found,) = pair.ours.predict(batch_of_noise([(64, 64)]))
    finally:
        pair.ours.selection = kept
    assert found.masks is not None and found.masks.shape == (0, 28, 28)
    assert found.rle() == [] and found.dense().shape == (0, 64, 64)


def test_objects_without_a_known_mask_teach_boxes_alone(pair: Pair) -> None:
    """The losses of boxes stay; that of masks is of the other objects, and 0 where there are none."""
    targets = [with_masks(target, size) for target, size in zip(make_targets((2, 3), spread=40), SIZES)]
    first = [torch.tensor([True, False]), torch.tensor([False, False, False])]
    garbled = [replace(t, mask_valid=valid, masks=t.masks & valid[:, None, None]) for t, valid in zip(targets, first)]
    unknown = [replace(t, mask_valid=torch.zeros(len(t), dtype=torch.bool), masks=None) for t in targets]
    found = []
    for some in (targets, garbled, unknown):
        torch.manual_seed(5)
        with torch.no_grad():
            found.append(pair.ours(pair.batch, some))
    for name in ("objectness", "proposal_regression", "classification", "box_regression"):
        assert found[0][name] == found[1][name] == found[2][name]
    assert found[0]["mask"] != found[1]["mask"] > 0 == found[2]["mask"]


def with_masks(target: Target, size: tuple[int, int]) -> Target:
    """An ellipse in each box."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    x1, y1, x2, y2 = target.boxes[:, :, None, None].unbind(1)
    inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return replace(target, masks=inside)
