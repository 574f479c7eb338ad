"""Keypoint R-CNN R50-FPN against torchvision's, with its random weights copied in by the key map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import keypointrcnn_resnet50_fpn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from detectors import create
from detectors.keymaps import load_named
from detectors.keymaps_rcnn import torchvision_rcnn
from detectors.models.keypoint_rcnn import KeypointMaskRcnn, KeypointRcnn
from detectors.structures import Batch, Target
from tests.comparing import TARGETS, assert_same_detections, batch_of_noise, freeze_lively_norms, make_targets
from tests.parity.test_keypoint_head import probability
from tests.rcnn import equal_losses, their_detections, wake_up

CLASSES, KEYPOINTS = 3, 4
SIZES = [(96, 160), (90, 130)]  # two, so that padding matters
# Narrow, and with fewer regions: all that both do is the same, in a tenth of the time.
WIDTH, REGIONS, DETECTIONS = 64, 150, 60
OPTIONS: dict[str, Any] = {
    "anchor_style": "torchvision",
    "num_keypoints": KEYPOINTS,
    "keypoint_channels": WIDTH,
    "proposals": REGIONS,
    "roi_batch": REGIONS,
    "max_detections": DETECTIONS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    theirs: nn.Module
    ours: KeypointRcnn
    batch: Batch


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    theirs = keypointrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        num_keypoints=KEYPOINTS,
        rpn_post_nms_top_n_test=REGIONS,
        box_batch_size_per_image=REGIONS,
        box_detections_per_img=DETECTIONS,
    )
    theirs.roi_heads.keypoint_head = KeypointRCNNHeads(256, (WIDTH,) * 8)
    theirs.roi_heads.keypoint_predictor = KeypointRCNNPredictor(WIDTH, KEYPOINTS)
    freeze_lively_norms(theirs)
    wake_up(theirs)
    ours = create("keypoint_rcnn_r50_fpn", num_classes=CLASSES, **OPTIONS)
    assert isinstance(ours, KeypointRcnn) and ours.needs == {"keypoints"}
    loaded, untouched, left_out = load_named(ours, torchvision_rcnn(theirs.state_dict()), "keypoint_rcnn_r50_fpn")
    assert (untouched, left_out) == ((), ()) and len(loaded) == len(ours.state_dict())
    return Pair(theirs=theirs.eval(), ours=ours.eval(), batch=batch_of_noise(SIZES))


@pytest.mark.parametrize("counts", TARGETS.values(), ids=TARGETS.keys())
def test_losses(pair: Pair, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [with_keypoints(target) for target in make_targets(counts, num_classes=CLASSES, spread=40)]
    losses = equal_losses(pair.ours, pair.theirs, pair.batch, targets, monkeypatch, keypoint="loss_keypoint")
    assert (losses["keypoint"] > 0) == (sum(counts) > 0)


def test_detections_and_their_keypoints(pair: Pair) -> None:
    with torch.no_grad():
        expected = their_detections(pair.theirs, pair.batch)
    for found, want in zip(pair.ours.predict(pair.batch), expected):
        order, their_order = assert_same_detections(found, want["boxes"], want["labels"] - 1, want["scores"])
        assert found.keypoints is not None and found.keypoints.shape[1:] == (KEYPOINTS, 3)
        points = found.keypoints[order]
        torch.testing.assert_close(points[..., :2], want["keypoints"][their_order][..., :2], atol=1e-2, rtol=0)
        assert points[..., :2].std() > 5


def test_scores_are_of_the_same_heat_maps(pair: Pair) -> None:
    pooled = torch.randn(6, 256, 14, 14, generator=torch.Generator().manual_seed(0))
    heads = pair.theirs.roi_heads
    with torch.no_grad():
        expected = heads.keypoint_predictor(heads.keypoint_head(pooled))
        logits = pair.ours.keypoint_outputs(pooled)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert probability(logits, logits.flatten(2).amax(2)).max() <= 1


def test_points_are_of_the_original_image(pair: Pair) -> None:
    """Of an image that was twice as wide and three times as high."""
    larger = replace(pair.batch, original_sizes=pair.batch.sizes * torch.tensor([3, 2]))
    for plain, scaled in zip(pair.ours.predict(pair.batch), pair.ours.predict(larger)):
        assert plain.keypoints is not None and scaled.keypoints is not None
        torch.testing.assert_close(scaled.keypoints, plain.keypoints * torch.tensor([2.0, 3.0, 1.0]))


def test_nothing_found(pair: Pair) -> None:
    ours = create(
        "keypoint_rcnn_lite0_fpn", num_classes=2, num_keypoints=5, score_threshold=0.999, image_size=64
    ).eval()
    (found,) = ours.predict(batch_of_noise([(64, 64)]))
    assert found.keypoints is not None and found.keypoints.shape == (0, 5, 3)


def test_masks_beside_keypoints() -> None:
    """The same detections, and both losses."""
    options = {"num_keypoints": KEYPOINTS, "image_size": 64, "score_threshold": 0.0, "max_detections": 5}
    ours = create("keypoint_rcnn_lite0_fpn", num_classes=2, with_masks=True, **options).eval()
    assert isinstance(ours, KeypointMaskRcnn) and ours.needs == {"masks", "keypoints"}
    alone = create("keypoint_rcnn_lite0_fpn", num_classes=2, **options).eval()
    missing, unexpected = alone.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and {key.split(".")[0] for key in unexpected} == {"mask_head"}
    batch = batch_of_noise([(64, 64)])
    (both,), (points,) = ours.predict(batch), alone.predict(batch)
    assert both.masks is not None and both.masks.shape == (5, 28, 28)
    assert both.keypoints is not None and points.keypoints is not None
    assert torch.equal(both.boxes, points.boxes) and torch.equal(both.keypoints, points.keypoints)
    target = with_keypoints(make_targets((2,), num_classes=2, corner=20)[0])
    target = replace(target, masks=torch.ones(2, 64, 64, dtype=torch.bool))
    losses = ours(batch, [target])
    assert losses["mask"] > 0 and losses["keypoint"] > 0 and len(losses) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keypoint_flip": (0, 2)}, r"keypoint_flip is \(0, 2\).*each of the 3 keypoints"),
        ({"keypoint_flip": (1, 2, 0)}, r"keypoint_flip is \(1, 2, 0\)"),
        ({"num_keypoints": 0}, "num_keypoints is 0"),
        ({"keypoint_rois": 0}, "keypoint_rois is 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("keypoint_rcnn_lite0_fpn", num_classes=1, **{"num_keypoints": 3, **options})


def test_parameter_count_equals_torchvisions_published_number() -> None:
    with torch.device("meta"):
        model = create("keypoint_rcnn_r50_fpn", num_classes=1)
    # Theirs regresses a box of the background too.
    assert sum(p.numel() for p in model.parameters()) + 4 * 1025 == 59_137_258


def with_keypoints(target: Target) -> Target:
    """Anywhere in the upper half of each box, some not labelled."""
    generator = torch.Generator().manual_seed(2)
    place = torch.rand(len(target), KEYPOINTS, 2, generator=generator) * torch.tensor([1.0, 0.5])
    points = target.boxes[:, None, :2] + place * (target.boxes[:, 2:] - target.boxes[:, :2])[:, None]
    seen = torch.randint(0, 3, (len(target), KEYPOINTS, 1), generator=generator)
    return replace(target, keypoints=torch.cat([points, seen], 2))
