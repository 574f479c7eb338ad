"""Weights into detectors: as far as they fit, class by class, and what was not loaded is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detectors import Detector, create
from detectors.keymaps import WeightsMismatch
from detectors.loading import ClassRows, class_rows, load_state, load_weights
from detectors.structures import Batch

SMALL = {"image_size": 64, "head_depth": 1, "fpn_channels": 16, "head_channels": 16, "score_threshold": 0.0}


def make(num_classes: int, seed: int = 0, **options: object) -> Detector:
    torch.manual_seed(seed)
    detector = create("retinanet_r18_fpn", num_classes=num_classes, **(SMALL | options)).eval()
    for key, tensor in detector.state_dict().items():
        if "class_logits" in key:
            tensor.normal_()
    return detector


@pytest.fixture(scope="module")
def batch() -> Batch:
    torch.manual_seed(9)
    sizes = torch.tensor([[64, 64]])
    return Batch(images=torch.randn(1, 3, 64, 64), sizes=sizes, original_sizes=sizes)


def logits(detector: Detector, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(detector.dense(batch.images).logits, 1)


def test_classes_are_copied_by_name_into_another_order(batch: Batch) -> None:
    theirs, ours = make(3), make(4, seed=1)
    before = logits(ours, batch)
    report = load_state(
        ours, theirs.state_dict(), source_classes=["cat", None, "dog"], classes=["bird", "Dog", "cat", "cow"]
    )
    assert (report.classes_copied, report.classes_new) == (("Dog", "cat"), ("bird", "cow"))
    assert (report.untouched, report.left_out) == ((), ()) and len(report.loaded) == len(ours.state_dict())
    mine, source = logits(ours, batch), logits(theirs, batch)
    torch.testing.assert_close(mine[..., [1, 2]], source[..., [2, 0]])
    assert not torch.allclose(mine[..., [0, 3]], before[..., [0, 3]]), "their features, but the new rows"


def test_with_no_class_in_common_the_predicting_layer_stays_new() -> None:
    theirs, ours = make(3), make(2, seed=1)
    new = {key: tensor.clone() for key, tensor in ours.state_dict().items() if "class_logits" in key}
    report = load_state(ours, theirs.state_dict(), source_classes=["a", "b", "c"], classes=["x", "y"])
    assert report.untouched == report.left_out == ("head.class_logits.weight", "head.class_logits.bias")
    assert report.classes_copied == () and report.classes_new == ("x", "y")
    assert all(torch.equal(ours.state_dict()[key], tensor) for key, tensor in new.items())


def test_without_names_as_many_classes_are_the_same_classes() -> None:
    theirs, ours = make(3), make(3, seed=1)
    report = load_state(ours, theirs.state_dict(), source_classes=None, classes=["a", "b", "c"])
    assert report.classes_copied == ("a", "b", "c") and report.untouched == ()
    report = load_state(make(2), theirs.state_dict(), source_classes=None, classes=["a", "b"])
    assert report.classes_new == ("a", "b") and len(report.untouched) == 2


def test_another_head_is_left_out_and_said(batch: Batch) -> None:
    report = load_state(make(3, head_channels=32), make(3).state_dict(), source_classes=None, classes=None)
    assert report.untouched and all(key.startswith("head.") for key in report.untouched)
    assert set(report.left_out) == set(report.untouched)
    assert any(key.startswith("neck.") for key in report.loaded)


def test_another_backbone_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match=r"backbone\.body\.\S+ (lacks|is \()"):
        load_state(make(3, backbone="resnet34"), make(3).state_dict(), source_classes=None, classes=None)
    with pytest.raises(WeightsMismatch, match="2 names of classes"):
        load_state(make(3), make(3).state_dict(), source_classes=["a", "b"], classes=["a", "b", "c"])


def test_rows_that_are_for_no_class_come_along() -> None:
    """As those of a background, or of coordinates: here 2 groups of 1 + 2 rows from 2 groups of 1 + 3."""
    rows = ClassRows(groups=2, extra=1, classes=2)
    mine, theirs = torch.zeros(6), torch.arange(8.0)
    assert rows.copy(mine, theirs, ["a", "b", "c"], ["c", "x"]) == {0}
    assert mine.tolist() == [0, 3, 0, 4, 7, 0]


def test_the_layers_that_count_classes_are_found() -> None:
    assert class_rows(make(5)) == {
        f"head.class_logits.{leaf}": ClassRows(groups=9, extra=0, classes=5) for leaf in ("weight", "bias")
    }


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Weights of a torchvision RetinaNet as known ones: a background, two classes and a gap."""
    from torchvision.models.detection import RetinaNet as Theirs
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    from detectors import loading
    from detectors.weights import KNOWN_WEIGHTS

    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    path = tmp_path / "theirs.pth"
    torch.save(Theirs(body, num_classes=4).state_dict(), path)
    known = replace(KNOWN_WEIGHTS[0], rows=(None, "cat", None, "dog"), fits=("retinanet_r18_fpn",))
    monkeypatch.setattr(loading, "find_by_digest", lambda digest: known)
    yield path


def test_known_weights_bring_their_classes_and_their_eps(released: Path) -> None:
    ours = create("retinanet_r18_fpn", num_classes=2, p6_source="p5")
    report = load_weights(ours, released, classes=["dog", "bear"])
    assert report.checked and report.key_map == "torchvision_retinanet"
    assert (report.classes_copied, report.classes_new, report.untouched) == (("dog",), ("bear",), ())
    state = torch.load(released, weights_only=True)
    rows = state["head.classification_head.cls_logits.weight"].view(9, 4, 256, 3, 3)
    torch.testing.assert_close(ours.head.class_logits.weight.view(9, 2, 256, 3, 3)[:, 0], rows[:, 3])
    # Their eps is 0: a variance of 1 makes a scale of exactly 1.
    assert torch.equal(ours.backbone.body.conv1.scale, torch.ones(64))


def test_known_weights_of_learning_batch_norms_make_up_for_the_eps(released: Path) -> None:
    ours = create("retinanet_r18_fpn", num_classes=2, p6_source="p5", norm="bn")
    load_weights(ours, released, classes=["dog", "cat"])
    norm = ours.backbone.body.bn1
    torch.testing.assert_close(norm.running_var + norm.eps, torch.ones(64), atol=1e-7, rtol=0)


def test_options_against_the_weights_leave_a_layer_random_and_say_so(released: Path) -> None:
    ours = create("retinanet_r18_fpn", num_classes=2, p6_source="c5")
    report = load_weights(ours, released, classes=["dog", "cat"])
    assert report.untouched == ("neck.p6.weight",) == report.left_out


def test_files_that_are_no_whole_detectors(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "backbone.pth")
    report = load_weights(create("retinanet_r18_fpn", num_classes=2), tmp_path / "backbone.pth")
    assert report.key_map == "torchvision_to_timm" and not report.checked
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsMismatch, match=r"other\.pth fits neither retinanet_r18_fpn \(.*nor its backbone"):
        load_weights(create("retinanet_r18_fpn", num_classes=2), tmp_path / "other.pth")


def test_a_detectors_own_state_dict_in_a_file(tmp_path: Path) -> None:
    torch.save(make(2).state_dict(), tmp_path / "own.pth")
    report = load_weights(
        make(2, seed=1), tmp_path / "own.pth", rows=lambda count: ["a", "b"][:count], classes=["b", "c"]
    )
    assert report.key_map == "boxmill" and report.classes_copied == ("b",) and report.untouched == ()
