"""YOLO learns two images by heart, v1 and v3 alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.overfitting import assert_learns_by_heart

V1: dict[str, Any] = {"norm": "gn", "grid": 4, "head_stride": 1}


def test_the_smallest_of_v3_by_heart() -> None:
    assert_learns_by_heart("yolo_v3_tiny", side=128, steps=45, lr=2e-3, least_score=0.8, norm="gn")


def test_the_smallest_of_v1_by_heart() -> None:
    """Its scores are confidence x class, and its confidence is the IoU itself."""
    options = V1 | {"backbone": "resnet18", "head_channels": 64}
    assert_learns_by_heart("yolo_v1_resnet34", side=128, steps=45, lr=2e-3, least_score=0.7, **options)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["gn", "frozen_bn"])
def test_yolo_v3_by_heart(norm: str) -> None:
    assert_learns_by_heart("yolo_v3_darknet53", side=128, steps=80, lr=1e-3, least_score=0.7, norm=norm)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["focal", "alpha_ce", "ohem", "hard_negative"])
def test_every_loss_of_objectness_by_heart(loss: str) -> None:
    assert_learns_by_heart("yolo_v3_tiny", side=128, steps=100, lr=2e-3, norm="gn", loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["conv", "fc"])
def test_yolo_v1_by_heart(head: str) -> None:
    options = V1 | {"head": head, "fc_channels": 512, "dropout": 0.0}
    assert_learns_by_heart("yolo_v1_resnet34", side=128, steps=120, lr=1e-3, least_score=0.7, **options)
