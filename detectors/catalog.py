"""The one table of detectors, and how one is made from it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from detectors.base import Detector, DetectorSpec
from detectors.keymaps import load_backbone_weights
from detectors.models.efficientdet import EFFICIENTDETS, EfficientDet
from detectors.models.fast_rcnn import FAST_RCNNS, FastRcnn
from detectors.models.faster_rcnn import FASTER_RCNNS, FasterRcnn
from detectors.models.keypoint_rcnn import KEYPOINT_RCNNS, keypoint_rcnn
from detectors.models.localizer import LOCALIZERS, Localizer
from detectors.models.mask_rcnn import MASK_RCNNS, MaskRcnn
from detectors.models.rcnn import RCNNS, Rcnn
from detectors.models.retinanet import RETINANETS, RetinaNet
from detectors.models.ssd import SSD, SSDS
from detectors.models.ssd_grid import SSD_GRIDS, SsdGrid
from detectors.models.yolo_v1 import YOLO_V1S, YoloV1
from detectors.models.yolo_v3 import YOLO_V3S, YoloV3


class UnknownDetector(ValueError):
    """No detector has this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A detector by name.

    Attributes:
        build: from number of classes and options.
        options: its defaults; the fields of their class are what can be set.
        task: what it finds.
    """

    build: Callable[[int, Any], Detector]
    options: Any
    task: str


def _family(build: Callable[[int, Any], Detector], variants: Mapping[str, Any], task: str) -> dict[str, CatalogEntry]:
    return {name: CatalogEntry(build=build, options=options, task=task) for name, options in variants.items()}


CATALOG: dict[str, CatalogEntry] = {
    **_family(RetinaNet, RETINANETS, "boxes"),
    **_family(EfficientDet, EFFICIENTDETS, "boxes"),
    **_family(Rcnn, RCNNS, "boxes"),
    **_family(FastRcnn, FAST_RCNNS, "boxes"),
    **_family(FasterRcnn, FASTER_RCNNS, "boxes"),
    **_family(MaskRcnn, MASK_RCNNS, "boxes, masks"),
    **_family(keypoint_rcnn, KEYPOINT_RCNNS, "boxes, keypoints"),
    **_family(SSD, SSDS, "boxes"),
    **_family(SsdGrid, SSD_GRIDS, "boxes"),
    **_family(YoloV1, YOLO_V1S, "boxes"),
    **_family(YoloV3, YOLO_V3S, "boxes"),
    **_family(Localizer, LOCALIZERS, "boxes"),
}


def list_detectors() -> list[str]:
    """Names that ``create`` knows, sorted."""
    return sorted(CATALOG)


def create(
    name: str | DetectorSpec,
    *,
    num_classes: int | None = None,
    pretrained_backbone: str | Path | None = None,
    **options: Any,
) -> Detector:
    """Builds a detector with random weights, apart from its backbone's where they are given.

    Args:
        name: of the catalog, or ``package.module:factory`` where factory(num_classes=..., **options) makes a
            ``Detector``, or the spec of a detector (which then says all the rest).
        num_classes: C, labels are 0..C-1; there is no background class.
        pretrained_backbone: local weights file (.pt, .pth, .bin, .safetensors) of the backbone.
        options: the detector's own, such as ``image_size``; see its options class.
    Raises:
        UnknownDetector: no such name; near ones are told.
        ValueError: an unknown or bad option, or weights that are not this backbone's.
    """
    if isinstance(name, DetectorSpec):
        if num_classes is not None or options:
            raise ValueError("a DetectorSpec says num_classes and options itself; change the spec instead")
        spec = name
        name, num_classes, options = spec.name, spec.num_classes, dict(spec.options)
    if num_classes is None or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a detector needs at least one class")
    if ":" in name:
        detector = _from_factory(name, num_classes, options)
    else:
        entry = find_entry(name)
        resolved = _resolve(name, entry.options, options)
        detector = entry.build(num_classes, resolved)
        detector.spec = DetectorSpec(name=name, num_classes=num_classes, options=_to_json(asdict(resolved)))
    if pretrained_backbone is not None:
        detector.loaded_weights = asdict(load_backbone_weights(detector, Path(pretrained_backbone)))
    return detector


def find_entry(name: str) -> CatalogEntry:
    """Raises UnknownDetector."""
    if name not in CATALOG:
        near = difflib.get_close_matches(name, CATALOG, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(list_detectors())}."
        raise UnknownDetector(f"there is no detector {name!r}; {hint}")
    return CATALOG[name]


def _resolve(name: str, defaults: Any, options: Mapping[str, Any]) -> Any:
    known = [f.name for f in fields(defaults)]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}."
            raise ValueError(f"{name} has no option {option!r}; {hint}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for option, value in given.items():
        default = getattr(defaults, option)
        kinds = (float, int) if isinstance(default, float) else (type(default),)
        if default is not None and type(value) not in kinds:
            raise ValueError(f"{name}'s option {option} is {value!r}; it must be of type {kinds[0].__name__}")
    return type(defaults)(**{**asdict(defaults), **given})


def _from_factory(name: str, num_classes: int, options: Mapping[str, Any]) -> Detector:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownDetector(
            f"cannot find the detector factory {name!r}: {error}; write it as package.module:factory, importable "
            "on every machine that uses it"
        ) from error
    detector = factory(num_classes=num_classes, **options)
    if not isinstance(detector, Detector):
        raise ValueError(f"{name} made a {type(detector).__name__}; it must make a detectors.Detector")
    detector.spec = DetectorSpec(name=name, num_classes=num_classes, options=_to_json(options))
    return detector


def _to_json(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
