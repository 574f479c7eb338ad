"""The one table of released weights: where they are, what they are, and what they fit.

Nothing here touches tensors or the network, so that a listing is quick; ``detectors.loading`` puts weights into
detectors, ``workers.weight_files`` brings them to this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from detectors.coco_categories import COCO_CATEGORIES, COCO_KEYPOINT_CATEGORIES, COCO_KEYPOINT_FLIP, coco_rows

TORCHVISION = "https://download.pytorch.org/models"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
EFFDET = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1"
DARKNET = "https://pjreddie.com/media/files"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWeights:
    """Weights that somebody has released.

    Attributes:
        name: ours, to ask for them by.
        url: of the file.
        sha256: the first digits of its sha256, or all of them; empty where nobody has published them.
        licence: SPDX identifier of the project that released them.
        trained_on: coco (a whole detector) or imagenet (a backbone).
        key_map: of ``detectors.loading.KEY_MAPS``.
        fits: names of detectors, or for a backbone names of backbones (the option ``backbone``).
        rows: names of the class rows in their order, None for one that no category has; empty for a backbone.
        options: of the detector that these weights were trained with, where its defaults differ.
        norm_eps: of the BatchNorms, where it is not the network's own.
    """

    name: str
    url: str
    sha256: str
    licence: str
    trained_on: Literal["coco", "imagenet"]
    key_map: str
    fits: tuple[str, ...]
    rows: Sequence[str | None] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: float | None = None


def digest_in_name(file: str) -> str:
    """The first digits of a file's sha256 as torch.hub's names have them: ``resnet18-f37072fd.pth``."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", file)
    assert found, f"{file} names no digest"
    return found[1]


def _imagenet(url: str, licence: str, backbone: str) -> KnownWeights:
    file = url.rpartition("/")[2]
    return KnownWeights(
        name=f"{file.rpartition('-')[0]}_imagenet",
        url=url,
        sha256=digest_in_name(file),
        licence=licence,
        trained_on="imagenet",
        key_map="torchvision_to_timm",
        fits=(backbone,),
    )


def _torchvision(file: str, backbone: str) -> KnownWeights:
    return _imagenet(f"{TORCHVISION}/{file}", "BSD-3-Clause", backbone)


def _timm(file: str, backbone: str) -> KnownWeights:
    return _imagenet(f"{TIMM}/{file}", "Apache-2.0", backbone)


def _torchvision_coco(
    detector: str,
    file: str,
    key_map: str,
    *,
    name: str = "",
    rows: Sequence[str | None] = coco_rows(first=1),
    norm_eps: float | None = None,
    **options: Any,
) -> KnownWeights:
    return KnownWeights(
        name=name or f"{detector}_coco",
        url=f"{TORCHVISION}/{file}",
        sha256=digest_in_name(file),
        licence="BSD-3-Clause",
        trained_on="coco",
        key_map=key_map,
        fits=(detector,),
        rows=rows,
        options=options,
        norm_eps=norm_eps,
    )


def _effdet(detector: str, file: str, **options: Any) -> KnownWeights:
    return KnownWeights(
        name=f"{detector}_coco",
        url=f"{EFFDET}/{file}",
        sha256=digest_in_name(file),
        licence="Apache-2.0",
        trained_on="coco",
        key_map="effdet_efficientdet",
        fits=(detector,),
        rows=coco_rows(first=1),
        options=options,
    )


def _darknet(
    name: str, file: str, sha256: str, trained_on: Literal["coco", "imagenet"], fits: str, **options: Any
) -> KnownWeights:
    return KnownWeights(
        name=name,
        url=f"{DARKNET}/{file}",
        sha256=sha256,
        licence="public domain",
        trained_on=trained_on,
        key_map="darknet_to_yolo_v3",
        fits=(fits,),
        # The 80 categories without the gaps between their ids.
        rows=tuple(str(category["name"]) for category in COCO_CATEGORIES) if trained_on == "coco" else (),
        options=options,
    )


LONGER_SIDE = 1066
"""Of a 4:3 image whose shorter side is torchvision's 800."""
_AS_TORCHVISION: dict[str, Any] = {"anchor_style": "torchvision", "image_size": LONGER_SIDE}

