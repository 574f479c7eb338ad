"""SSD300 against torchvision's, with its random weights copied in by the key map."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg16
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from detectors import create
from detectors.blocks.heads import DenseOutputs
from detectors.keymaps import WeightsMismatch, load_named
from detectors.keymaps_ssd import torchvision_ssd
from detectors.models.ssd import SSD
from detectors.structures import Batch, Target
from tests.comparing import TARGETS, assert_same_detections, make_targets

CLASSES = 7
# Where torchvision differs from the paper.
TORCHVISION: dict[str, Any] = {
    "box_strides": (8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
    "clip_boxes": True,
    "bipartite": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: SSD
    batch: Batch
    features: list[Tensor]
    their_outputs: dict[str, Tensor]
    our_outputs: DenseOutputs


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES + 1).eval()
    for conv in theirs.head.classification_head.module_list:
        conv.weight.data *= 0.3  # or hundreds of scores would all be 1.0, and NMS of ties a matter of their order
    ours = create("ssd300_vgg16", num_classes=CLASSES, **TORCHVISION).eval()
    assert isinstance(ours, SSD)
    state = torchvision_ssd(theirs.state_dict(), num_boxes=ours.default_boxes.num_boxes)
    _, untouched, left_out = load_named(ours, state, "ssd300_vgg16")
    assert (untouched, left_out) == ((), ())
    images = torch.randn(2, 3, 300, 300) * 60  # as far from 0 as pixels less their mean
    sizes = torch.tensor([[300, 300]] * 2)
    with torch.no_grad():
        features = list(theirs.backbone(images).values())
        their_outputs, our_outputs = theirs.head(features), ours.dense(images)
    return Pair(
        theirs=theirs,
        ours=ours,
        batch=Batch(images=images, sizes=sizes, original_sizes=sizes),
        features=features,
        their_outputs=their_outputs,
        our_outputs=our_outputs,
    )


def test_raw_outputs(pair: Pair) -> None:
    logits, deltas = torch.cat(pair.our_outputs.logits, 1), torch.cat(pair.our_outputs.deltas, 1)
    assert logits.std() > 0.5 and deltas.std() > 1  # random weights that say nothing would prove nothing
    torch.testing.assert_close(logits, pair.their_outputs["cls_logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, pair.their_outputs["bbox_regression"], atol=1e-5, rtol=1e-5)


def test_default_boxes(pair: Pair) -> None:
    ours = pair.ours.anchors(pair.our_outputs, pair.batch.images)
    assert len(ours) == 8732  # the paper's number
    torch.testing.assert_close(ours, _their_anchors(pair)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("counts", TARGETS.values(), ids=TARGETS.keys())
def test_losses(pair: Pair, counts: tuple[int, int]) -> None:
    targets = make_targets(counts, corner=180, least=10, spread=110)
    model = copy.copy(pair.ours)
    model.dense = lambda _: pair.our_outputs  # type: ignore[method-assign]
    losses = model(pair.batch, targets)
    expected = _their_losses(pair.theirs, pair.their_outputs, _their_anchors(pair), targets)
    torch.testing.assert_close(losses["classification"], expected["classification"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["box_regression"], expected["bbox_regression"], atol=1e-5, rtol=1e-5)
    assert (losses["box_regression"] > 0) == (sum(counts) > 0) == (losses["classification"] > 0)


def test_gradients(pair: Pair) -> None:
    ours, theirs = copy.deepcopy(pair.ours.head), copy.deepcopy(pair.theirs.head)
    maps = [[f.clone().requires_grad_() for f in pair.features] for _ in range(2)]
    targets, model = make_targets((2, 5), corner=180, least=10, spread=110), copy.copy(pair.ours)
    model.dense = lambda _: ours(maps[0])  # type: ignore[method-assign]
    sum(model(pair.batch, targets).values()).backward()
    sum(_their_losses(pair.theirs, theirs(maps[1]), _their_anchors(pair), targets).values()).backward()
    learnt = [*zip(maps[0], maps[1])]
    for level in range(6):
        learnt += zip(ours.class_logits[level].parameters(), theirs.classification_head.module_list[level].parameters())
        learnt += zip(ours.box_deltas[level].parameters(), theirs.regression_head.module_list[level].parameters())
    some = 0
    for got, want in learnt:
        assert got.grad is not None and want.grad is not None
        assert (got.grad - want.grad).abs().max() <= 1e-5 * want.grad.abs().max()
        some += bool(want.grad.any())
    assert some >= 15


@pytest.mark.parametrize("topk", [400, 40])
def test_detections(pair: Pair, topk: int) -> None:
    model, theirs = copy.copy(pair.ours), copy.copy(pair.theirs)
    model.dense = lambda _: pair.our_outputs  # type: ignore[method-assign]
    model.selection = replace(model.selection, topk=topk)
    theirs.topk_candidates = topk
    expected = theirs.postprocess_detections(pair.their_outputs, _their_anchors(pair), [(300, 300)] * 2)
    for found, want in zip(model.predict(pair.batch), expected):
        assert_same_detections(found, want["boxes"], want["labels"] - 1, want["scores"])


def test_dropping_unused_classes_keeps_background_and_the_others(pair: Pair) -> None:
    """The released weights have 91 classes, of which COCO uses 80."""
    keep = [1, 3, 7]
    boxes = pair.ours.default_boxes.num_boxes
    state = torchvision_ssd(pair.theirs.state_dict(), num_boxes=boxes, keep_classes=keep)
    model = create("ssd300_vgg16", num_classes=3, **TORCHVISION).eval()
    assert load_named(model, state, "ssd300_vgg16")[1:] == ((), ())
    assert isinstance(model, SSD)
    with torch.no_grad():
        ours = model.head([feature[:1] for feature in pair.features])
    for part, whole in zip(ours.logits, pair.our_outputs.logits):
        torch.testing.assert_close(part, whole[:1, :, [0, *keep]], atol=1e-4, rtol=1e-5)


def test_weights_of_another_model_are_refused(pair: Pair) -> None:
    with pytest.raises(WeightsMismatch, match=r"rpn\.head\.conv\.weight is no tensor of torchvision's SSD"):
        torchvision_ssd({"rpn.head.conv.weight": torch.zeros(1)}, num_boxes=(4,))
    with torch.device("meta"):
        larger = create("ssd512_vgg16", num_classes=CLASSES)
    state = torchvision_ssd(pair.theirs.state_dict(), num_boxes=pair.ours.default_boxes.num_boxes)
    with pytest.raises(WeightsMismatch):
        load_named(larger, state, "ssd512_vgg16")


def test_parameter_count_equals_torchvisions_published_number() -> None:
    with torch.device("meta"):
        model = create("ssd300_vgg16", num_classes=90)
    assert sum(p.numel() for p in model.parameters()) == 35_641_826


def test_imagenet_weights_of_vgg16(tmp_path: Path) -> None:
    """Of the file that torchvision's SSD starts from only the convolutions count: its classifier is empty."""
    with torch.device("meta"):
        names = vgg16().state_dict()
    state = {k: torch.randn(v.shape) * 0.05 for k, v in names.items() if k.startswith("features.")}
    torch.save({**state, "classifier.0.weight": torch.full((2, 2), torch.nan)}, tmp_path / "vgg16_features.pth")
    model: Any = create("ssd300_vgg16", num_classes=2, pretrained_backbone=tmp_path / "vgg16_features.pth")
    report = model.loaded_weights
    assert report["left_out"] == ("classifier.0.weight",) and report["untouched"] == ()
    assert sorted(report["loaded"]) == sorted(state) and len(state) == 26
    for name, value in state.items():
        assert torch.equal(model.backbone.body.get_parameter(name), value)


def _their_anchors(pair: Pair) -> list[Tensor]:
    anchors: list[Tensor] = pair.theirs.anchor_generator(ImageList(pair.batch.images, [(300, 300)] * 2), pair.features)
    return anchors


def _their_losses(
    theirs: nn.Module, outputs: dict[str, Tensor], anchors: list[Tensor], targets: list[Target]
) -> dict[str, Tensor]:
    """As its forward has it, which takes images only before they are resized."""
    matched = [
        theirs.proposal_matcher(box_iou(t.boxes, a)) if len(t) else torch.full((len(a),), -1)
        for t, a in zip(targets, anchors)
    ]
    losses: dict[str, Tensor] = theirs.compute_loss(
        [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets], outputs, anchors, matched
    )
    return losses
