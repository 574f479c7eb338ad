"""torchvision's second RetinaNet-R50: GroupNorm in the head alone, P6 from C5, GIoU; all of them options here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from detectors import create
from detectors.keymaps import load_named, torchvision_retinanet
from detectors.models.retinanet import RetinaNet
from detectors.structures import Batch
from tests.comparing import TARGETS, make_targets
from tests.parity.test_retinanet import CLASSES, make_lively, their_features, their_losses

OPTIONS = {"head_norm": "gn", "neck_norm": "none", "box_loss": "giou", "anchor_style": "torchvision"}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, RetinaNet]:
    torch.manual_seed(0)
    theirs = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=CLASSES)
    make_lively(theirs)
    ours = create("retinanet_r50_fpn", num_classes=CLASSES, **OPTIONS)
    assert isinstance(ours, RetinaNet)
    loaded, untouched, left_out = load_named(
        ours, torchvision_retinanet(theirs.state_dict(), num_anchors=9), "retinanet_r50_fpn"
    )
    assert (untouched, left_out) == ((), ()) and len(loaded) == len(ours.state_dict())
    return theirs.eval(), ours.eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[128, 160]] * 2)
    return Batch(images=images.to(memory_format=torch.channels_last), sizes=sizes, original_sizes=sizes)


def test_raw_outputs(pair: tuple[nn.Module, RetinaNet], batch: Batch) -> None:
    theirs, ours = pair
    with torch.no_grad():
        expected: dict[str, Tensor] = theirs.head(their_features(theirs, batch.images))
        outputs = ours.dense(batch.images)
    logits, deltas = torch.cat(outputs.logits, 1), torch.cat(outputs.deltas, 1)
    assert logits.std() > 0.1 and deltas.std() > 0.01
    torch.testing.assert_close(logits, expected["cls_logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, expected["bbox_regression"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [TARGETS["objects"], TARGETS["one image empty"]])
def test_losses(pair: tuple[nn.Module, RetinaNet], batch: Batch, counts: tuple[int, int]) -> None:
    theirs, ours = pair
    targets = make_targets(counts)
    with torch.no_grad():
        losses = ours(batch, targets)
        expected = their_losses(theirs, batch.images, targets, "giou")
    torch.testing.assert_close(losses["classification"], expected["classification"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["box_regression"], expected["bbox_regression"], atol=1e-5, rtol=1e-5)
