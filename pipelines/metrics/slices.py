"""The same numbers on parts of the dataset: by split, by source, by any column, by the objects' size.

Nothing is matched again: a part is the whole with the other images weighing nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.metrics.matches import IGNORED, MatchTable
from pipelines.metrics.ranking import average_precisions, final_recall, mean_over_classes, rankings
from pipelines.metrics.settings import MatchSettings
from pipelines.records import FloatArray, IntArray

NO_GROUP = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceMetrics:
    """One part's numbers.

    Attributes:
        num_images, num_truths, num_detections: that count.
        AP, AP50, AP75: 0..1, the mean over the classes with truth here; None without truth, or where the table was not
            matched at that IoU.
        AR: the share of truths found with all detections that count, the mean over classes and thresholds.
        AP_per_class: by name; None for a class without truth here.
    """

    num_images: int
    num_truths: int
    num_detections: int
    AP: float | None
    AP50: float | None
    AP75: float | None
    AR: float | None
    AP_per_class: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Parts of one dataset.

    Attributes:
        by: what it was divided by.
        parts: by the value they have in common; those of images in the order of their first image.
    """

    by: str
    parts: Mapping[str, SliceMetrics]

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "parts": {name: asdict(part) for name, part in self.parts.items()}}


def measure_slices(table: MatchTable, groups: Mapping[str, str | None], *, by: str, area: str = "all") -> Slices:
    """Measure each group of images.

    Args:
        table: of matches.
        groups: image id to the group's name; images that are not named, or have None, are the group ``(none)``.
        by: what the groups are, such as ``split``.
        area: a range of the table's settings.
    Raises:
        ValueError: no such range.
    """
    of_image = [groups.get(name) or NO_GROUP for name in table.image_ids]
    names = list(dict.fromkeys(of_image))
    if not names:
        return Slices(by=by, parts={})
    numbers = np.array([names.index(name) for name in of_image], np.int64)
    return Slices(by=by, parts=dict(zip(names, _measure(table, numbers, len(names), area), strict=True)))


def measure_sizes(table: MatchTable) -> Slices:
    """Measure each range of area that the table was matched for, COCO's AP_small, AP_medium and AP_large among them."""
    everything = np.zeros(table.num_images, np.int64)
    return Slices(
        by="size", parts={area.name: _measure(table, everything, 1, area.name)[0] for area in table.settings.areas}
    )


def iou_rows(settings: MatchSettings, statistic: str) -> list[int]:
    """The thresholds that a statistic is the mean over, by their numbers: ``AP`` all, ``AP50`` the one of 0.5.

    Raises:
        ValueError: another name, or an IoU that was not matched at.
    """
    thresholds = np.array(settings.iou_thresholds)
    if statistic == "AP":
        return list(range(len(thresholds)))
    percent = statistic.removeprefix("AP")
    if not statistic.startswith("AP") or not percent.isdigit():
        raise ValueError(f"unknown statistic {statistic!r}; choose AP, or AP50 and the like")
    rows = np.flatnonzero(np.abs(thresholds - int(percent) / 100) < 1e-6).tolist()
    if not rows:
        known = ", ".join(f"{t:g}" for t in thresholds)
        raise ValueError(f"{statistic} needs matches at IoU {int(percent) / 100:g}; there are {known}")
    return rows


def _measure(table: MatchTable, numbers: IntArray, num_groups: int, area: str) -> list[SliceMetrics]:
    weights = (numbers == np.arange(num_groups)[:, None]).astype(np.float64)
    ranked = rankings(table, area)
    found = np.full((len(ranked), num_groups, len(table.settings.iou_thresholds)), np.nan)
    for k, ranking in enumerate(ranked):
        found[k] = average_precisions(ranking, weights)
    recall = [np.stack([final_recall(ranking, row) for row in weights]) for ranking in ranked]
    mean = mean_over_classes(found)
    at = table.settings.area_index(area)
    images = np.bincount(numbers, minlength=num_groups)
    truths = np.bincount(numbers[table.truth_images[~table.truth_ignored[:, at]]], minlength=num_groups)
    counted = (table.outcomes[:, at] != IGNORED).any(1)
    detections = np.bincount(numbers[table.images[counted]], minlength=num_groups)
    return [
        SliceMetrics(
            num_images=int(images[g]),
            num_truths=int(truths[g]),
            num_detections=int(detections[g]),
            AP=_statistic(mean[g], table.settings, "AP"),
            AP50=_statistic(mean[g], table.settings, "AP50"),
            AP75=_statistic(mean[g], table.settings, "AP75"),
            AR=_mean_recall([values[g] for values in recall]),
            AP_per_class={
                name: _statistic(found[k, g], table.settings, "AP") for k, name in enumerate(table.label_map.names)
            },
        )
        for g in range(num_groups)
    ]


def _statistic(of_thresholds: FloatArray, settings: MatchSettings, name: str) -> float | None:
    if name != "AP" and not np.isclose(settings.iou_thresholds, int(name.removeprefix("AP")) / 100).any():
        return None
    value = float(of_thresholds[iou_rows(settings, name)].mean())
    return None if np.isnan(value) else value


def _mean_recall(of_classes: Sequence[FloatArray]) -> float | None:
    """Of the classes that have truth."""
    known = [values.mean() for values in of_classes if values[0] >= 0]
    return float(np.mean(known)) if known else None
