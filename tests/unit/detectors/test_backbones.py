"""Backbones: which maps they give, how their norms are replaced, what frozen stages keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.vgg import cfgs, make_layers

from detectors.blocks.backbones import Backbone, in_names_of
from detectors.blocks.norms import FrozenNormConv2d, GroupNorm
from detectors.blocks.sync_norm import SyncBatchNorm2d

NAMES = {
    "vgg16": (256, 512, 512, 512),
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "resnext101_32x8d": (256, 512, 1024, 2048),
    "darknet53": (128, 256, 512, 1024),
    "tf_efficientnet_b0": (24, 40, 112, 320),
    "tf_efficientnet_lite0": (24, 40, 112, 320),
    "mobilenetv3_large_100": (24, 40, 112, 960),
    "convnext_tiny": (96, 192, 384, 768),
}


@pytest.mark.parametrize(("name", "channels"), NAMES.items())
def test_every_named_backbone_gives_c2_to_c5(name: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        whole = Backbone(name, strides=(4, 8, 16, 32))
        maps = whole(torch.zeros(2, 3, 96, 128))
    assert whole.channels == channels
    assert [tuple(m.shape) for m in maps] == [(2, c, 96 // s, 128 // s) for c, s in zip(channels, (4, 8, 16, 32))]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in whole.modules())
    has_norms = name not in ("vgg16", "convnext_tiny")
    assert any(isinstance(m, FrozenNormConv2d) for m in whole.modules()) == has_norms


@pytest.mark.parametrize(("norm", "kind"), [("gn", GroupNorm), ("sync_bn", SyncBatchNorm2d), ("bn", nn.BatchNorm2d)])
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_norms_are_replaced(name: str, norm: str, kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, norm=norm)  # type: ignore[arg-type]
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert len(norms) == {"resnet18": 20, "tf_efficientnet_lite0": 48}[name]
    assert all(isinstance(m, kind) for m in norms)


def test_maps_are_chosen_by_their_strides() -> None:
    with torch.device("meta"):
        assert Backbone("resnet50").channels == (512, 1024, 2048)
        assert Backbone("darknet53").channels == (256, 512, 1024)
        short = Backbone("vgg16", strides=(8, 16))
    assert short.channels == (512, 512) and short.strides == (8, 16)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in short.modules())
    assert convolutions == 13


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet51", {}, "has no network 'resnet51'"),
        ("resnet18", {"strides": (16, 8)}, r"strides \(16, 8\) must ascend"),
        ("resnet18", {"strides": (8, 64)}, r"maps at strides \(2, 4, 8, 16, 32\); \[64\] are needed"),
        ("vit_tiny_patch16_224", {}, r"maps at strides \(16, 16, 16\); \[8, 32\] are needed"),
        ("swin_tiny_patch4_window7_224", {}, "swin_tiny_patch4_window7_224 does not take images of any size"),
        ("resnet18", {"norm": "batch"}, "backbone norm 'batch' is unknown; choose frozen_bn, bn, gn or sync_bn"),
        ("resnet18", {"frozen_stages": 6}, "frozen_stages is 6"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        Backbone(name, **arguments)  # type: ignore[arg-type]


def test_resnet_equals_torchvisions_with_its_weights() -> None:
    torch.manual_seed(0)
    theirs = resnet18(weights=None).eval()
    ours = Backbone("resnet18", norm="bn", strides=(4, 8, 16, 32)).eval()
    _, unexpected = ours.body.load_state_dict(theirs.state_dict(), strict=False)
    assert unexpected == ["fc.weight", "fc.bias"]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for layer, c in zip((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), ours(images)):
            x = layer(x)
            torch.testing.assert_close(c, x)


def test_vgg_equals_torchvisions_with_its_weights() -> None:
    torch.manual_seed(0)
    theirs = make_layers(cfgs["D"], batch_norm=False).eval()
    ours = Backbone("vgg16").eval()
    whole = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    ours.body.load_state_dict(in_names_of(ours.body, whole))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        # The 23rd layer is the ReLU behind conv4_3, the 30th that behind conv5_3, the 31st the last pool.
        for cut, c in zip((23, 30, 31), ours(images)):
            torch.testing.assert_close(c, theirs[:cut](images))


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "sync_bn"])
def test_frozen_stages_do_not_change_in_training(norm: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone("resnet18", norm=norm, frozen_stages=2).train()  # type: ignore[arg-type]
    for module in backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)  # timm starts some at zero, where nothing behind them learns
    before = {key: value.clone() for key, value in backbone.body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(c.square().mean() for c in backbone(torch.randn(2, 3, 64, 64))).backward()  # type: ignore[union-attr]
        optimizer.step()
    changed = {key for key, value in backbone.body.state_dict().items() if not torch.equal(value, before[key])}
    # Stages 1 and 2 of a ResNet, up to stride 4, are its stem and layer1.
    frozen = {key for key in before if key.split(".")[0] in ("conv1", "bn1", "layer1")}
    constant = {key for key in before if key.endswith((".scale", ".shift"))}
    assert changed == set(before) - frozen - constant
