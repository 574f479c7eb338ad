"""The one table of released weights: where they are, what they are, and what they fit.

Nothing here touches tensors or the network, so that a listing is quick; ``detectors.loading`` puts weights into
detectors, ``workers.weight_files`` brings them to this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from detectors.coco_categories import coco_rows

TORCHVISION = "https://download.pytorch.org/models"
TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights"
EFFDET = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWeights:
    """Weights that somebody has released.

    Attributes:
        name: ours, to ask for them by.
        url: of the file. Its name ends in the first digits of its sha256, as torch.hub has it.
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
    licence: str
    trained_on: Literal["coco", "imagenet"]
    key_map: str
    fits: tuple[str, ...]
    rows: Sequence[str | None] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: float | None = None

    @property
    def sha256(self) -> str:
        """The first digits of the file's sha256 that its name gives."""
        found = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        assert found, f"{self.url} names no digest"
        return found[1]


def _torchvision(file: str, backbone: str) -> KnownWeights:
    return KnownWeights(
        name=f"{file.rpartition('-')[0]}_imagenet",
        url=f"{TORCHVISION}/{file}",
        licence="BSD-3-Clause",
        trained_on="imagenet",
        key_map="torchvision_to_timm",
        fits=(backbone,),
    )


def _timm(file: str, backbone: str) -> KnownWeights:
    return KnownWeights(
        name=f"{file.rpartition('-')[0]}_imagenet",
        url=f"{TIMM}/{file}",
        licence="Apache-2.0",
        trained_on="imagenet",
        key_map="torchvision_to_timm",
        fits=(backbone,),
    )


KNOWN_WEIGHTS: tuple[KnownWeights, ...] = (
    KnownWeights(
        name="retinanet_r50_fpn_coco",
        url=f"{TORCHVISION}/retinanet_resnet50_fpn_coco-eeacb38b.pth",
        licence="BSD-3-Clause",
        trained_on="coco",
        key_map="torchvision_retinanet",
        fits=("retinanet_r50_fpn",),
        rows=coco_rows(first=0),
        # 1066 is the longer side of a 4:3 image whose shorter side is torchvision's 800.
        options={"p6_source": "p5", "box_loss": "l1", "anchor_style": "torchvision", "image_size": 1066},
        norm_eps=0.0,
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
    return next((known for known in KNOWN_WEIGHTS if sha256.startswith(known.sha256)), None)
