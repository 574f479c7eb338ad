"""LVIS's federated evaluation: of each image only some classes are known to be there, or known not to be.

A detection counts only in images where its class is annotated or verified to be absent; where a class is not annotated
exhaustively, a detection that finds no annotated object is ignored, not wrong. The best 300 detections of an image
take part, over all classes. Classes are also averaged by how frequent they are in training images: rare, common,
frequent.

Source: A. Gupta, P. Dollar, R. Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", 2019.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.metrics.coco import NO_TRUTH, CocoMetrics, metrics_of, number_or_none
from pipelines.metrics.columns import ObjectColumns, Size, detection_columns, truth_columns
from pipelines.metrics.counting import count_columns
from pipelines.metrics.matching import ranks_in_images
from pipelines.metrics.settings import IouType, MatchSettings
from pipelines.records import Annotations, BoolArray, LabelMap

MOST_AN_IMAGE = 300
FREQUENCIES = ("r", "c", "f")
Federated = Mapping[str, Collection[int]]
"""Category ids by image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LvisMetrics:
    """What LVIS's evaluation found.

    Attributes:
        coco: the arrays and all that follows from them, with 300 detections.
        frequencies: of each class ``r``, ``c``, ``f``, or the empty string where the dataset does not say.
        num_unjudged: detections left out because nobody looked for their class in their image.
        num_cut: detections left out because their image has 300 better ones.
    """

    coco: CocoMetrics
    frequencies: tuple[str, ...]
    num_unjudged: int
    num_cut: int

    @cached_property
    def stats(self) -> dict[str, float]:
        """LVIS's 13 numbers in its order, 0..1, or -1 where a group has no truth."""
        plain = self.coco.stats
        average = [name for name in plain if name.startswith("AP")]
        groups = {f"AP_{group}": self._group(group) for group in FREQUENCIES}
        recalls = {name: value for name, value in plain.items() if name.startswith("AR")}
        return {**{name: plain[name] for name in average}, **groups, **recalls}

    def _group(self, group: str) -> float:
        own = np.flatnonzero([frequency == group for frequency in self.frequencies])
        values = self.coco.precision[:, :, own, 0, -1]
        known = values[values > NO_TRUTH]
        return float(np.mean(known)) if known.size else NO_TRUTH

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; null where there is no truth."""
        return {
            **self.coco.to_json(),
            "protocol": "lvis",
            "stats": {name: number_or_none(value) for name, value in self.stats.items()},
            "num_unjudged": self.num_unjudged,
            "num_cut": self.num_cut,
        }


def evaluate_lvis(
    truths: Iterable[tuple[str, Annotations]],
    detections: Iterable[tuple[str, Annotations]],
    label_map: LabelMap,
    *,
    neg: Federated,
    not_exhaustive: Federated,
    iou_type: IouType = "bbox",
    sizes: Mapping[str, Size] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> LvisMetrics:
    """Measure boxes or masks as LVIS does.

    Args:
        truths, detections, label_map, sizes, numbers: see ``coco.evaluate``; classes have their frequency as
            ``frequency`` in their ``extra``.
        neg: category ids verified to be absent, by image.
        not_exhaustive: category ids of which not every object is annotated, by image.
        iou_type: ``bbox`` or ``segm``.
    Raises:
        ValueError: see ``coco.evaluate``; keypoints, a category or image that is not known.
    """
    if iou_type == "keypoints":
        raise ValueError("LVIS measures boxes and masks; choose iou_type='bbox' or 'segm'")
    settings = MatchSettings(iou_type=iou_type, max_detections=(MOST_AN_IMAGE,))
    truth = truth_columns(truths, label_map, iou_type=iou_type, sizes=sizes, numbers=numbers)
    found = detection_columns(detections, label_map, truth, iou_type=iou_type, sizes=sizes)
    # The limit comes first: detections of classes that are not judged use it up too.
    best = ranks_in_images(found.images, np.zeros_like(found.labels), found.scores) < MOST_AN_IMAGE
    there = np.unique(truth.images * len(label_map) + truth.labels)
    absent, partly = (_keys(truth, label_map, given) for given in (neg, not_exhaustive))
    keys = found.images * len(label_map) + found.labels
    judged = np.isin(keys, there) | np.isin(keys, absent)
    kept = found.take(np.flatnonzero(best & judged))
    unjudged: BoolArray = np.isin(kept.images * len(label_map) + kept.labels, partly)
    counts = count_columns(truth, kept, label_map, settings, unjudged=unjudged)
    return LvisMetrics(
        coco=metrics_of(counts, label_map, settings),
        frequencies=tuple(str(category.extra.get("frequency", "")) for category in label_map.categories),
        num_unjudged=int(np.count_nonzero(best & ~judged)),
        num_cut=int(np.count_nonzero(~best)),
    )


def _keys(truth: ObjectColumns, label_map: LabelMap, given: Federated) -> np.ndarray:
    """Image and label as one number."""
    places = {name: at for at, name in enumerate(truth.image_ids)}
    keys = [np.zeros(0, np.int64)]
    for name, category_ids in given.items():
        if name not in places:
            raise ValueError(f"image {name!r} has verified categories but is not in the truth; give its truth as well")
        labels = label_map.to_labels(np.array(list(category_ids), np.int64))
        keys.append(places[name] * len(label_map) + labels)
    return np.concatenate(keys)
