"""Faster R-CNN R50-FPN against torchvision's, with its random weights copied in by the key map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import MultiScaleRoIAlign

from detectors import create
from detectors.blocks.roi import RoiPooler
from detectors.blocks.rpn import select_proposals
from detectors.keymaps import WeightsMismatch, load_named
from detectors.keymaps_rcnn import torchvision_rcnn
from detectors.loading import load_state
from detectors.models.faster_rcnn import FasterRcnn
from detectors.structures import Batch
from tests.comparing import (
    TARGETS,
    assert_same_detections,
    batch_of_noise,
    canonical,
    freeze_lively_norms,
    make_targets,
)
from tests.rcnn import equal_losses, image_list, their_detections, wake_up

CLASSES = 7
SIZES = [(128, 192), (120, 160)]  # two, so that padding matters


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: FasterRcnn
    batch: Batch


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    freeze_lively_norms(theirs)
    wake_up(theirs)
    ours = create("faster_rcnn_r50_fpn", num_classes=CLASSES, anchor_style="torchvision")
    assert isinstance(ours, FasterRcnn)
    loaded, untouched, left_out = load_named(ours, torchvision_rcnn(theirs.state_dict()), "faster_rcnn_r50_fpn")
    assert (untouched, left_out) == ((), ()) and len(loaded) == len(ours.state_dict())
    return Pair(theirs=theirs.eval(), ours=ours.eval(), batch=batch_of_noise(SIZES))


def test_first_stage(pair: Pair) -> None:
    with torch.no_grad():
        features = list(pair.theirs.backbone(pair.batch.images).values())
        logits, deltas = pair.theirs.rpn.head(features)
        ours = pair.ours.dense(pair.batch.images)
        anchors = pair.theirs.rpn.anchor_generator(image_list(pair.batch), features)[0]
    assert torch.equal(pair.ours.anchors(ours.proposals, pair.batch.images), anchors)
    assert len(ours.maps) == len(features)
    for level, got in enumerate(ours.maps):
        torch.testing.assert_close(got, features[level], atol=1e-5, rtol=1e-5)
        expected = logits[level].permute(0, 2, 3, 1).flatten(1)
        assert expected.std() > 0.1  # random weights that say nothing would prove nothing
        torch.testing.assert_close(ours.proposals.logits[level][..., 0], expected, atol=1e-5, rtol=1e-5)
        expected = deltas[level].permute(0, 2, 3, 1).reshape(len(pair.batch), -1, 4)
        torch.testing.assert_close(ours.proposals.deltas[level], expected, atol=1e-5, rtol=1e-5)


def test_proposals(pair: Pair) -> None:
    with torch.no_grad():
        expected, _ = pair.theirs.rpn(image_list(pair.batch), pair.theirs.backbone(pair.batch.images))
        outputs = pair.ours.dense(pair.batch.images).proposals
    anchors = pair.ours.anchors(outputs, pair.batch.images)
    found = select_proposals(outputs, anchors, pair.batch.sizes, pair.ours.proposals)
    for got, want in zip(found, expected):
        assert len(got) == len(want) > 300
        same = torch.zeros(len(got), dtype=torch.int64)
        torch.testing.assert_close(got[canonical(same, got)], want[canonical(same, want)], atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [7, 14])
def test_pooled_regions(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 128 // s, 256 // s, generator=generator) for s in (4, 8, 16, 32)]
    corner = torch.rand(2, 40, 2, generator=generator) * 100
    # From a few pixels to beyond the image: every level is met.
    side = 4 * 2 ** (torch.rand(2, 40, 2, generator=generator) * 8)
    boxes = list(torch.cat([corner, corner + side], 2))
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=size, sampling_ratio=2)
    expected = theirs({str(i): x for i, x in enumerate(maps)}, boxes, [(128, 256)] * 2)
    pooler = RoiPooler(size=size)
    assert set(pooler.levels(torch.cat(boxes)).tolist()) == {0, 1, 2, 3}
    # Without a gradient by another way on CPUs.
    torch.testing.assert_close(pooler.pool(maps, boxes), expected, atol=1e-5, rtol=1e-5)
    learnt = pooler.pool([x.requires_grad_() for x in maps], boxes)
    assert learnt.requires_grad and torch.equal(learnt, expected)


@pytest.mark.parametrize("counts", TARGETS.values(), ids=TARGETS.keys())
def test_losses(pair: Pair, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    targets = make_targets(counts)
    losses = equal_losses(pair.ours, pair.theirs, pair.batch, targets, monkeypatch)
    assert (losses["box_regression"] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize("options", [{}, {"score_threshold": 0.1, "nms_iou": 0.3, "max_detections": 60}])
def test_detections(pair: Pair, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = create("faster_rcnn_r50_fpn", num_classes=CLASSES, anchor_style="torchvision", **options).eval()
    ours.load_state_dict(pair.ours.state_dict())
    heads = pair.theirs.roi_heads
    for name, value in (("score_thresh", "score_threshold"), ("nms_thresh", "nms_iou")):
        monkeypatch.setattr(heads, name, getattr(ours.options, value))
    monkeypatch.setattr(heads, "detections_per_img", ours.options.max_detections)
    with torch.no_grad():
        expected = their_detections(pair.theirs, pair.batch)
    for found, want in zip(ours.predict(pair.batch), expected):
        assert_same_detections(found, want["boxes"], want["labels"] - 1, want["scores"])


def test_classes_are_taken_over_by_name(pair: Pair) -> None:
    """Background stays; a class brings its logit and its own four deltas."""
    names = [f"class {i}" for i in range(CLASSES)]
    model = create("faster_rcnn_r50_fpn", num_classes=2, anchor_style="torchvision").eval()
    state = torchvision_rcnn(pair.theirs.state_dict())
    report = load_state(model, state, source_classes=names, classes=["class 5", "class 2"])
    assert (report.untouched, report.left_out, report.classes_copied) == ((), (), ("class 5", "class 2"))
    assert isinstance(model, FasterRcnn)
    pooled = torch.randn(3, 256, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, deltas = model.box_outputs(pooled)
        scores, boxes = pair.theirs.roi_heads.box_predictor(pair.theirs.roi_heads.box_head(pooled))
    torch.testing.assert_close(logits, scores[:, [0, 6, 3]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, boxes.view(3, -1, 4)[:, [6, 3]].transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsMismatch, match=r"head\.classification_head"):
        torchvision_rcnn({"head.classification_head.cls_logits.weight": torch.zeros(1)})


def test_names_of_released_files_are_known(pair: Pair) -> None:
    """Files before torchvision 0.14 number less."""
    old = {
        key.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace(".0.weight", ".weight")
        if "fpn" in key or "rpn.head.conv" in key
        else key: value
        for key, value in pair.theirs.state_dict().items()
    }
    assert "rpn.head.conv.weight" in old and "backbone.fpn.inner_blocks.0.weight" in old
    assert torchvision_rcnn(old).keys() == torchvision_rcnn(pair.theirs.state_dict()).keys()


def test_parameter_count_equals_torchvisions_published_number() -> None:
    with torch.device("meta"):
        model = create("faster_rcnn_r50_fpn", num_classes=90)
    # Theirs regresses a box of the background too.
    assert sum(p.numel() for p in model.parameters()) + 4 * 1025 == 41_755_286
