"""COCO metrics of boxes, masks and keypoints, bit-equal to pycocotools.

Array legend: T IoU thresholds (.50:.05:.95), R recall points (0:.01:1), K classes in the label map's order,
A area ranges, M most detections an image and class. A value of -1 means that a group has no truth to be
measured on; it is neither zero nor an error, and is left out of every mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.metrics.accumulating import NO_TRUTH, EvaluationArrays, accumulate
from pipelines.metrics.columns import ObjectColumns, Size, detection_columns, truth_columns
from pipelines.metrics.counting import Counts
from pipelines.metrics.engines import Engine, count
from pipelines.metrics.settings import (
    IOU_THRESHOLDS,
    LARGE_AREA,
    RECALL_POINTS,
    SMALL_AREA,
    IouType,
    MatchSettings,
    coco_settings,
)
from pipelines.records import Annotations, FloatArray, IntArray, LabelMap

__all__ = [
    "IOU_THRESHOLDS",
    "LARGE_AREA",
    "NO_TRUTH",
    "RECALL_POINTS",
    "SMALL_AREA",
    "STAT_NAMES",
    "ClassMetrics",
    "CocoMetrics",
    "PrCurve",
    "evaluate",
    "evaluate_boxes",
    "evaluate_columns",
    "metrics_of",
    "number_or_none",
    "stat_names",
]


def stat_names(settings: MatchSettings) -> tuple[str, ...]:
    """Names of the headline numbers, in COCO's order: 12 for its boxes and masks, 10 for its keypoints."""
    precise = tuple(f"{t:.0f}" for t in (50, 75) if settings.has_threshold(t / 100))
    others = tuple(area.name for area in settings.areas[1:])
    recalls = ("AR", *(f"AR{t}" for t in precise))
    if settings.iou_type != "keypoints":
        recalls = tuple(f"AR_{most}" for most in settings.max_detections)
    return (
        *("AP", *(f"AP{t}" for t in precise), *(f"AP_{name}" for name in others)),
        *(*recalls, *(f"AR_{name}" for name in others)),
    )


STAT_NAMES = stat_names(coco_settings("bbox"))


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
    """What COCO's evaluation found.

    Attributes:
        label_map: gives the order of the K axis.
        precision: (T, R, K, A, M), -1 without truth.
        recall: (T, K, A, M), -1 without truth.
        scores: (T, R, K, A, M).
        num_images: images with truth, also those whose truth is that they hold nothing.
        truths_per_class, detections_per_class: (K,) crowds not counted.
        engine: what counted; of a library also its version.
        settings: what was measured.
    """

    label_map: LabelMap
    precision: FloatArray
    recall: FloatArray
    scores: FloatArray
    num_images: int
    truths_per_class: IntArray
    detections_per_class: IntArray
    engine: str
    settings: MatchSettings = field(default_factory=MatchSettings)

    @cached_property
    def stats(self) -> dict[str, float]:
        """The headline numbers by name, 0..1, or -1 where there is no truth in the group; see ``stat_names``."""
        return {name: self._stat(name) for name in stat_names(self.settings)}

    def _stat(self, name: str) -> float:
        kind, of = name[:2], name[2:].removeprefix("_")
        values = self.precision if kind == "AP" else self.recall
        at = slice(None)
        area = most = None
        if name[2:3] == "_" and of in [a.name for a in self.settings.areas]:
            area = self.settings.area_index(of)
        elif name[2:3] == "_":
            most = self.settings.max_detections.index(int(of))
        elif of:
            at = slice(*(self.settings.threshold_index(int(of) / 100) + step for step in (0, 1)))
        return _mean(values[at, ..., area or 0, -1 if most is None else most])

    def _at(self, values: FloatArray, iou: float) -> float:
        """Of a threshold that may not be measured, as with custom ones: then -1."""
        return _mean(values[self.settings.threshold_index(iou)]) if self.settings.has_threshold(iou) else NO_TRUTH

    @cached_property
    def per_class(self) -> dict[str, ClassMetrics]:
        """By class name, in the label map's order, also classes without truth."""
        precision, recall = self.precision[..., 0, -1], self.recall[..., 0, -1]
        return {
            name: ClassMetrics(
                AP=_mean(precision[:, :, k]),
                AP50=self._at(precision[:, :, k], 0.5),
                AP75=self._at(precision[:, :, k], 0.75),
                AR_100=_mean(recall[:, k]),
                num_truths=int(self.truths_per_class[k]),
                num_detections=int(self.detections_per_class[k]),
            )
            for k, name in enumerate(self.label_map.names)
        }

    def pr_curve(self, iou: float = 0.5, name: str | None = None) -> PrCurve:
        """Precision over recall of one class, or the mean of all classes that have truth.

        Args:
            iou: one of the thresholds: .50, .55, ..., .95 unless others were set.
            name: a class; None for the mean.
        Raises:
            ValueError: an IoU that is not measured, or an unknown class.
        """
        at = self.settings.threshold_index(iou)
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
            "iou_type": self.settings.iou_type,
            "engine": self.engine,
            "num_images": self.num_images,
            "num_truths": int(self.truths_per_class.sum()),
            "num_detections": int(self.detections_per_class.sum()),
            "stats": {name: number_or_none(value) for name, value in self.stats.items()},
            "per_class": {name: c.to_json() for name, c in self.per_class.items()},
            "pr_curves": {
                f"{iou:.2f}": [round(float(p), 6) for p in self.pr_curve(iou).precision]
                for iou in (0.5, 0.75)
                if self.settings.has_threshold(iou)
            },
        }


