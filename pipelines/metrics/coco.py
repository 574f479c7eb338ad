"""COCO box metrics, bit-equal to pycocotools.

Array legend: T IoU thresholds (.50:.05:.95), R recall points (0:.01:1), K classes in the label map's order,
A area ranges, M most detections an image (1, 10, 100). A value of -1 means that a group has no truth to be
measured on; it is neither zero nor an error, and is left out of every mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.metrics.columns import detection_columns, truth_columns
from pipelines.metrics.engines import Engine, count_boxes
from pipelines.records import Annotations, FloatArray, IntArray, LabelMap

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
MOST_DETECTIONS = (1, 10, 100)
SMALL_AREA, LARGE_AREA = 32.0**2, 96.0**2  # square pixels; an object of exactly one of them is in both ranges
NO_TRUTH = -1.0

_AVERAGE_PRECISIONS = (
    ("AP", None, "all"),
    ("AP50", 0.5, "all"),
    ("AP75", 0.75, "all"),
    ("AP_small", None, "small"),
    ("AP_medium", None, "medium"),
    ("AP_large", None, "large"),
)
_AVERAGE_RECALLS = (
    ("AR_1", 1, "all"),
    ("AR_10", 10, "all"),
    ("AR_100", 100, "all"),
    ("AR_small", 100, "small"),
    ("AR_medium", 100, "medium"),
    ("AR_large", 100, "large"),
)
STAT_NAMES = tuple(name for name, *_ in (*_AVERAGE_PRECISIONS, *_AVERAGE_RECALLS))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One class's numbers; -1 where it has no truth."""

    AP: float
    AP50: float
    AP75: float
    AR_100: float
    num_truths: int
    num_detections: int

    def to_json(self) -> dict[str, Any]:
        return {name: number_or_none(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrCurve:
    """Interpolated precision over recall at one IoU threshold.

    Attributes:
        recall: (101,) 0..1.
        precision: (101,) 0..1; empty where there is no truth.
        scores: (101,) the least score that reaches each recall; 0 where none does.
    """

    iou: float
    name: str
    recall: FloatArray
    precision: FloatArray
    scores: FloatArray

    @property
    def AP(self) -> float:
        return float(self.precision.mean()) if len(self.precision) else NO_TRUTH


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoMetrics:
    """What COCO's box evaluation found.

    Attributes:
        label_map: gives the order of the K axis.
        precision: (T, R, K, A, M), -1 without truth.
        recall: (T, K, A, M), -1 without truth.
        scores: (T, R, K, A, M).
        num_images: images with truth, also those whose truth is that they hold nothing.
        truths_per_class, detections_per_class: (K,) crowds not counted.
        engine: which library counted, with its version.
    """

    label_map: LabelMap
    precision: FloatArray
    recall: FloatArray
    scores: FloatArray
    num_images: int
    truths_per_class: IntArray
    detections_per_class: IntArray
    engine: str

    @cached_property
    def stats(self) -> dict[str, float]:
        """The 12 COCO numbers by name, 0..1, or -1 where there is no truth in the group."""
        numbers = {}
        for name, iou, area in _AVERAGE_PRECISIONS:
            values = self.precision[..., AREAS.index(area), -1]
            numbers[name] = _mean(values if iou is None else values[_threshold(iou)])
        for name, most, area in _AVERAGE_RECALLS:
            numbers[name] = _mean(self.recall[..., AREAS.index(area), MOST_DETECTIONS.index(most)])
        return numbers

    @cached_property
    def per_class(self) -> dict[str, ClassMetrics]:
        """By class name, in the label map's order, also classes without truth."""
        precision, recall = self.precision[..., 0, -1], self.recall[..., 0, -1]
        return {
            name: ClassMetrics(
                AP=_mean(precision[:, :, k]),
                AP50=_mean(precision[_threshold(0.5), :, k]),
                AP75=_mean(precision[_threshold(0.75), :, k]),
                AR_100=_mean(recall[:, k]),
                num_truths=int(self.truths_per_class[k]),
                num_detections=int(self.detections_per_class[k]),
            )
            for k, name in enumerate(self.label_map.names)
        }

    def pr_curve(self, iou: float = 0.5, name: str | None = None) -> PrCurve:
        """Precision over recall of one class, or the mean of all classes that have truth.

        Args:
            iou: one of .50, .55, ..., .95.
            name: a class; None for the mean.
        Raises:
            ValueError: an IoU that is not measured, or an unknown class.
        """
        at = _threshold(iou)
        if name is None:
            known = np.flatnonzero(self.precision[at, 0, :, 0, -1] > NO_TRUTH)
        elif name in self.label_map.names:
            k = self.label_map.names.index(name)
            known = np.array([k] if self.precision[at, 0, k, 0, -1] > NO_TRUTH else [], np.int64)
        else:
            raise ValueError(f"unknown class {name!r}; the classes are {', '.join(self.label_map.names)}")
        empty = np.zeros(0)
        return PrCurve(
            iou=iou,
            name="mean" if name is None else name,
            recall=RECALL_POINTS if len(known) else empty,
            precision=self.precision[at, :, known, 0, -1].mean(0) if len(known) else empty,
            scores=self.scores[at, :, known, 0, -1].mean(0) if len(known) else empty,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; null where there is no truth."""
        return {
            "iou_type": "bbox",
            "engine": self.engine,
            "num_images": self.num_images,
            "num_truths": int(self.truths_per_class.sum()),
            "num_detections": int(self.detections_per_class.sum()),
            "stats": {name: number_or_none(value) for name, value in self.stats.items()},
            "per_class": {name: c.to_json() for name, c in self.per_class.items()},
            "pr_curves": {
                f"{iou:.2f}": [round(float(p), 6) for p in self.pr_curve(iou).precision] for iou in (0.5, 0.75)
            },
        }


def number_or_none(value: float) -> float | None:
    """None for the -1 that stands for "no truth"."""
    return None if value == NO_TRUTH else value


def evaluate_boxes(
    truths: Iterable[tuple[str, Annotations]],
    detections: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    engine: Engine = "auto",
) -> CocoMetrics:
    """Measure detections against truth as COCO does.

    Args:
        truths: every image to be measured with its truth, empty where it holds nothing. Their order is the order
            of images, which decides between equal scores: give them by COCO image id for pycocotools's numbers.
        detections: images with what was found, with scores. The order within an image is kept: it decides between
            equal scores. Images without a row count as images in which nothing was found.
        label_map: the categories of both.
        engine: ``hotcoco``, ``pycocotools`` (the reference, slower) or ``auto``: hotcoco where it is installed.
    Raises:
        ValueError: an image given twice, detections on an image without truth or without scores, an unknown
            category id, a box or score that is not finite.
    """
    truth = truth_columns(truths, label_map)
    found = detection_columns(detections, label_map, truth)
    arrays = count_boxes(truth, found, num_classes=len(label_map), engine=engine)
    return CocoMetrics(
        label_map=label_map,
        precision=arrays.precision,
        recall=arrays.recall,
        scores=arrays.scores,
        num_images=len(truth.image_ids),
        truths_per_class=truth.objects_per_class(len(label_map)),
        detections_per_class=found.objects_per_class(len(label_map)),
        engine=arrays.engine,
    )


def _threshold(iou: float) -> int:
    at = int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))
    if abs(IOU_THRESHOLDS[at] - iou) > 1e-6:
        raise ValueError(f"IoU {iou} is not measured; choose one of {', '.join(f'{t:.2f}' for t in IOU_THRESHOLDS)}")
    return at


def _mean(values: FloatArray) -> float:
    """Of what has truth; -1 where nothing has."""
    known = values[values > NO_TRUTH]
    return float(np.mean(known)) if known.size else NO_TRUTH
