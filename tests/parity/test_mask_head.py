"""The mask branch against torchvision's: head, loss on the true class alone, crops of what was found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss

from detectors.blocks.mask_head import MaskHead, mask_crops, mask_loss, mask_regions
from detectors.blocks.matchers import BACKGROUND
from detectors.blocks.roi import SampledRois
from detectors.structures import Target

CLASSES = 5


@pytest.mark.parametrize("norm", ["none", "bn"])
def test_head(norm: str) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(
        MaskRCNNHeads(8, [16, 16], 1, norm_layer=nn.BatchNorm2d if norm == "bn" else None),
        MaskRCNNPredictor(16, 16, CLASSES + 1),
    ).eval()
    ours = MaskHead(in_channels=8, channels=16, convs=2, norm=norm, num_classes=CLASSES).eval()
    for name, value in theirs.state_dict().items():
        if "num_batches" not in name and name.startswith("0."):
            ours.convs.state_dict()[name[2:]].copy_(value)
    ours.deconv.load_state_dict(theirs[1].conv5_mask.state_dict())
    for key, value in theirs[1].mask_fcn_logits.state_dict().items():
        ours.mask_logits.state_dict()[key].copy_(value[1:])  # no background
    pooled = torch.randn(3, 8, 14, 14)
    with torch.no_grad():
        expected = theirs(pooled)
        logits = ours(pooled)
    assert logits.shape == (3, CLASSES, 28, 28) and logits.std() > 0.1
    torch.testing.assert_close(logits, expected[:, 1:], atol=1e-5, rtol=1e-5)
    labels = torch.tensor([4, 0, 2])
    (crops,) = maskrcnn_inference(expected, [labels + 1])
    torch.testing.assert_close(mask_crops(logits, labels), crops[:, 0], atol=1e-5, rtol=1e-5)


def regions(matched: list[int], generator: torch.Generator) -> SampledRois:
    corner = torch.rand(len(matched), 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 4 + torch.rand(len(matched), 2, generator=generator) * 30], 1)
    return SampledRois(boxes=boxes, matched_idxs=torch.tensor(matched, dtype=torch.int64))


def truth(count: int, generator: torch.Generator, *, masks: bool = True) -> Target:
    noise = torch.rand(count, 64, 80, generator=generator) > 0.5
    return Target(
        boxes=torch.tensor([[0.0, 0.0, 50.0, 50.0]]).repeat(count, 1),
        labels=torch.arange(count) % CLASSES,
        iscrowd=torch.zeros(count, dtype=torch.bool),
        masks=noise if masks else None,
    )


def losses(matched: list[list[int]], counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ours, theirs, and the gradient of ours."""
    generator = torch.Generator().manual_seed(3)
    sampled = [regions(m, generator) for m in matched]
    targets = [truth(count, generator) for count in counts]
    rois = mask_regions(sampled, targets)
    positive = [r.boxes for r in rois]
    logits = torch.randn(sum(map(len, positive)), CLASSES, 28, 28, generator=generator, requires_grad=True)
    ours = mask_loss(logits, rois, targets)
    with_background = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1).detach()
    theirs = maskrcnn_loss(
        with_background,
        positive,
        [t.masks for t in targets],
        [t.labels + 1 for t in targets],
        [r.matched_idxs for r in rois],
    )
    ours.backward()
    assert logits.grad is not None
    return ours.detach(), theirs, logits.grad


@pytest.mark.parametrize(
    ("matched", "counts"),
    [([[0, 2, BACKGROUND, 2], [1, BACKGROUND]], [3, 2]), ([[0, BACKGROUND], [BACKGROUND]], [1, 0])],
    ids=["objects", "one image empty"],
)
def test_loss(matched: list[list[int]], counts: list[int]) -> None:
    ours, theirs, gradient = losses(matched, counts)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # One map of each region learns.
    assert (gradient.abs().amax((2, 3)) > 0).sum(1).tolist() == [1] * len(gradient)


def test_without_any_object_the_loss_is_zero_and_connected() -> None:
    ours, theirs, gradient = losses([[BACKGROUND], []], [0, 0])
    assert ours == theirs == 0 and gradient.shape[0] == 0


def test_objects_whose_mask_is_unknown_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    sampled = regions([0, 2, BACKGROUND, 1, 2], generator)
    target = replace(truth(3, generator), mask_valid=torch.tensor([True, False, True]))
    (taught,) = mask_regions([sampled], [target])
    assert taught.matched_idxs.tolist() == [0, 2, 2] and torch.equal(taught.boxes, sampled.boxes[[0, 1, 4]])


def test_targets_without_masks_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="image 0 of the batch has 2 objects and no masks"):
        mask_loss(torch.zeros(1, CLASSES, 28, 28), [regions([1], generator)], [truth(2, generator, masks=False)])
