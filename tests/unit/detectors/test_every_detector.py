"""What every detector of the catalog can do: be saved and loaded, and start another one of other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detectors import Detector, create, list_detectors, load, save
from detectors.class_thresholds import set_class_thresholds
from detectors.loading import class_rows, load_state
from detectors.structures import Batch

# A small member of each family, in its smallest form; the others, as they are, with ``-m slow``.
HEAD = {"head_channels": 16, "head_depth": 1, "fpn_channels": 16}
SMALL: dict[str, dict[str, Any]] = {
    "retinanet_r18_fpn": {"image_size": 64, **HEAD},
    "ssd300_vgg16": {"width": 0.125},
    "yolo_v3_tiny": {"image_size": 64},
    "faster_rcnn_lite0_fpn": {"image_size": 64, "fpn_channels": 16, "box_channels": 16, "proposals": 20},
    "fast_rcnn_lite0": {"image_size": 64, "box_channels": 16, "proposals": 20},
    "rcnn_lite0": {"image_size": 64, "box_channels": 16, "proposals": 20, "crop_size": 32},
    "efficientdet_lite0": {"image_size": 64, "channels": 16, "layers": 1, "head_depth": 1},
}
# As it is it would run VGG16 two thousand times.
SLOW: dict[str, dict[str, Any]] = {"rcnn_vgg16": {"image_size": 64, "proposals": 20, "crop_size": 64}}
# The same class with its rows arranged in another way.
FORMS = [
    pytest.param(
        "yolo_v1_resnet34",
        {"image_size": 64, "backbone": "resnet18", "head_channels": 16, "head": "fc", "fc_channels": 16},
        id="yolo_v1_fc",
        marks=pytest.mark.slow,
    )
]
ALL = [
    pytest.param(name, SMALL.get(name, SLOW.get(name, {})), id=name, marks=[] if name in SMALL else [pytest.mark.slow])
    for name in list_detectors()
]
CLASSES = ["cat", "dog", "bird", "cow"]


@pytest.mark.parametrize(("name", "options"), [*ALL, *FORMS])
def test_saved_loaded_and_gone_on_from(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    first = lively(create(name, num_classes=4, score_threshold=0.0, **options))
    batch = a_batch(first)
    found = predictions(first, batch, CLASSES)
    assert len(found) > 0

    digest = save(first, None, tmp_path, categories=[{"id": i, "name": c} for i, c in enumerate(CLASSES)])
    model = load(tmp_path)
    assert (model.digest, model.spec) == (digest, first.spec)
    assert predictions(model.detector, batch, CLASSES) == found

    # The same classes in another order: the same detections under the same names.
    order = ["cow", "cat", "bird", "dog"]
    other = create(first.spec).eval()
    report = load_state(other, model.detector.state_dict(), source_classes=CLASSES, classes=order)
    assert (report.untouched, report.left_out, report.classes_copied) == ((), (), tuple(order))
    compare(predictions(other, batch, order), found)

    # One class less and two more: what is common is copied, the predicting layers alone are partly new.
    fewer = create(name, num_classes=3, score_threshold=0.0, **options)
    rows = class_rows(fewer)
    assert rows, "something counts the classes"
    report = load_state(fewer, first.state_dict(), source_classes=CLASSES, classes=["dog", "horse", "sheep"])
    assert (report.classes_copied, report.classes_new, report.untouched) == (("dog",), ("horse", "sheep"), ())
    ours, theirs = fewer.state_dict(), first.state_dict()
    for key, layout in rows.items():
        mine = ours[key].unflatten(0, (layout.groups, -1))
        source = theirs[key].unflatten(0, (layout.groups, -1))
        assert torch.equal(mine[:, : layout.extra + 1], source[:, [*range(layout.extra), layout.extra + 1]])


@pytest.mark.parametrize(("name", "options"), [*ALL, *FORMS])
def test_a_class_of_a_high_threshold_takes_no_place_of_others(name: str, options: dict[str, Any]) -> None:
    first = lively(create(name, num_classes=4, score_threshold=0.0, max_detections=10_000, **options))
    batch = a_batch(first)
    (found,) = first.predict(batch)
    common = int(found.labels.bincount().argmax())
    rest = found.scores[found.labels != common]
    few = min(5, len(rest))
    strict = create(name, num_classes=4, score_threshold=0.0, max_detections=max(1, few), **options).eval()
    strict.load_state_dict(first.state_dict())
    assert set_class_thresholds(strict, [0.9999 if label == common else 0.0 for label in range(4)])
    (kept,) = strict.predict(batch)
    assert common not in kept.labels and len(kept) == few
    assert (kept.scores >= rest[:few] - 1e-5).all()  # more of them pass where candidates are limited as well


def lively(detector: Detector) -> Detector:
    """Classes that differ, in a network whose statistics are not trivial."""
    generator = torch.Generator().manual_seed(0)
    state = detector.state_dict()
    for key in class_rows(detector):
        # Not so large that scores saturate: among equal ones NMS keeps whichever comes first.
        state[key].normal_(std=0.2 * state[key][0].numel() ** -0.5, generator=generator)
    return detector.eval()


def a_batch(detector: Detector) -> Batch:
    own = detector.preprocessing
    side = -(-own.size // own.divisor) * own.divisor
    size = torch.tensor([[own.size, own.size]])
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Batch(images=images, sizes=size, original_sizes=size)


def predictions(detector: Detector, batch: Batch, classes: list[str]) -> list[tuple[str, float, list[float]]]:
    (found,) = detector.predict(batch)
    names = [classes[label] for label in found.labels.tolist()]
    return sorted(zip(names, found.scores.tolist(), found.boxes.tolist()))


def compare(ours: list[tuple[str, float, list[float]]], theirs: list[tuple[str, float, list[float]]]) -> None:
    assert [name for name, _, _ in ours] == [name for name, _, _ in theirs]
    for (_, score, box), (_, their_score, their_box) in zip(ours, theirs):
        assert score == pytest.approx(their_score, abs=1e-5) and box == pytest.approx(their_box, abs=1e-3)
