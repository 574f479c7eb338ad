"""Fast R-CNN learns two images by heart: selective search, sampling, pooling, losses and NMS fit together."""

from __future__ import annotations

from tests.overfitting import assert_learns_by_heart


def test_the_smallest_by_heart() -> None:
    # Pooling rounds regions to cells: in images of 128 pixels some of different places look the same to the head.
    assert_learns_by_heart("fast_rcnn_lite0", side=192, steps=60, lr=2e-3, norm="gn", proposals=100)
