"""Keypoint R-CNNs learn two images by heart: boxes and keypoints, and masks beside them."""

from __future__ import annotations

import pytest

from tests.overfitting import assert_learns_by_heart

OPTIONS = {"side": 128, "norm": "gn", "num_keypoints": 3}


def test_the_smallest_by_heart() -> None:
    assert_learns_by_heart(
        "keypoint_rcnn_lite0_fpn",
        steps=110,
        lr=2e-3,
        proposals_train=100,
        proposals=50,
        roi_batch=32,
        keypoint_channels=64,
        **OPTIONS,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_with_masks_by_heart() -> None:
    assert_learns_by_heart(
        "keypoint_rcnn_lite0_fpn", steps=100, lr=2e-3, proposals_train=100, roi_batch=32, with_masks=True, **OPTIONS
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_large_one_by_heart() -> None:
    """From random weights: with GroupNorm, which the paper, starting from ImageNet's, does without."""
    assert_learns_by_heart(
        "keypoint_rcnn_r50_fpn",
        steps=120,
        lr=1e-3,
        neck_norm="gn",
        head_norm="gn",
        proposals_train=200,
        keypoint_convs=4,
        keypoint_channels=128,
        **OPTIONS,
    )
