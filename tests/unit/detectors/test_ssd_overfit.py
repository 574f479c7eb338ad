"""The SSDs learn two images by heart."""

from __future__ import annotations

import pytest

from tests.overfitting import assert_learns_by_heart


@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_the_grid_by_heart(loss: str) -> None:
    assert_learns_by_heart("ssd_grid_lite0", side=128, steps=50, lr=2e-3, norm="gn", channels=64, loss=loss)


def test_a_narrow_ssd_by_heart() -> None:
    assert_learns_by_heart(
        "ssd300_vgg16",
        side=128,
        steps=80,
        lr=2e-3,
        norm="gn",
        width=0.125,
        extra_layers=("halve", "halve", "halve"),
        box_scales=(0.1, 0.2, 0.35, 0.5, 0.7, 0.9),
        box_ratio_counts=(1, 2, 2, 1, 1),
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_the_classic_grid_by_heart(loss: str) -> None:
    assert_learns_by_heart("ssd_grid_resnet34", side=224, steps=120, lr=1e-3, norm="gn", loss=loss)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "side"), [("ssd300_vgg16", 300), ("ssd512_vgg16", 512)])
def test_ssd_by_heart(name: str, side: int) -> None:
    """From random weights: with GroupNorm, which the paper, starting from ImageNet's, does without."""
    assert_learns_by_heart(name, side=side, steps=80, lr=5e-4, norm="gn")
