"""RetinaNets learn two images by heart: targets, losses, decoding and NMS fit together."""

from __future__ import annotations

import pytest

from detectors.blocks.class_losses import CLASS_LOSSES
from tests.overfitting import assert_learns_by_heart


def test_the_smallest_by_heart() -> None:
    assert_learns_by_heart("retinanet_lite0", side=128, steps=80, lr=2e-3, least_score=0.8, norm="gn", head_depth=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loss", [loss for loss in CLASS_LOSSES if loss != "focal"])
def test_every_classification_loss_by_heart(loss: str) -> None:
    """Every ablation of the paper learns what it is shown; none is as sure of it as the focal loss."""
    assert_learns_by_heart("retinanet_lite0", side=128, steps=120, lr=2e-3, norm="gn", head_depth=1, loss=loss)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", ["retinanet_r18_fpn", "retinanet_r34_fpn", "retinanet_r50_fpn", "retinanet_r101_fpn", "retinanet_x101_fpn"]
)
def test_the_papers_by_heart(name: str) -> None:
    """From random weights: with GroupNorm, which the paper, starting from ImageNet's, does without."""
    assert_learns_by_heart(name, side=128, steps=80, lr=1e-3, norm="gn", head_norm="gn")
