"""The table of released weights: what it names exists, and every key map fits the networks it is for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from detectors import create, list_detectors
from detectors.catalog import find_entry
from detectors.coco_categories import COCO_CATEGORIES, COCO_KEYPOINT_CATEGORIES, COCO_KEYPOINT_FLIP, coco_rows
from detectors.keymaps import WeightsMismatch
from detectors.loading import KEY_MAPS, load_weights
from detectors.weights import KNOWN_WEIGHTS, find_by_digest, find_weights, weights_for

NAMES = [str(category["name"]) for category in COCO_CATEGORIES]


def test_names_are_unique_and_digests_are_those_of_the_files_names() -> None:
    names = [known.name for known in KNOWN_WEIGHTS]
    assert len(set(names)) == len(names)
    for known in KNOWN_WEIGHTS:
        assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", known.sha256), known.name
        if found := re.search(r"-([0-9a-f]{8})\.", known.url):
            assert known.sha256 == found[1]
    assert [known.name for known in KNOWN_WEIGHTS if not known.sha256] == ["darknet53_imagenet"]


@pytest.mark.parametrize("known", KNOWN_WEIGHTS, ids=lambda known: known.name)
def test_what_they_fit_exists_and_takes_their_options(known) -> None:
    for name in known.fits:
        if name in list_detectors():
            replace(find_entry(name).options, **known.options)  # they are options that it has, with values it takes
        else:
            assert timm.is_model(name) and known.trained_on == "imagenet"
    assert known.key_map in KEY_MAPS or known.key_map == "torchvision_to_timm"
    assert bool(known.rows) == (known.trained_on == "coco")
    people = ["person"] if "keypoint" in known.name else NAMES
    assert not known.rows or [name for name in known.rows if name is not None] == people


def test_urls_are_those_that_timm_and_torchvision_have_themselves() -> None:
    from torchvision.models import get_model_weights

    theirs = {
        weights.url
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d", "vgg16")
        for weights in get_model_weights(name)
    } | {
        weights.url
        for name in (
            "retinanet_resnet50_fpn",
            "fasterrcnn_resnet50_fpn",
            "fasterrcnn_resnet50_fpn_v2",
            "maskrcnn_resnet50_fpn",
            "maskrcnn_resnet50_fpn_v2",
            "keypointrcnn_resnet50_fpn",
            "ssd300_vgg16",
        )
        for weights in get_model_weights(name)
    }
    for known in KNOWN_WEIGHTS:
        if "pytorch.org" in known.url:
            assert known.url in theirs
        elif "pytorch-image-models" in known.url:
            (backbone,) = known.fits
            assert known.url in {timm.get_pretrained_cfg(name).url for name in timm.list_pretrained(f"{backbone}.*")}


def test_urls_are_those_that_effdet_has_itself() -> None:
    config = pytest.importorskip("effdet.config")
    for known in KNOWN_WEIGHTS:
        if known.key_map == "effdet_efficientdet":
            assert known.url == config.get_efficientdet_config(f"tf_{known.fits[0]}").url


def test_cocos_rows_are_torchvisions_categories() -> None:
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    theirs = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert [name or "N/A" for name in coco_rows(first=0)] == ["N/A", *theirs[1:]]
    assert coco_rows(first=1) == coco_rows(first=0)[1:] and len(COCO_CATEGORIES) == 80


def test_cocos_keypoints_are_torchvisions() -> None:
    from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights

    meta = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta
    (person,) = COCO_KEYPOINT_CATEGORIES
    names = person["keypoints"]
    assert [person["name"]] == meta["categories"][1:]
    assert names == meta["keypoint_names"]
    mirrored = [name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right") for name in names]
    assert [names[i] for i in COCO_KEYPOINT_FLIP] == mirrored
    assert len(person["skeleton"]) == 19 and {i for bone in person["skeleton"] for i in bone} == set(range(17))


def test_asking_by_name() -> None:
    assert find_weights("coco", "efficientdet_d0", "tf_efficientnet_b0").name == "efficientdet_d0_coco"
    assert find_weights("imagenet", "efficientdet_d0", "tf_efficientnet_b0").name == "tf_efficientnet_b0_ns_imagenet"
    # SSD has pixels less their mean, others of VGG16 have them divided by the deviation.
    assert find_weights("imagenet", "ssd512_vgg16", "vgg16").name == "vgg16_features_imagenet"
    assert find_weights("imagenet", "retinanet_r18_fpn", "vgg16").name == "vgg16_imagenet"
    assert find_by_digest("eeacb38b" + "0" * 56) is weights_for("retinanet_r50_fpn", "resnet50")[0]
    assert find_by_digest("f" * 64) is None


def torchvisions(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, weights_backbone=None)


def effdet(name: str) -> nn.Module:
    effdet = pytest.importorskip("effdet")
    return effdet.EfficientDet(effdet.get_efficientdet_config(f"tf_{name}"), pretrained_backbone=False)


RELEASED = [
    ("retinanet_r50_fpn_coco", lambda: torchvisions("retinanet_resnet50_fpn"), 91),
    ("faster_rcnn_r50_fpn_coco", lambda: torchvisions("fasterrcnn_resnet50_fpn"), 90),
    ("faster_rcnn_r50_fpn_v2_coco", lambda: torchvisions("fasterrcnn_resnet50_fpn_v2"), 90),
    ("mask_rcnn_r50_fpn_coco", lambda: torchvisions("maskrcnn_resnet50_fpn"), 90),
    ("mask_rcnn_r50_fpn_v2_coco", lambda: torchvisions("maskrcnn_resnet50_fpn_v2"), 90),
    ("keypoint_rcnn_r50_fpn_coco", lambda: torchvisions("keypointrcnn_resnet50_fpn"), 1),
    ("ssd300_vgg16_coco", lambda: torchvisions("ssd300_vgg16"), 90),
    ("efficientdet_lite0_coco", lambda: effdet("efficientdet_lite0"), 90),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "count"), RELEASED, ids=[name for name, _, _ in RELEASED])
def test_a_released_files_tensors_all_find_their_place(
    name: str, make: Callable[[], nn.Module], count: int, tmp_path: Path
) -> None:
    """A file of the same names and shapes as the released one: all classes are copied, nothing stays random."""
    (known,) = (known for known in KNOWN_WEIGHTS if known.name == name)
    torch.save(make().state_dict(), tmp_path / "released.pth")
    names = NAMES if count > 1 else ["person"]
    ours = create(known.fits[0], num_classes=len(names), **known.options)
    counts = []

    def rows(found: int):
        counts.append(found)
        return known.rows

    report = load_weights(ours, tmp_path / "released.pth", classes=names, rows=rows)
    assert counts == [count] == [len(known.rows)]
    assert (report.key_map, report.untouched, report.left_out) == (known.key_map, (), ())
    assert report.classes_copied == tuple(names) and report.classes_new == ()


@pytest.mark.slow
def test_a_file_of_darknets(tmp_path: Path) -> None:
    """``yolov3-tiny.weights`` in its form: a header and as many numbers as the network has."""
    ours = create("yolo_v3_tiny", num_classes=80)
    state = ours.state_dict()
    count = sum(tensor.numel() for name, tensor in state.items() if not name.endswith("num_batches_tracked"))
    numbers = np.random.default_rng(0).uniform(0.5, 1.5, count).astype("<f4")
    path = tmp_path / "yolov3-tiny.weights"
    path.write_bytes(np.array([0, 2, 0, 0, 0], "<i4").tobytes() + numbers.tobytes())
    report = load_weights(ours, path, classes=NAMES, rows=lambda found: NAMES[:found])
    assert (report.untouched, report.left_out, len(report.classes_copied)) == ((), (), 80)
    whole = torch.cat([tensor.flatten() for name, tensor in ours.state_dict().items() if "num_batches" not in name])
    torch.testing.assert_close(whole.sort().values, torch.from_numpy(numbers).sort().values)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(WeightsMismatch, match=r"yolov3-tiny\.weights does not hold the weights of yolo_v3_tiny"):
        load_weights(ours, path, classes=NAMES)


def test_every_backbone_that_a_detector_has_by_default_has_known_weights() -> None:
    without = [
        name
        for name in list_detectors()
        if not any(known.trained_on == "imagenet" for known in weights_for(name, find_entry(name).options.backbone))
    ]
    assert without == ["yolo_v3_tiny"]
