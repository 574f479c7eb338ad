"""RetinaNet-R50 against torchvision's, with its random weights copied in by the key map."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList

from detectors import create
from detectors.blocks.matchers import IouMatcher
from detectors.keymaps import WeightsMismatch, load_named, torchvision_retinanet
from detectors.models.retinanet import RetinaNet
from detectors.structures import Batch, Target
from tests.comparing import TARGETS, assert_same_detections, batch_of_noise, freeze_lively_norms, make_targets

CLASSES = 7
# Where torchvision differs from the paper.
TORCHVISION = {"p6_source": "p5", "box_loss": "l1", "anchor_style": "torchvision"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: RetinaNet
    batch: Batch


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    make_lively(theirs)
    ours = create("retinanet_r50_fpn", num_classes=CLASSES, **TORCHVISION)
    assert isinstance(ours, RetinaNet)
    load_named(ours, torchvision_retinanet(theirs.state_dict(), num_anchors=9), "retinanet_r50_fpn")
    # Two sizes, so that padding matters; not multiples of 128, so that torchvision's strides are odd.
    return Pair(theirs=theirs.eval(), ours=ours.eval(), batch=batch_of_noise([(160, 224), (150, 190)]))


def test_raw_outputs(pair: Pair) -> None:
    with torch.no_grad():
        theirs = pair.theirs.head(their_features(pair.theirs, pair.batch.images))
        ours = pair.ours.dense(pair.batch.images)
    logits, deltas = torch.cat(ours.logits, 1), torch.cat(ours.deltas, 1)
    assert logits.std() > 0.1 and deltas.std() > 0.05  # random weights that say nothing would prove nothing
    torch.testing.assert_close(logits, theirs["cls_logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, theirs["bbox_regression"], atol=1e-5, rtol=1e-5)


def test_anchors(pair: Pair) -> None:
    outputs = pair.ours.dense(pair.batch.images[:1])
    assert torch.equal(pair.ours.anchors(outputs, pair.batch.images), _their_anchors(pair.theirs, pair.batch.images)[0])


@pytest.mark.parametrize("counts", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1", "giou"])
def test_losses(pair: Pair, counts: tuple[int, int], box_loss: str) -> None:
    targets = make_targets(counts)
    model = copy.copy(pair.ours)
    model.options = replace(model.options, box_loss=box_loss)
    with torch.no_grad():
        losses = model(pair.batch, targets)
        expected = their_losses(pair.theirs, pair.batch.images, targets, box_loss)
    torch.testing.assert_close(losses["classification"], expected["classification"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["box_regression"], expected["bbox_regression"], atol=1e-5, rtol=1e-5)
    assert (losses["box_regression"] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize(("high", "low", "low_quality"), [(0.6, 0.3, True), (0.5, 0.5, False)])
def test_losses_of_other_matchings(
    pair: Pair, high: float, low: float, low_quality: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.ours, "matcher", IouMatcher(high=high, low=low, low_quality=low_quality))
    monkeypatch.setattr(pair.theirs, "proposal_matcher", Matcher(high, low, allow_low_quality_matches=low_quality))
    targets = make_targets((3, 1))
    with torch.no_grad():
        losses = pair.ours(pair.batch, targets)
        expected = their_losses(pair.theirs, pair.batch.images, targets, "l1")
    torch.testing.assert_close(losses["classification"], expected["classification"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["box_regression"], expected["bbox_regression"], atol=1e-5, rtol=1e-5)


def test_gradients(pair: Pair) -> None:
    # In float64: through fifty layers float32 rounding alone is worth 1e-3 of a gradient.
    ours, theirs = copy.deepcopy(pair.ours).double(), copy.deepcopy(pair.theirs).double()
    images, targets = pair.batch.images.double(), make_targets((2, 3))
    sum(ours(replace(pair.batch, images=images), targets).values()).backward()
    sum(their_losses(theirs, images, targets, "l1").values()).backward()
    for our_name, their_name in (
        ("head.class_logits.weight", "head.classification_head.cls_logits.weight"),
        ("head.box_deltas.bias", "head.regression_head.bbox_reg.bias"),
        ("neck.lateral.0.0.weight", "backbone.fpn.inner_blocks.0.0.weight"),
        ("backbone.body.layer3.2.conv2.weight", "backbone.body.layer3.2.conv2.weight"),
        ("backbone.body.conv1.weight", "backbone.body.conv1.weight"),
    ):
        got, want = ours.get_parameter(our_name).grad, theirs.get_parameter(their_name).grad
        assert got is not None and want is not None
        assert (got - want).abs().max() <= 1e-5 * want.abs().max(), our_name


SELECTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "few": {"score_threshold": 0.1, "topk": 300, "nms_iou": 0.3, "max_detections": 60},
}


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_detections(pair: Pair, selection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair.ours, "selection", replace(pair.ours.selection, **selection))
    chosen = pair.ours.selection
    for name, value in (
        ("score_thresh", chosen.score_threshold),
        ("topk_candidates", chosen.topk),
        ("nms_thresh", chosen.nms_iou),
        ("detections_per_img", chosen.max_detections),
    ):
        monkeypatch.setattr(pair.theirs, name, value)
    with torch.no_grad():
        outputs = pair.theirs.head(their_features(pair.theirs, pair.batch.images))
        shapes = pair.ours.dense(pair.batch.images).shapes
        counts = [9 * h * w for h, w in shapes]
        expected = pair.theirs.postprocess_detections(
            {key: list(value.split(counts, 1)) for key, value in outputs.items()},
            [list(a.split(counts)) for a in _their_anchors(pair.theirs, pair.batch.images)],
            [tuple(size) for size in pair.batch.sizes.tolist()],
        )
    found = pair.ours.predict(pair.batch)
    for ours, theirs in zip(found, expected):
        assert_same_detections(ours, theirs["boxes"], theirs["labels"], theirs["scores"])


def test_dropping_the_unused_class_keeps_the_others(pair: Pair) -> None:
    """torchvision's class 0 is background that nothing predicts; the released weights are loaded without it."""
    state = torchvision_retinanet(pair.theirs.state_dict(), num_anchors=9, keep_classes=range(1, CLASSES))
    model = create("retinanet_r50_fpn", num_classes=CLASSES - 1, **TORCHVISION).eval()
    loaded, untouched, left_out = load_named(model, state, "retinanet_r50_fpn")
    assert (untouched, left_out) == ((), ()) and len(loaded) == len(model.state_dict())
    with torch.no_grad():
        ours, whole = model.dense(pair.batch.images), pair.ours.dense(pair.batch.images)
    for a, b in zip(ours.logits, whole.logits):
        assert torch.equal(a, b[..., 1:]) or torch.allclose(a, b[..., 1:], atol=1e-6)


