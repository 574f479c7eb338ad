"""What Faster and Mask R-CNN are made of beside the pyramid: a stage that is held back, VGG's fc6 and fc7, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detectors import create
from detectors.blocks.backbones import Backbone


def test_a_stage_that_is_held_back_is_run_on_what_is_pooled() -> None:
    torch.manual_seed(0)
    held = Backbone("resnet18", strides=(16,), held_back=True).eval()
    whole = Backbone("resnet18", strides=(16, 32)).eval()
    whole.load_state_dict(held.state_dict())  # ImageNet's weights find both in the same place
    assert (held.channels, held.held_back_channels, held.strides) == ((256,), 512, (16,))
    with torch.no_grad():
        c4, c5 = whole(images := torch.randn(1, 3, 64, 96))
        (seen,) = held(images)
        assert torch.equal(seen, c4) and torch.equal(held.run_held_back(seen), c5)


def test_what_is_no_stage_of_its_own_is_not_held_back() -> None:
    with pytest.raises(ValueError, match="the last stage of tf_efficientnet_lite0 cannot be run on regions; choose a"):
        Backbone("tf_efficientnet_lite0", strides=(16,), held_back=True)


@pytest.mark.parametrize(
    ("fc6", "fc7", "shape"),
    [("classifier.0", "classifier.3", (16, 512 * 49)), ("pre_logits.fc1", "pre_logits.fc2", (16, 512, 7, 7))],
    ids=["torchvision", "timm"],
)
def test_vggs_fc6_and_fc7_start_the_box_head(fc6: str, fc7: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    body = Backbone("vgg16", strides=(16,)).body.state_dict()
    state = {key.replace("features_", "features."): value for key, value in body.items()}
    known = {
        f"{fc6}.weight": torch.randn(shape),
        f"{fc6}.bias": torch.randn(16),
        f"{fc7}.weight": torch.randn(16, 16, *[1] * (len(shape) - 2)),
        f"{fc7}.bias": torch.randn(16),
    }
    torch.save({**state, **known, "classifier.6.weight": torch.randn(5, 16)}, tmp_path / "vgg16.pth")
    model: Any = create("faster_rcnn_vgg16", num_classes=2, box_channels=16, pretrained_backbone=tmp_path / "vgg16.pth")
    assert model.loaded_weights["left_out"] == ("classifier.6.weight",)
    assert set(model.loaded_weights["loaded"]) >= {"box_head.fcs.0.weight", "box_head.fcs.3.bias"}
    for place, name in ((0, fc6), (3, fc7)):
        assert torch.equal(model.box_head.fcs[place].weight, known[f"{name}.weight"].flatten(1))
        assert torch.equal(model.box_head.fcs[place].bias, known[f"{name}.bias"])

    narrower: Any = create(
        "faster_rcnn_vgg16", num_classes=2, box_channels=8, pretrained_backbone=tmp_path / "vgg16.pth"
    )
    assert {f"{fc6}.weight", f"{fc7}.weight"} <= set(narrower.loaded_weights["left_out"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_stage": True}, r"roi_stage needs one map, and strides are \(4, 8, 16, 32\)"),
        ({"strides": (4, 16)}, "must double from map to map"),
        ({"mask_roi_size": 1}, "mask_roi_size is 1; it must be at least 2"),
        ({"roi_pooling": "mean"}, "roi_pooling is 'mean'; choose one of align, max"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("mask_rcnn_r50_fpn", num_classes=2, **options)


@pytest.mark.parametrize(
    ("name", "published", "of_background"),
    # Theirs regresses a box and draws a mask of the background too.
    [("mask_rcnn_r50_fpn", 44_401_393, 4 * 1025 + 257), ("mask_rcnn_r50_fpn_v2", 46_359_409, 4 * 1025 + 257)],
)
def test_parameter_counts_equal_torchvisions_published_numbers(name: str, published: int, of_background: int) -> None:
    with torch.device("meta"):
        model = create(name, num_classes=90)
    assert sum(p.numel() for p in model.parameters()) + of_background == published
