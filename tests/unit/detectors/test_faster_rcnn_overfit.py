"""Faster R-CNNs learn two images by heart: proposals, sampling, pooling, losses and NMS fit together."""

from __future__ import annotations

import pytest

from tests.overfitting import assert_learns_by_heart


def test_the_smallest_by_heart() -> None:
    assert_learns_by_heart(
        "faster_rcnn_lite0_fpn",
        side=128,
        steps=120,
        lr=2e-3,
        norm="gn",
        proposals_train=100,
        proposals=50,
        roi_batch=32,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["faster_rcnn_mobilenet_v3_fpn", "faster_rcnn_r50_fpn", "faster_rcnn_r101_fpn"])
def test_those_with_a_pyramid_by_heart(name: str) -> None:
    """From random weights: with GroupNorm, which the paper, starting from ImageNet's, does without."""
    assert_learns_by_heart(name, side=128, steps=100, lr=1e-3, norm="gn", neck_norm="gn", proposals_train=200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["faster_rcnn_vgg16", "faster_rcnn_r50_c4"])
def test_those_without_a_pyramid_by_heart(name: str) -> None:
    """With anchors for images of a quarter of the size; VGG without dropout, and with narrower layers, from scratch."""
    options = {"box_channels": 256, "dropout": 0.0} if name.endswith("vgg16") else {"norm": "gn"}
    assert_learns_by_heart(name, side=128, steps=100, lr=5e-4, anchor_scale=2.0, proposals_train=200, **options)