KNOWN_WEIGHTS: tuple[KnownWeights, ...] = (
    _torchvision_coco(
        "retinanet_r50_fpn",
        "retinanet_resnet50_fpn_coco-eeacb38b.pth",
        "torchvision_retinanet",
        rows=coco_rows(first=0),
        norm_eps=0.0,
        p6_source="p5",
        box_loss="l1",
        anchor_style="torchvision",
        image_size=LONGER_SIDE,
    ),
    _torchvision_coco(
        "faster_rcnn_r50_fpn",
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        "torchvision_rcnn",
        norm_eps=0.0,
        **_AS_TORCHVISION,
    ),
    _torchvision_coco(
        "faster_rcnn_r50_fpn",
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        "torchvision_rcnn",
        name="faster_rcnn_r50_fpn_v2_coco",
        norm="bn",
        neck_norm="bn",
        head_norm="bn",
        rpn_depth=2,
        box_convs=4,
        box_fcs=1,
        **_AS_TORCHVISION,
    ),
    _torchvision_coco(
        "mask_rcnn_r50_fpn",
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "torchvision_rcnn",
        norm_eps=0.0,
        **_AS_TORCHVISION,
    ),
    _torchvision_coco(
        "mask_rcnn_r50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", "torchvision_rcnn", **_AS_TORCHVISION
    ),
    _torchvision_coco(
        "keypoint_rcnn_r50_fpn",
        "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        "torchvision_rcnn",
        rows=tuple(str(category["name"]) for category in COCO_KEYPOINT_CATEGORIES),
        norm_eps=0.0,
        keypoint_flip=COCO_KEYPOINT_FLIP,
        **_AS_TORCHVISION,
    ),
    _torchvision_coco(
        "ssd300_vgg16",
        "ssd300_vgg16_coco-b556d3b4.pth",
        "torchvision_ssd",
        box_strides=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
        clip_boxes=True,
        bipartite=False,
    ),
    _effdet("efficientdet_d0", "tf_efficientdet_d0_34-f153e0cf.pth"),
    _effdet("efficientdet_d1", "tf_efficientdet_d1_40-a30f94af.pth"),
    _effdet("efficientdet_d2", "tf_efficientdet_d2_43-8107aa99.pth"),
    _effdet("efficientdet_d3", "tf_efficientdet_d3_47-0b525f35.pth"),
    _effdet("efficientdet_d4", "tf_efficientdet_d4_49-f56376d9.pth"),
    _effdet("efficientdet_d5", "tf_efficientdet_d5_51-c79f9be6.pth"),
    _effdet("efficientdet_d6", "tf_efficientdet_d6_52-4eda3773.pth"),
    _effdet("efficientdet_d7", "tf_efficientdet_d7_53-6d1d7a95.pth"),
    _effdet(
        "efficientdet_lite0",
        "tf_efficientdet_lite0-dfacfc78.pth",
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        head_norm="bn",
        box_loss="huber",
        box_loss_weight=50.0,
    ),
    _darknet(
        "yolo_v3_darknet53_coco",
        "yolov3.weights",
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
        "coco",
        "yolo_v3_darknet53",
    ),
    _torchvision("resnet18-f37072fd.pth", "resnet18"),
    _torchvision("resnet34-b627a593.pth", "resnet34"),
    # The first of the two files that torchvision has, as its own detectors start from.
    _torchvision("resnet50-0676ba61.pth", "resnet50"),
    _torchvision("resnet101-63fe2227.pth", "resnet101"),
    _torchvision("resnext101_32x8d-8ba56ff5.pth", "resnext101_32x8d"),
    _torchvision("resnext101_64x4d-173b62eb.pth", "resnext101_64x4d"),
    # Noisy Student where timm has it: the best of its files for these networks, with ImageNet's mean and deviation.
    _timm("tf_efficientnet_b0_ns-c0e6a31c.pth", "tf_efficientnet_b0"),
    _timm("tf_efficientnet_b1_ns-99dd0c41.pth", "tf_efficientnet_b1"),
    _timm("tf_efficientnet_b2_ns-00306e48.pth", "tf_efficientnet_b2"),
    _timm("tf_efficientnet_b3_ns-9d44bf68.pth", "tf_efficientnet_b3"),
    _timm("tf_efficientnet_b4_ns-d6313a46.pth", "tf_efficientnet_b4"),
    _timm("tf_efficientnet_b5_ns-6f26d0cf.pth", "tf_efficientnet_b5"),
    _timm("tf_efficientnet_b6_ns-51548356.pth", "tf_efficientnet_b6"),
    _timm("tf_efficientnet_lite0-0aa007d2.pth", "tf_efficientnet_lite0"),
    _timm("mobilenetv3_large_100_ra-f55367f5.pth", "mobilenetv3_large_100"),
    # The convolutions of VGG16 alone, of the input that SSD has: pixels less their mean.
    KnownWeights(
        name="vgg16_features_imagenet",
        url=f"{TORCHVISION}/vgg16_features-amdegroot-88682ab5.pth",
        sha256="88682ab5",
        licence="BSD-3-Clause",
        trained_on="imagenet",
        key_map="torchvision_to_timm",
        fits=("ssd300_vgg16", "ssd512_vgg16"),
    ),
    _torchvision("vgg16-397923af.pth", "vgg16"),
    _darknet("darknet53_imagenet", "darknet53.conv.74", "", "imagenet", "yolo_v3_darknet53"),
)


def weights_for(detector: str, backbone: str | None) -> list[KnownWeights]:
    """All known weights that fit a detector or its backbone (its option ``backbone``); whole detectors first."""
    whole = [known for known in KNOWN_WEIGHTS if detector in known.fits]
    return [*whole, *(known for known in KNOWN_WEIGHTS if backbone in known.fits)]


def find_weights(name: str, detector: str, backbone: str | None) -> KnownWeights:
    """Known weights by what a user calls them.

    Args:
        name: ``coco``, ``imagenet`` or a ``KnownWeights.name``.
        detector, backbone: what they must fit.
    Raises:
        ValueError: there are none; what there is is told.
    """
    fitting = weights_for(detector, backbone)
    for known in fitting:
        if name in (known.name, known.trained_on):
            return known
    there = ", ".join(f"{known.trained_on} ({known.name})" for known in fitting) or "none"
    raise ValueError(
        f"there are no {name} weights for {detector} that are known here; known are: {there}. Give the path, URL or "
        "hub id (hf://owner/name) of a weights file, or none to start from random ones"
    )


def is_known_name(text: str) -> bool:
    """Whether a user means known weights by this, not a file."""
    return text in ("coco", "imagenet") or any(text == known.name for known in KNOWN_WEIGHTS)


def find_by_digest(sha256: str) -> KnownWeights | None:
    """The known weights whose file has this digest, wherever the file lies."""
    return next((known for known in KNOWN_WEIGHTS if known.sha256 and sha256.startswith(known.sha256)), None)
