"""R-CNN and Fast R-CNN by hand: which proposals teach, what they lose, what a network sees of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectors import Detector, create
from detectors.blocks.matchers import BACKGROUND
from detectors.blocks.roi import RoiSampling, sample_rois_together
from detectors.structures import Batch, Target
from tests.comparing import batch_of_noise

OBJECT = [10.0, 10.0, 50.0, 50.0]
# An IoU of 0.8 with the object, of 0.4, of 0.05 and of 0.
PROPOSALS = [[10.0, 10.0, 50.0, 42.0], [10.0, 10.0, 50.0, 26.0], [10.0, 10.0, 18.0, 20.0], [60.0, 60.0, 90.0, 90.0]]


def a_target(boxes: list[list[float]], labels: list[int]) -> Target:
    return Target(
        boxes=torch.tensor(boxes).view(-1, 4),
        labels=torch.tensor(labels).long(),
        iscrowd=torch.zeros(len(labels), dtype=torch.bool),
    )


def sure_of_itself(name: str, **options: Any) -> Detector:
    """A detector of two classes that says the same of every region, with ``PROPOSALS`` in every image."""
    torch.manual_seed(0)
    detector: Any = create(name, num_classes=2, image_size=96, box_channels=16, **options)
    for layer, bias in (
        (detector.box_head.class_logits, [0.0, math.log(2.0), math.log(5.0)]),
        (detector.box_head.box_deltas, [0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5]),
    ):
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.tensor(bias)
    detector.proposer.propose = lambda batch: [torch.tensor(PROPOSALS)] * len(batch)
    return detector


@pytest.mark.parametrize(
    ("name", "options", "background"),
    [
        # Only what overlaps a little is background; R-CNN takes all that is no object.
        ("fast_rcnn_lite0", {}, 1),
        ("rcnn_lite0", {"crop_size": 32, "context": 2}, 3),
    ],
)
def test_losses_by_hand(name: str, options: dict[str, Any], background: int) -> None:
    detector = sure_of_itself(name, **options, roi_positive_fraction=1.0)
    losses = detector.losses(batch_of_noise([(96, 96)]), [a_target([OBJECT], [1])])
    # Positive are the first proposal and the object itself; p is (1, 2, 5) / 8.
    count = 2 + background
    assert losses["classification"].item() == pytest.approx(
        (2 * math.log(8 / 5) + background * math.log(8)) / count, rel=1e-5
    )
    # The deltas of class 1 are 0.5 each. The first proposal wants dy = 10 * 4 / 32 and dh = 5 * log(40 / 32), beside 0
    # in x and w; the object itself wants 0 four times. Smooth L1 has its knee at 1.
    off = [0.5, 10 * 4 / 32 - 0.5, 0.5, 5 * math.log(40 / 32) - 0.5, 0.5, 0.5, 0.5, 0.5]
    assert losses["box_regression"].item() == pytest.approx(sum(0.5 * x * x for x in off) / count, rel=1e-5)


def test_an_image_without_objects_teaches_background() -> None:
    for name, options in (("fast_rcnn_lite0", {}), ("rcnn_lite0", {"crop_size": 32, "context": 2})):
        losses = sure_of_itself(name, **options).losses(batch_of_noise([(96, 96)]), [a_target([], [])])
        assert losses["classification"].item() == pytest.approx(math.log(8), rel=1e-5)
        assert losses["box_regression"].item() == 0


def test_an_image_without_proposals_has_no_detections() -> None:
    for name, options in (("fast_rcnn_lite0", {}), ("rcnn_lite0", {"crop_size": 32, "context": 2})):
        detector: Any = sure_of_itself(name, **options).eval()
        detector.proposer.propose = lambda batch: [torch.zeros(0, 4), torch.tensor(PROPOSALS)]
        empty, full = detector.predict(batch_of_noise([(96, 96), (96, 96)]))
        assert len(empty) == 0 and len(full) > 0


def test_detections_by_hand() -> None:
    """Deltas of 0.5 move a box by 0.05 of its size and let it grow by exp(0.1)."""
    detector = sure_of_itself("fast_rcnn_lite0", score_threshold=0.5).eval()
    batch = batch_of_noise([(96, 96)])
    (found,) = detector.predict(Batch(images=batch.images, sizes=batch.sizes, original_sizes=batch.sizes * 2))
    assert found.labels.unique().tolist() == [1] and found.scores.tolist() == pytest.approx([5 / 8] * len(found))
    assert found.size == (192, 192)
    centre, half = 30 + 0.05 * 40, 20 * math.exp(0.1)
    middle, tall = 26 + 0.05 * 32, 16 * math.exp(0.1)
    first = [centre - half, middle - tall, centre + half, middle + tall]
    assert found.boxes[0].tolist() == pytest.approx([2 * v for v in first], rel=1e-4)


def test_regions_of_all_images_together() -> None:
    """The paper's 32 and 96, wherever they are."""
    torch.manual_seed(0)
    near = torch.tensor([OBJECT]).repeat(100, 1) + torch.rand(100, 4)
    far = torch.rand(300, 4) * 5 + torch.tensor([70.0, 70.0, 80.0, 80.0])
    targets = [a_target([OBJECT], [0]), a_target([], [])]
    first, second = sample_rois_together([near, far], targets, RoiSampling(batch=128))
    assert (first.matched_idxs == 0).sum() == 32 == len(first.boxes)
    assert (second.matched_idxs == BACKGROUND).sum() == 96 == len(second.boxes)


