"""The R-CNN line on one map, C4 and VGG16, against torchvision's classes put together the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg16
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, RoIPool

from detectors import create
from detectors.keymaps import load_named
from detectors.keymaps_rcnn import torchvision_rcnn
from detectors.models import faster_rcnn
from detectors.models.faster_rcnn import FasterRcnn
from detectors.structures import Batch
from tests.comparing import TARGETS, assert_same_detections, batch_of_noise, freeze_lively_norms, make_targets
from tests.rcnn import their_detections, their_losses, wake_up

CLASSES = 7
SIZES = [(96, 128), (90, 110)]  # two, so that padding matters
OPTIONS = {"anchor_style": "torchvision", "anchor_scale": 2.0, "proposals_train": 80, "proposals": 80}
THEIRS = {"rpn_post_nms_top_n_train": 80, "rpn_post_nms_top_n_test": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: FasterRcnn
    batch: Batch


class Pooled(nn.Module):
    """RoI max-pooling of the one map, called as torchvision's detectors call their pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = RoIPool(7, 1 / 16)

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], _: object) -> Tensor:
        return self.pool(features["0"], proposals)


class OneMap(nn.Module):
    """A backbone as torchvision's detectors want it."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": self.body(images)}


def anchors() -> AnchorGenerator:
    return AnchorGenerator((tuple(32 * 2**i for i in range(3)),), ((0.5, 1.0, 2.0),))


def c4() -> Pair:
    network = resnet18(weights=None)
    stage = network.layer4
    pool = MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2)
    body = nn.Sequential()
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        body.add_module(name, network.get_submodule(name))
    theirs = MaskRCNN(
        OneMap(body, 256),
        rpn_anchor_generator=anchors(),
        box_roi_pool=pool,
        box_head=nn.Sequential(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        box_predictor=FastRCNNPredictor(512, CLASSES + 1),
        box_batch_size_per_image=64,
        mask_roi_pool=pool,
        mask_head=stage,
        mask_predictor=MaskRCNNPredictor(512, 256, CLASSES + 1),
        rpn_pre_nms_top_n_train=12000,
        rpn_pre_nms_top_n_test=6000,
        **THEIRS,
    )
    freeze_lively_norms(theirs)
    theirs.roi_heads.mask_head = theirs.roi_heads.box_head[0]  # one stage, as before its norms were replaced
    wake_up(theirs)
    # Sums of 512 features: deltas as large as those of others, or a rounding would be stretched with its box.
    nn.init.normal_(theirs.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    state = {
        key.replace("roi_heads.box_head.0.", "backbone.body.layer4."): value
        for key, value in theirs.state_dict().items()
        if not key.startswith("roi_heads.mask_head.")
    }
    ours = create("mask_rcnn_r50_c4", num_classes=CLASSES, backbone="resnet18", **OPTIONS)
    return pair_of(theirs, ours, torchvision_rcnn(state))


def vgg() -> Pair:
    theirs = FasterRCNN(
        OneMap(vgg16(weights=None).features[:-1], 512),
        rpn_anchor_generator=anchors(),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(512 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, CLASSES + 1),
        box_batch_size_per_image=64,
        box_nms_thresh=0.3,
        rpn_pre_nms_top_n_train=12000,
        rpn_pre_nms_top_n_test=6000,
        **THEIRS,
    )
    theirs.roi_heads.box_roi_pool = Pooled()
    wake_up(theirs)
    state = torchvision_rcnn(theirs.state_dict())
    named = {key.replace("backbone.body.", "backbone.body.features_"): value for key, value in state.items()}
    # What torchvision's parts cannot do: leave out anchors across the border, and regions far from any object.
    ours = create(
        "faster_rcnn_vgg16",
        num_classes=CLASSES,
        box_channels=32,
        dropout=0.0,
        rpn_inside_only=False,
        background_iou=0.0,
        **OPTIONS,
    )
    return pair_of(theirs, ours, named)


def pair_of(theirs: nn.Module, ours: nn.Module, state: dict[str, Tensor]) -> Pair:
    assert isinstance(ours, FasterRcnn)
    _, untouched, left_out = load_named(ours, state, "one map")
    assert (untouched, left_out) == ((), ())
    return Pair(theirs=theirs.eval(), ours=ours.eval(), batch=batch_of_noise(SIZES))


MAKERS = {"c4": c4, "vgg": vgg}


@pytest.fixture(scope="module", params=MAKERS.values(), ids=MAKERS.keys())
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    maker: Callable[[], Pair] = request.param
    return maker()


@pytest.mark.parametrize("counts", TARGETS.values(), ids=TARGETS.keys())
def test_losses(pair: Pair, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [
        replace(target, masks=torch.rand(len(target), *size, generator=torch.Generator().manual_seed(2)) > 0.5)
        for target, size in zip(make_targets(counts, spread=40), SIZES)
    ]
    torch.manual_seed(5)
    expected, proposals = their_losses(pair.theirs, pair.batch, targets)
    monkeypatch.setattr(faster_rcnn, "select_proposals", lambda *_: proposals)
    torch.manual_seed(5)
    with torch.no_grad():
        losses = pair.ours(pair.batch, targets)
    names = {
        "objectness": "loss_objectness",
        "proposal_regression": "loss_rpn_box_reg",
        "classification": "loss_classifier",
        "box_regression": "loss_box_reg",
        "mask": "loss_mask",
    }
    assert {names[name] for name in losses} == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[names[name]], atol=1e-5, rtol=1e-5, msg=name)


def test_detections(pair: Pair) -> None:
    with torch.no_grad():
        expected = their_detections(pair.theirs, pair.batch)
    for found, want in zip(pair.ours.predict(pair.batch), expected):
        order, their_order = assert_same_detections(found, want["boxes"], want["labels"] - 1, want["scores"])
        assert (found.masks is None) == ("masks" not in want)
        if found.masks is not None:
            assert found.masks.shape[1:] == (14, 14)
            # Drawn in boxes that differ by a rounding themselves; the loss above is of the very same boxes.
            torch.testing.assert_close(found.masks[order], want["masks"][their_order, 0], atol=1e-4, rtol=0)