def number_or_none(value: float) -> float | None:
    """None for the -1 that stands for "no truth"."""
    return None if value == NO_TRUTH else value


def evaluate(
    truths: Iterable[tuple[str, Annotations]],
    detections: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    iou_type: IouType = "bbox",
    settings: MatchSettings | None = None,
    sizes: Mapping[str, Size] | None = None,
    numbers: Mapping[str, int] | None = None,
    engine: Engine = "auto",
) -> CocoMetrics:
    """Measure detections against truth as COCO does.

    Args:
        truths: every image to be measured with its truth, empty where it holds nothing. Their order is the order
            of images, which decides between equal scores, unless ``numbers`` gives another.
        detections: images with what was found, with scores. The order within an image is kept: it decides between
            equal scores. Images without a row count as images in which nothing was found.
        label_map: the categories of both.
        iou_type: ``bbox``, ``segm`` or ``keypoints``, with COCO's settings.
        settings: others than COCO's; then ``iou_type`` is theirs.
        sizes: height and width of images by name: ``segm`` needs them for polygons and compares them with RLEs.
        numbers: COCO image ids by name: images are taken in their order, as pycocotools takes them.
        engine: ``boxmill``, ``hotcoco``, ``pycocotools`` (the reference, slowest) or ``auto``: boxmill's own.
    Raises:
        ValueError: an image given twice, detections on an image without truth or without scores, an unknown
            category id, a box, keypoint or score that is not finite, a mask that is missing or of another size.
    """
    settings = settings or coco_settings(iou_type)
    truth = truth_columns(truths, label_map, iou_type=settings.iou_type, sizes=sizes, numbers=numbers)
    found = detection_columns(detections, label_map, truth, iou_type=settings.iou_type, sizes=sizes)
    return evaluate_columns(truth, found, label_map, settings, engine=engine)


def evaluate_columns(
    truth: ObjectColumns,
    found: ObjectColumns,
    label_map: LabelMap,
    settings: MatchSettings,
    *,
    engine: Engine = "auto",
) -> CocoMetrics:
    """As ``evaluate``, of flat columns."""
    return CocoMetrics(
        label_map=label_map,
        num_images=len(truth.image_ids),
        truths_per_class=truth.objects_per_class(len(label_map)),
        detections_per_class=found.objects_per_class(len(label_map)),
        settings=settings,
        **_arrays(count(truth, found, label_map, settings, engine=engine)),
    )


def metrics_of(counts: Counts, label_map: LabelMap, settings: MatchSettings, *, threads: int = 1) -> CocoMetrics:
    """Of counts: of a match table (``counts_of``), or of shards that were brought together (``merge_counts``).

    ``threads`` share the classes among them.
    """
    return CocoMetrics(
        label_map=label_map,
        num_images=len(counts.image_ids),
        truths_per_class=counts.truths_per_class,
        detections_per_class=counts.detections_per_class,
        settings=settings,
        **_arrays(accumulate(counts, settings, threads=threads)),
    )


def evaluate_boxes(
    truths: Iterable[tuple[str, Annotations]],
    detections: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    engine: Engine = "auto",
) -> CocoMetrics:
    """COCO's 12 numbers of boxes; see ``evaluate``."""
    return evaluate(truths, detections, label_map, engine=engine)


def _arrays(arrays: EvaluationArrays) -> dict[str, Any]:
    return {name: getattr(arrays, name) for name in ("precision", "recall", "scores", "engine")}


def _mean(values: FloatArray) -> float:
    """Of what has truth; -1 where nothing has."""
    known = values[values > NO_TRUTH]
    return float(np.mean(known)) if known.size else NO_TRUTH