def ramps(height: int, width: int) -> Tensor:
    """An image whose channels are the column, the row and 1."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)])[None]


def test_a_crop_has_the_region_and_its_context() -> None:
    detector: Any = create("rcnn_lite0", num_classes=1, crop_size=64, context=8)
    crop = detector.warp(ramps(120, 160), [torch.tensor([[40.0, 30.0, 64.0, 66.0]])])[0]
    # 48 x 48 of the 64 x 64 pixels are the region: half a pixel of the image each in x, three quarters in y.
    places = torch.arange(64) + 0.5 - 8
    torch.testing.assert_close(crop[0], (40 + places * 0.5 - 0.5).expand(64, 64), atol=1e-4, rtol=0)
    torch.testing.assert_close(crop[1], (30 + places * 0.75 - 0.5)[:, None].expand(64, 64), atol=1e-4, rtol=0)


def test_a_large_region_is_averaged_and_beyond_the_image_is_nothing() -> None:
    detector: Any = create("rcnn_lite0", num_classes=1, crop_size=32, context=0)
    stripes = torch.arange(64).remainder(2).float().expand(1, 3, 64, 64).contiguous()
    crop = detector.warp(stripes, [torch.tensor([[0.0, 0.0, 64.0, 64.0]])])[0]
    torch.testing.assert_close(crop, torch.full_like(crop, 0.5), atol=1e-5, rtol=0)

    detector = create("rcnn_lite0", num_classes=1, crop_size=32, context=8)
    crop = detector.warp(ramps(64, 64), [torch.tensor([[0.0, 0.0, 64.0, 64.0]])])[0, 2]
    inside = torch.zeros(32, 32)
    inside[8:24, 8:24] = 1  # four pixels of the image each way make one
    torch.testing.assert_close(crop[9:23, 9:23], inside[9:23, 9:23], atol=1e-5, rtol=0)
    assert bool((crop[:7] == 0).all()) and bool((crop[:, 25:] == 0).all())


def test_crops_go_through_the_network_in_parts() -> None:
    torch.manual_seed(0)
    found = []
    for at_once in (100, 3):
        torch.manual_seed(0)
        detector: Any = create("rcnn_lite0", num_classes=3, crop_size=32, context=2, crops_at_once=at_once).eval()
        nn.init.normal_(detector.box_head.class_logits.weight, std=0.5)
        with torch.no_grad():
            boxes = [torch.tensor(PROPOSALS), torch.tensor(PROPOSALS[:3])]
            found.append(detector.outputs_of(batch_of_noise_of_seed(), boxes))
    for one, other in zip(*found):
        assert one.shape[0] == 7 and one.std() > 0
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def batch_of_noise_of_seed() -> Batch:
    torch.manual_seed(1)
    return batch_of_noise([(96, 96), (80, 96)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rcnn_lite0", {"crop_size": 100}, "crop_size is 100 and context 7; the first must be a multiple of 32"),
        ("rcnn_lite0", {"context": 48}, "the second less than half"),
        ("fast_rcnn_lite0", {"roi_pooling": "mean"}, "roi_pooling is 'mean'; choose one of align, max"),
        ("fast_rcnn_lite0", {"dropout": 1.0}, r"dropout is 1.0; it must lie in 0..1"),
        ("fast_rcnn_lite0", {"proposal_method": "rpn"}, "proposal_method is 'rpn'"),
    ],
)
def test_bad_options_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, num_classes=2, **options)


@pytest.mark.slow
def test_vgg_starts_from_torchvisions_with_fc6_and_fc7(tmp_path: Path) -> None:
    """What R-CNN's last layers see of a crop is what torchvision's classifier sees."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    theirs = vgg16(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours: Any = create("rcnn_vgg16", num_classes=2, pretrained_backbone=tmp_path / "vgg16.pth").eval()
    assert ours.loaded_weights["left_out"] == ("classifier.6.weight", "classifier.6.bias")
    crops = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.classifier[:6](theirs.features(crops).flatten(1))
        found = ours.box_head.fcs(ours.backbone(crops)[0].flatten(1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    fast: Any = create("fast_rcnn_vgg16", num_classes=2, pretrained_backbone=tmp_path / "vgg16.pth")
    assert torch.equal(fast.box_head.fcs[0].weight, theirs.classifier[0].weight)
