"""Mask R-CNNs learn two images by heart, boxes and masks."""

from __future__ import annotations

import pytest

from tests.overfitting import assert_learns_by_heart


def test_the_smallest_by_heart() -> None:
    assert_learns_by_heart(
        "mask_rcnn_lite0_fpn", side=128, steps=110, lr=2e-3, norm="gn", proposals_train=100, proposals=50, roi_batch=32
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", ["mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn_v2", "mask_rcnn_r101_fpn", "mask_rcnn_x101_fpn"]
)
def test_those_with_a_pyramid_by_heart(name: str) -> None:
    """From random weights: with GroupNorm, which the paper, starting from ImageNet's, does without."""
    assert_learns_by_heart(
        name, side=128, steps=100, lr=1e-3, norm="gn", neck_norm="gn", head_norm="gn", proposals_train=200
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_one_without_a_pyramid_by_heart() -> None:
    assert_learns_by_heart(
        "mask_rcnn_r50_c4", side=128, steps=100, lr=1e-3, norm="gn", anchor_scale=2.0, proposals_train=200
    )
