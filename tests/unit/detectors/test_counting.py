"""Parameters and multiply-adds of detectors, on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detectors import create
from detectors.blocks.norms import GroupNorm
from detectors.counting import count_multiply_adds, count_parameters


@pytest.mark.parametrize(("p6_source", "millions"), [("p5", 34.0), ("c5", 38.1)])
def test_retinanet_r50_at_640_with_90_classes(p6_source: str, millions: float) -> None:
    """The table of the EfficientDet paper (1911.09070) counts P6 from P5; 97 B either way."""
    with torch.device("meta"):
        detector = create("retinanet_r50_fpn", num_classes=90, p6_source=p6_source)
    assert count_parameters(detector) / 1e6 == pytest.approx(millions, rel=0.02)
    assert count_multiply_adds(detector, 640) / 1e9 == pytest.approx(97, rel=0.02)


def test_one_layer_by_hand_and_nothing_is_changed() -> None:
    detector = create("retinanet_lite0", num_classes=3)
    detector.eval().backbone.train()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    whole = count_multiply_adds(detector, (64, 96))
    # Each of 4 * 4 * 9 * 64 weights of the box predictor meets every position of the five maps.
    positions = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
    detector.head.box_deltas = nn.Identity()
    assert whole - count_multiply_adds(detector, (64, 96)) == 9 * 4 * 9 * 64 * positions
    assert detector.backbone.training and not detector.training
    after = detector.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert any(isinstance(module, GroupNorm) for module in detector.modules())  # runs on meta too


def test_the_models_own_size_is_rounded_up_to_its_divisor() -> None:
    detector = create("retinanet_lite0", num_classes=3, image_size=300)
    assert count_multiply_adds(detector) == count_multiply_adds(detector, 320)


def test_an_input_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 64"):
        count_multiply_adds(create("retinanet_lite0", num_classes=3), (0, 64))