def test_names_of_released_files_are_known(pair: Pair) -> None:
    """Files before torchvision 0.14 count convolutions and ReLUs through: conv.0, conv.2, ..."""
    state = pair.theirs.state_dict()
    old = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "head" and parts[2] == "conv":
            parts[3:5] = [str(2 * int(parts[3]))]
        old[".".join(parts)] = value
    assert torchvision_retinanet(old, num_anchors=9).keys() == torchvision_retinanet(state, num_anchors=9).keys()


def test_weights_of_another_model_are_refused(pair: Pair) -> None:
    with pytest.raises(WeightsMismatch, match=r"rpn\.head\.conv"):
        torchvision_retinanet({"rpn.head.conv.weight": torch.zeros(1)}, num_anchors=9)
    smaller = create("retinanet_r18_fpn", num_classes=CLASSES, **TORCHVISION)
    with pytest.raises(WeightsMismatch):
        load_named(smaller, torchvision_retinanet(pair.theirs.state_dict(), num_anchors=9), "retinanet_r18_fpn")


@pytest.mark.parametrize(("p6_source", "millions"), [("p5", 34.0), ("c5", 38.1)])
def test_parameter_counts_of_r50_with_90_classes(p6_source: str, millions: float) -> None:
    model = create("retinanet_r50_fpn", num_classes=90, p6_source=p6_source)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_parameter_count_equals_torchvisions_published_number() -> None:
    model = create("retinanet_r50_fpn", num_classes=91, p6_source="p5")
    assert sum(p.numel() for p in model.parameters()) == 34_014_999


def make_lively(model: nn.Module) -> None:
    """Random weights whose outputs vary, and so confident that hundreds of boxes pass the threshold."""
    freeze_lively_norms(model)
    for head in (model.head.classification_head, model.head.regression_head):
        for module in head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.005)
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -3.0)


def their_features(theirs: nn.Module, images: Tensor) -> list[Tensor]:
    return list(theirs.backbone(images).values())


def _their_anchors(theirs: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        features = their_features(theirs, images)
    sizes = [(images.shape[-2], images.shape[-1])] * len(images)
    anchors: list[Tensor] = theirs.anchor_generator(ImageList(images, sizes), features)
    return anchors


def their_losses(theirs: nn.Module, images: Tensor, targets: list[Target], box_loss: str) -> dict[str, Tensor]:
    theirs.head.regression_head._loss_type = box_loss
    losses: dict[str, Tensor] = theirs.compute_loss(
        [{"boxes": t.boxes, "labels": t.labels} for t in targets],
        theirs.head(their_features(theirs, images)),
        _their_anchors(theirs, images),
    )
    return losses
