"""The keypoint branch against torchvision's: head, loss of the one true cell, and where the highest point is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss

from detectors.blocks import keypoint_head
from detectors.blocks.keypoint_head import KeypointHead, keypoint_loss, keypoint_regions, locate_keypoints
from detectors.blocks.matchers import BACKGROUND
from detectors.blocks.roi import SampledRois
from detectors.structures import Target

KEYPOINTS = 3


def test_head() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(KeypointRCNNHeads(8, [16, 16]), KeypointRCNNPredictor(16, KEYPOINTS)).eval()
    ours = KeypointHead(in_channels=8, channels=16, convs=2, norm="none", num_keypoints=KEYPOINTS).eval()
    ours.convs.load_state_dict(theirs[0].state_dict())
    ours.deconv.load_state_dict(theirs[1].kps_score_lowres.state_dict())
    pooled = torch.randn(3, 8, 14, 14)
    with torch.no_grad():
        expected, logits = theirs(pooled), ours(pooled)
    assert logits.shape == (3, KEYPOINTS, 56, 56) and logits.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def regions(matched: list[int], generator: torch.Generator) -> SampledRois:
    corner = torch.rand(len(matched), 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 10 + torch.rand(len(matched), 2, generator=generator) * 30], 1)
    return SampledRois(boxes=boxes, matched_idxs=torch.tensor(matched, dtype=torch.int64))


def truth(count: int, rois: SampledRois, generator: torch.Generator, *, labelled: bool = True) -> Target:
    """Keypoints inside and outside of the regions, one of each object on the lower right corner of its region."""
    keypoints = torch.rand(count, KEYPOINTS, 3, generator=generator) * 60
    keypoints[..., 2] = torch.randint(0, 3, (count, KEYPOINTS), generator=generator) if labelled else 0
    for box, of in zip(rois.boxes, rois.matched_idxs.tolist()):
        if of >= 0 and labelled:
            keypoints[of, 0] = torch.tensor([*box[2:], 1.0])
    return Target(
        boxes=torch.tensor([[0.0, 0.0, 50.0, 50.0]]).repeat(count, 1),
        labels=torch.zeros(count, dtype=torch.int64),
        iscrowd=torch.zeros(count, dtype=torch.bool),
        keypoints=keypoints,
    )


@pytest.mark.parametrize(
    ("matched", "counts", "labelled"),
    [
        ([[0, 2, BACKGROUND, 2], [1, BACKGROUND]], [3, 2], True),
        ([[0, BACKGROUND], [BACKGROUND]], [1, 0], True),
        ([[0, 1], [0]], [2, 1], False),
        ([[BACKGROUND], []], [0, 0], True),
    ],
    ids=["objects", "one image empty", "nothing labelled", "both images empty"],
)
def test_loss(matched: list[list[int]], counts: list[int], labelled: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    rois = [regions(m, generator) for m in matched]
    targets = [truth(count, r, generator, labelled=labelled) for count, r in zip(counts, rois)]
    positive = [r.matched_idxs >= 0 for r in rois]
    all_logits = torch.randn(sum(int(p.sum()) for p in positive), KEYPOINTS, 56, 56, generator=generator)
    theirs = keypointrcnn_loss(
        all_logits,
        [r.boxes[p] for r, p in zip(rois, positive)],
        [t.keypoints for t in targets],
        [r.matched_idxs[p] for r, p in zip(rois, positive)],
    )
    taught = keypoint_regions(rois, targets, limit=16)
    assert sum(len(r.boxes) for r in taught) == (len(all_logits) if labelled else 0)
    logits = all_logits[: sum(len(r.boxes) for r in taught)].requires_grad_()
    ours = keypoint_loss(logits, taught, targets)
    ours.backward()
    torch.testing.assert_close(ours.detach(), theirs, atol=1e-5, rtol=1e-5)
    assert logits.grad is not None and (ours > 0) == (labelled and sum(counts) > 0)


def test_so_many_regions_of_an_image_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    rois = [regions([0] * 9 + [BACKGROUND], generator), regions([0, 1, BACKGROUND], generator)]
    targets = [truth(2, r, generator) for r in rois]
    # The second object of the second image has no keypoints: it teaches none.
    assert targets[1].keypoints is not None
    targets[1].keypoints[1, :, 2] = 0
    torch.manual_seed(1)
    taught = keypoint_regions(rois, targets, limit=4)
    assert [len(r.boxes) for r in taught] == [4, 1]
    assert taught[1].matched_idxs.tolist() == [0] and torch.equal(taught[1].boxes[0], rois[1].boxes[0])
    places = [(rois[0].boxes == box).all(1).nonzero().item() for box in taught[0].boxes]
    assert len(set(places)) == 4 and max(places) < 9


def test_targets_without_keypoints_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    rois = regions([1], generator)
    target = truth(2, rois, generator)
    bare = Target(boxes=target.boxes, labels=target.labels, iscrowd=target.iscrowd)
    with pytest.raises(ValueError, match="image 0 of the batch has 2 objects and no keypoints"):
        keypoint_regions([rois], [bare], limit=16)


@pytest.mark.parametrize("at_once", [1 << 22, 20_000], ids=["one group", "several groups"])
def test_highest_points(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes from a part of a pixel to several cells a pixel, smooth maps and noise."""
    monkeypatch.setattr(keypoint_head, "_PIXELS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(24, 2, generator=generator) * 100 - 20
    boxes = torch.cat([corner, corner + 0.4 * 2 ** (torch.rand(24, 2, generator=generator) * 8)], 1)
    maps = torch.randn(24, KEYPOINTS, 56, 56, generator=generator)
    maps[::2] = nn.functional.avg_pool2d(maps[::2], 9, stride=1, padding=4) * 20
    expected, peaks = heatmaps_to_keypoints(maps, boxes)
    found = locate_keypoints(maps, boxes)
    torch.testing.assert_close(found[..., :2], expected[..., :2], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[..., 2], probability(maps, peaks), atol=1e-5, rtol=1e-4)
    assert found[..., 2].max() <= 1


def test_a_sure_map_has_a_high_score_and_no_boxes_no_points() -> None:
    maps = torch.full((1, 1, 56, 56), -20.0)
    maps[0, 0, 30, 10] = 20.0
    ((x, y, score),) = locate_keypoints(maps, torch.tensor([[100.0, 200.0, 156.0, 256.0]]))[0].tolist()
    assert (x, y) == (110.5, 230.5) and score > 0.999
    assert locate_keypoints(torch.zeros(0, 4, 56, 56), torch.zeros(0, 4)).shape == (0, 4, 3)


def probability(maps: Tensor, peaks: Tensor) -> Tensor:
    """Of a cell as high as the peak, which a resize may put above the highest cell."""
    others = maps.flatten(2).double().exp().sum(2)
    return (peaks.double().exp() / others).clamp(max=1).float()
