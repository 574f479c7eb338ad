"""What precision and recall need of the matches, of one shard or of many brought together.

Legend: N detections, D of them that take a truth at some threshold, K classes, A area ranges, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.columns import ObjectColumns
from pipelines.metrics.matches import FALSE, IGNORED, MatchTable, areas_outside, outcomes_of, truths_ignored
from pipelines.metrics.matching import least_iou, match_pairs, ranks_in_images
from pipelines.metrics.settings import MatchSettings
from pipelines.metrics.similarity import similar_pairs
from pipelines.records import BoolArray, FloatArray, IntArray, LabelMap

ShortArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """What the arrays need of the matches; the counts of shards come together by ``merge_counts``.

    Attributes:
        image_ids: of all images measured.
        image_numbers: (N,) int32 or int64; of equal scores the lower number is first.
        labels, rank: (N,) int32: workers send them; ``rank`` is the place in image and class by score.
        scores: (N,) float64.
        outside: (N, A) detections whose area is outside the range, which do not count where they take no truth.
        rows: (D,) detections whose outcome is another than that of one that takes no truth.
        outcomes: (D, A, T) theirs.
        truths: (K, A) int64, those that count.
        truths_per_class, detections_per_class: (K,) int64, crowds left out.
    """

    image_ids: tuple[str, ...]
    image_numbers: IntArray | ShortArray
    labels: ShortArray
    rank: ShortArray
    scores: FloatArray
    outside: BoolArray
    rows: IntArray
    outcomes: NDArray[np.uint8]
    truths: IntArray
    truths_per_class: IntArray
    detections_per_class: IntArray


def count_columns(
    truth: ObjectColumns,
    found: ObjectColumns,
    label_map: LabelMap,
    settings: MatchSettings,
    *,
    unjudged: BoolArray | None = None,
) -> Counts:
    """Match and keep what counts; only detections that can come to count are compared with truth.

    Args:
        truth, found: with the masks or keypoints of ``settings.iou_type``.
        label_map, settings: of both.
        unjudged: (N,) detections that do not count where they take no truth, because not all truth is annotated.
    """
    thresholds = np.array(settings.iou_thresholds)
    groups = found.images * len(label_map) + found.labels
    rank = ranks_in_images(found.images, found.labels, found.scores)
    taking_part = np.flatnonzero(rank < settings.max_detections[-1])
    pairs = similar_pairs(truth, found, taking_part, label_map, settings, least=least_iou(thresholds))
    ignored = truths_ignored(truth, settings)
    matches = match_pairs(pairs, groups, rank, ignored, truth.iscrowd, thresholds)
    outside = areas_outside(found.area, settings)
    if unjudged is not None:
        outside |= unjudged[:, None]
    return Counts(
        image_ids=truth.image_ids,
        image_numbers=truth.image_numbers[found.images],
        labels=found.labels.astype(np.int32),
        rank=rank.astype(np.int32),
        scores=found.scores,
        outside=outside,
        rows=matches.rows,
        outcomes=outcomes_of(matches, outside),
        truths=_truths(truth.labels, ignored, len(label_map)),
        truths_per_class=truth.objects_per_class(len(label_map)),
        detections_per_class=found.objects_per_class(len(label_map)),
    )


def counts_of(table: MatchTable) -> Counts:
    """Of a match table, without matching again."""
    outside = areas_outside(table.area, table.settings)
    alone = np.where(outside, IGNORED, FALSE).astype(np.uint8)[:, :, None]
    taking_part = table.rank < table.settings.max_detections[-1]
    rows = np.flatnonzero((table.outcomes != alone).any(axis=(1, 2)) & taking_part)
    classes = len(table.label_map)
    return Counts(
        image_ids=table.image_ids,
        image_numbers=table.image_numbers[table.images],
        labels=table.labels.astype(np.int32),
        rank=table.rank.astype(np.int32),
        scores=table.scores,
        outside=outside,
        rows=rows,
        outcomes=table.outcomes[rows],
        truths=_truths(table.truth_labels, table.truth_ignored, classes),
        truths_per_class=np.bincount(table.truth_labels[~table.truth_iscrowd], minlength=classes).astype(np.int64),
        detections_per_class=np.bincount(table.labels, minlength=classes).astype(np.int64),
    )


def merge_counts(parts: Sequence[Counts]) -> Counts:
    """The counts of shards as if they had been counted at once; their order has no influence on any number.

    Raises:
        ValueError: no shard, an image in two shards.
    """
    if not parts:
        raise ValueError("no shards to merge; give at least one")
    seen: dict[str, int] = {}
    for at, part in enumerate(parts):
        for name in part.image_ids:
            other = seen.setdefault(name, at)
            if other != at:
                raise ValueError(
                    f"image {name!r} is in shards {other} and {at}; shards must not overlap, or it would count twice"
                )
    starts = np.cumsum([0, *(len(part.labels) for part in parts[:-1])])
    return Counts(
        image_ids=tuple(seen),
        image_numbers=np.concatenate([part.image_numbers for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        rank=np.concatenate([part.rank for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        outside=np.concatenate([part.outside for part in parts]),
        rows=np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=True)]),
        outcomes=np.concatenate([part.outcomes for part in parts]),
        truths=sum((part.truths for part in parts), np.zeros_like(parts[0].truths)),
        truths_per_class=sum((p.truths_per_class for p in parts), np.zeros_like(parts[0].truths_per_class)),
        detections_per_class=sum((p.detections_per_class for p in parts), np.zeros_like(parts[0].detections_per_class)),
    )


def _truths(labels: IntArray, ignored: BoolArray, num_classes: int) -> IntArray:
    return np.column_stack([np.bincount(labels[~column], minlength=num_classes) for column in ignored.T])
