"""PASCAL VOC's average precision of boxes: 11 points (until 2009) or the area under the curve (from 2010).

A detection belongs to the truth of its class and image that it overlaps most, taken or not: other than with COCO a
taken truth is not replaced by the next best. It is right if it overlaps by the threshold or more and no better
detection has it, ignored if the truth is difficult, else wrong. Difficult objects (and crowds, which VOC does not
know) are no truth to be found.

VOC's corners are pixels that belong to the object, so that its sides are xmax - xmin + 1 pixels. Boxes at rest have
these sides already (see ``sources.voc``), detections are taken likewise: x, y, w, h is what a VOC results file writes
as x + 1, y + 1, x + w, y + h. The overlap of such boxes is that of VOC's corners with its ones added.

Source: The PASCAL Visual Object Classes Challenge 2012 Development Kit, section 3.4 and VOCevaldet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pipelines.metrics.coco import NO_TRUTH, number_or_none
from pipelines.metrics.columns import ObjectColumns, detection_columns, truth_columns
from pipelines.metrics.settings import MatchSettings
from pipelines.metrics.similarity import similar_pairs
from pipelines.records import Annotations, BoolArray, FloatArray, IntArray, LabelMap

VocProtocol = Literal["voc07", "voc10"]
VOC_PROTOCOLS: tuple[VocProtocol, ...] = ("voc07", "voc10")
# As the development kit steps: its .3, .6 and .7 lie a bit above 3/10, 6/10 and 7/10, which do not reach them.
_ELEVEN_POINTS = np.arange(0.0, 1.1, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocCurve:
    """One class, by descending score.

    Attributes:
        recall, precision: (N,) after each detection that is not ignored.
        scores: (N,) theirs.
        AP: 0..1, or -1 where the class has no truth.
        num_truths: without difficult ones.
        num_difficult, num_detections: the latter with ignored ones.
    """

    recall: FloatArray
    precision: FloatArray
    scores: FloatArray
    AP: float
    num_truths: int
    num_difficult: int
    num_detections: int


@dataclass(frozen=True, kw_only=True, eq=False)
class VocMetrics:
    """What VOC's evaluation found; ``curves`` has one entry a class, in the label map's order."""

    protocol: VocProtocol
    iou_threshold: float
    label_map: LabelMap
    num_images: int
    curves: tuple[VocCurve, ...]

    @cached_property
    def stats(self) -> dict[str, float]:
        """``mAP``: the mean of the classes that have truth, or -1."""
        known = [curve.AP for curve in self.curves if curve.AP > NO_TRUTH]
        return {"mAP": float(np.mean(known)) if known else NO_TRUTH}

    @cached_property
    def per_class(self) -> dict[str, float]:
        """AP by class name, -1 where a class has no truth."""
        return {name: curve.AP for name, curve in zip(self.label_map.names, self.curves, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; null where there is no truth."""
        counted = ("num_truths", "num_difficult", "num_detections")
        return {
            "protocol": self.protocol,
            "iou_type": "bbox",
            "iou_threshold": self.iou_threshold,
            "num_images": self.num_images,
            "stats": {name: number_or_none(value) for name, value in self.stats.items()},
            "per_class": {
                name: {"AP": number_or_none(curve.AP), **{key: getattr(curve, key) for key in counted}}
                for name, curve in zip(self.label_map.names, self.curves, strict=True)
            },
        }


def evaluate_voc(
    truths: Iterable[tuple[str, Annotations]],
    detections: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    protocol: VocProtocol = "voc07",
    iou_threshold: float = 0.5,
) -> VocMetrics:
    """Measure boxes as VOC does.

    Args:
        truths: every image to be measured; ``difficult`` is an attribute of its objects. Of equal scores the
            detection of the earlier image, and in it the earlier detection, is first.
        detections: with scores.
        label_map: the categories of both.
        protocol: ``voc07`` takes the mean of the best precision at 11 recalls, ``voc10`` the area under the curve.
        iou_threshold: in (0, 1]; a detection must overlap by this or more.
    Raises:
        ValueError: see ``coco.evaluate``; an unknown protocol or a threshold out of range.
    """
    if protocol not in VOC_PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(VOC_PROTOCOLS)}")
    settings = MatchSettings(iou_thresholds=(iou_threshold,))
    images = list(truths)
    truth = truth_columns(images, label_map)
    found = detection_columns(detections, label_map, truth)
    difficult = truth.iscrowd | np.array([_difficult(one) for _, a in images for one in a.attributes], np.bool_)
    best = _best_truths(truth, found, label_map, settings)
    curves = tuple(_curve(truth, found, difficult, best, label, protocol) for label in range(len(label_map)))
    return VocMetrics(
        protocol=protocol,
        iou_threshold=iou_threshold,
        label_map=label_map,
        num_images=len(truth.image_ids),
        curves=curves,
    )


def _difficult(attributes: Any) -> bool:
    said = attributes.get("difficult", False)
    return said not in (False, 0, None, "", "0", "false", "False")


def _best_truths(truth: ObjectColumns, found: ObjectColumns, label_map: LabelMap, settings: MatchSettings) -> IntArray:
    """(N,) the truth that each detection overlaps most, the first of equal ones; -1 below the threshold."""
    pairs = similar_pairs(
        # A crowd is overlapped as any other object.
        truth if not truth.iscrowd.any() else _without_crowds(truth),
        found,
        np.arange(len(found)),
        label_map,
        settings,
        least=settings.iou_thresholds[0],
    )
    best = np.full(len(found), -1, np.int64)
    order = np.lexsort((-pairs.truths, pairs.iou))
    best[pairs.found[order]] = pairs.truths[order]
    return best


def _without_crowds(truth: ObjectColumns) -> ObjectColumns:
    return replace(truth, iscrowd=np.zeros(len(truth), np.bool_))


def _curve(
    truth: ObjectColumns,
    found: ObjectColumns,
    difficult: BoolArray,
    best: IntArray,
    label: int,
    protocol: VocProtocol,
) -> VocCurve:
    own = np.flatnonzero(found.labels == label)
    own = own[np.argsort(-found.scores[own], kind="stable")]
    taken = best[own]
    counts = (taken < 0) | ~difficult[taken] if len(difficult) else np.ones(len(own), np.bool_)
    first = np.zeros(len(own), np.bool_)
    first[np.unique(taken, return_index=True)[1]] = True
    right = (taken >= 0) & first & counts
    tp, fp = np.cumsum(right[counts]), np.cumsum(~right[counts])
    of_class = truth.labels == label
    num_truths = int(np.count_nonzero(of_class & ~difficult))
    recall = tp / max(num_truths, 1)
    precision = tp / np.maximum(tp + fp, 1)
    if not num_truths:
        average = NO_TRUTH
    else:
        average = _eleven_points(recall, precision) if protocol == "voc07" else _area(recall, precision)
    return VocCurve(
        recall=recall,
        precision=precision,
        scores=found.scores[own[counts]],
        AP=average,
        num_truths=num_truths,
        num_difficult=int(np.count_nonzero(of_class & difficult)),
        num_detections=len(own),
    )


def _eleven_points(recall: FloatArray, precision: FloatArray) -> float:
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in _ELEVEN_POINTS]))


def _area(recall: FloatArray, precision: FloatArray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
