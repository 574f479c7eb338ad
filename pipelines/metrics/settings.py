"""What is measured and how: similarity, thresholds, ranges of area, detections an image."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal, assert_never

import numpy as np

from pipelines.records import FloatArray, LabelMap

IouType = Literal["bbox", "segm", "keypoints"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "keypoints")

# As numpy spaces them, which is what pycocotools compares with: .55 is not the nearest float to 0.55.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
SMALL_AREA, LARGE_AREA = 32.0**2, 96.0**2  # square pixels; an object of exactly one of them is in both ranges
_EVERYTHING = 1e5**2

# Standard deviations of people's annotations, as a share of the object's scale; COCO's 17 keypoints of a person.
COCO_OKS_SIGMAS = tuple(
    tenths / 10.0
    for tenths in (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaRange:
    """Objects of ``low`` to ``high`` square pixels, both included; what lies outside is ignored, not missed."""

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"area range {self.name!r} goes from {self.low} to {self.high}; give low, then high")


ALL_AREAS = AreaRange(name="all", low=0.0, high=_EVERYTHING)
_SMALL = AreaRange(name="small", low=0.0, high=SMALL_AREA)
_MEDIUM = AreaRange(name="medium", low=SMALL_AREA, high=LARGE_AREA)
_LARGE = AreaRange(name="large", low=LARGE_AREA, high=_EVERYTHING)
COCO_AREAS = (ALL_AREAS, _SMALL, _MEDIUM, _LARGE)
COCO_KEYPOINT_AREAS = (ALL_AREAS, _MEDIUM, _LARGE)


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """How detections are matched; ``coco_settings`` gives COCO's.

    Attributes:
        iou_type: ``bbox``, ``segm`` (overlap of masks) or ``keypoints`` (object keypoint similarity).
        iou_thresholds: T of them, ascending, in (0, 1].
        areas: A ranges; the first one is that of the headline numbers.
        max_detections: M limits, ascending; the best so many detections of an image and class count.
        oks_sigmas: of the keypoints of a category, by its name; COCO's where it has 17 keypoints and is not named.
    """

    iou_type: IouType = "bbox"
    iou_thresholds: tuple[float, ...] = tuple(IOU_THRESHOLDS.tolist())
    areas: tuple[AreaRange, ...] = COCO_AREAS
    max_detections: tuple[int, ...] = (1, 10, 100)
    oks_sigmas: Mapping[str, tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if self.iou_type not in IOU_TYPES:
            raise ValueError(f"unknown iou type {self.iou_type!r}; choose one of {', '.join(IOU_TYPES)}")
        thresholds = self.iou_thresholds
        if (
            not thresholds
            or list(thresholds) != sorted(set(thresholds))
            or not 0 < thresholds[0] <= thresholds[-1] <= 1
        ):
            raise ValueError(f"IoU thresholds must ascend and lie in (0, 1], got {thresholds}")
        if not self.areas or len({area.name for area in self.areas}) != len(self.areas):
            raise ValueError(f"area ranges need names of their own, got {[area.name for area in self.areas]}")
        most = self.max_detections
        if not most or list(most) != sorted(set(most)) or most[0] < 1:
            raise ValueError(f"numbers of detections must ascend from 1 or more, got {most}")
        for name, sigmas in (self.oks_sigmas or {}).items():
            if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
                raise ValueError(f"OKS sigmas of {name!r} must be positive, got {sigmas}")

    @cached_property
    def digest(self) -> str:
        """Of everything that changes a match."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def area_index(self, name: str) -> int:
        """Raises: ValueError: no such range."""
        names = [area.name for area in self.areas]
        if name not in names:
            raise ValueError(f"no area range {name!r}; there are {', '.join(names)}")
        return names.index(name)

    def has_threshold(self, iou: float) -> bool:
        """Whether an IoU, written as people do, is measured."""
        return any(abs(threshold - iou) <= 1e-6 for threshold in self.iou_thresholds)

    def threshold_index(self, iou: float) -> int:
        """Raises: ValueError: it is not measured."""
        at = int(np.argmin(np.abs(np.array(self.iou_thresholds) - iou)))
        if not self.has_threshold(iou):
            measured = ", ".join(f"{threshold:.2f}" for threshold in self.iou_thresholds)
            raise ValueError(f"IoU {iou} is not measured; choose one of {measured}")
        return at

    def sigmas_of(self, label_map: LabelMap, label: int, num_keypoints: int) -> FloatArray:
        """(num_keypoints,) of one class.

        Raises:
            ValueError: the class has other than COCO's 17 keypoints and no sigmas, or sigmas of another number.
        """
        name = label_map.names[label]
        sigmas = (self.oks_sigmas or {}).get(name, COCO_OKS_SIGMAS if num_keypoints == 17 else None)
        if sigmas is None:
            raise ValueError(
                f"category {name!r} has {num_keypoints} keypoints and no OKS sigmas; give "
                f"oks_sigmas={{{name!r}: (...)}}: {num_keypoints} numbers, each keypoint's spread as a share of scale"
            )
        if len(sigmas) != num_keypoints:
            raise ValueError(f"{len(sigmas)} OKS sigmas for the {num_keypoints} keypoints of category {name!r}")
        return np.array(sigmas, np.float64)


def coco_settings(iou_type: IouType) -> MatchSettings:
    """COCO's own: for keypoints no small objects and 20 detections an image."""
    match iou_type:
        case "bbox" | "segm":
            return MatchSettings(iou_type=iou_type)
        case "keypoints":
            return MatchSettings(iou_type=iou_type, areas=COCO_KEYPOINT_AREAS, max_detections=(20,))
        case _:
            assert_never(iou_type)


def with_sigmas(settings: MatchSettings, oks_sigmas: Mapping[str, Sequence[float]] | None) -> MatchSettings:
    """The same with spreads of keypoints by category; as they are where there are none."""
    if not oks_sigmas:
        return settings
    return replace(settings, oks_sigmas={name: tuple(values) for name, values in oks_sigmas.items()})
