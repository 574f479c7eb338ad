"""What is in a dataset version, counted from its label files alone: for `boxmill inspect` and for the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipelines.metrics.coco import LARGE_AREA, SMALL_AREA
from pipelines.records import Annotations, FloatArray, LabelMap
from pipelines.versions import Dataset

SIZES = ("small", "medium", "large")
_SIDE_BINS = (0, 8, 16, 32, 64, 96, 128, 256, 512, 1024)  # pixels; the last one is open
_LISTED_IMAGE_SIZES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary:
    """One class. ``sizes`` counts objects by COCO's areas (32² and 96² square pixels), ``splits`` by split."""

    name: str
    category_id: int
    objects: int
    images: int
    crowds: int
    sizes: Mapping[str, int]
    splits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSummary:
    """One split; the empty name stands for images that belong to none."""

    name: str
    images: int
    objects: int
    images_without_objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSummary:
    """One commit of the label set, with the whole dataset's counts after it."""

    version: int
    committed: str  # ISO 8601, UTC
    plan_id: str
    images: int
    objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """Counts of one dataset version.

    Attributes:
        kind: ``truth`` or ``predictions``.
        num_unlabelled: images that nobody has looked at; they are in no other count but ``num_images``.
        objects_per_image: how many images have 0, 1, 2, ... objects.
        box_sides: (least, count) of objects by the square root of their box's area, pixels.
        image_sizes: (width, height, count), the most frequent first; at most 8.
        ledger: sums by subject and fate, and by reason; empty where the version says nothing.
    """

    reference: str
    digest: str
    kind: str
    num_images: int
    num_objects: int
    num_unlabelled: int
    classes: tuple[ClassSummary, ...]
    splits: tuple[SplitSummary, ...]
    sizes: Mapping[str, int]
    objects_per_image: tuple[int, ...]
    box_sides: tuple[tuple[int, int], ...]
    image_sizes: tuple[tuple[int, int, int], ...]
    num_image_sizes: int
    num_crowds: int
    num_with_polygons: int
    num_with_rle: int
    num_with_keypoints: int
    ledger: Mapping[str, Any]
    history: tuple[VersionSummary, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(dataset: Dataset) -> DatasetSummary:
    """Count a dataset version; reads every label file and no image."""
    tally = _Tally(len(dataset.label_map))
    for split in sorted(dataset.splits):
        tally.add_split(split, dataset.label_map, dataset.annotations([split]))
    return DatasetSummary(
        reference=dataset.reference,
        digest=dataset.digest,
        kind=str(dataset.metadata.get("kind", "truth")),
        num_images=dataset.num_images,
        num_objects=dataset.num_objects,
        num_unlabelled=dataset.num_images - sum(tally.objects_per_image.values()),
        classes=tally.classes(dataset.label_map),
        splits=tuple(tally.splits),
        sizes=dict(zip(SIZES, tally.by_size.sum(0).tolist(), strict=True)),
        objects_per_image=tuple(
            tally.objects_per_image[n] for n in range(max(tally.objects_per_image, default=-1) + 1)
        ),
        box_sides=tuple(zip(_SIDE_BINS, tally.box_sides.tolist(), strict=True)),
        image_sizes=tuple((w, h, n) for (w, h), n in tally.image_sizes.most_common(_LISTED_IMAGE_SIZES)),
        num_image_sizes=len(tally.image_sizes),
        num_crowds=int(tally.crowds.sum()),
        num_with_polygons=tally.forms["polygons"],
        num_with_rle=tally.forms["rles"],
        num_with_keypoints=tally.forms["keypoints"],
        ledger=dict(dataset.metadata.get("ledger") or {}),
        history=tuple(
            VersionSummary(
                version=commit.version,
                committed=datetime.fromtimestamp(commit.timestamp / 1000, UTC).isoformat(timespec="seconds"),
                plan_id=str(commit.metadata.get("plan_id", "")),
                images=int(commit.metadata.get("num_images", 0)),
                objects=int(commit.metadata.get("num_objects", 0)),
            )
            for commit in dataset.history()
        ),
    )


class _Tally:
    """Running counts; C classes."""

    def __init__(self, num_classes: int) -> None:
        self.by_size = np.zeros((num_classes, len(SIZES)), np.int64)
        self.crowds = np.zeros(num_classes, np.int64)
        self.images = np.zeros(num_classes, np.int64)
        self.by_split: defaultdict[str, Any] = defaultdict(lambda: np.zeros(num_classes, np.int64))
        self.box_sides = np.zeros(len(_SIDE_BINS), np.int64)
        self.objects_per_image: Counter[int] = Counter()
        self.image_sizes: Counter[tuple[int, int]] = Counter()
        self.forms: Counter[str] = Counter()
        self.splits: list[SplitSummary] = []

    def add_split(
        self, split: str, label_map: LabelMap, images: Iterable[tuple[str, int, int, int, Annotations]]
    ) -> None:
        num_images = num_objects = num_empty = 0
        for _, _, width, height, objects in images:
            self.image_sizes[(width, height)] += 1
            self.objects_per_image[len(objects)] += 1
            num_images, num_objects, num_empty = (
                num_images + 1,
                num_objects + len(objects),
                num_empty + (len(objects) == 0),
            )
            self._add(split, objects, label_map)
        self.splits.append(
            SplitSummary(name=split, images=num_images, objects=num_objects, images_without_objects=num_empty)
        )

    def _add(self, split: str, objects: Annotations, label_map: LabelMap) -> None:
        labels = label_map.to_labels(objects.category_ids)
        np.add.at(self.by_size, (labels, size_buckets(objects)), 1)
        np.add.at(self.crowds, labels[objects.iscrowd], 1)
        np.add.at(self.by_split[split], labels, 1)
        self.images[np.unique(labels)] += 1
        sides = np.sqrt(np.maximum(objects.boxes_xywh[:, 2] * objects.boxes_xywh[:, 3], 0))
        np.add.at(self.box_sides, np.searchsorted(_SIDE_BINS, sides, side="right") - 1, 1)
        for form in ("polygons", "rles", "keypoints"):
            self.forms[form] += sum(value is not None for value in getattr(objects, form))

    def classes(self, label_map: LabelMap) -> tuple[ClassSummary, ...]:
        return tuple(
            ClassSummary(
                name=category.name,
                category_id=category.category_id,
                objects=int(self.by_size[label].sum()),
                images=int(self.images[label]),
                crowds=int(self.crowds[label]),
                sizes=dict(zip(SIZES, self.by_size[label].tolist(), strict=True)),
                splits={split: int(counts[label]) for split, counts in self.by_split.items()},
            )
            for label, category in enumerate(label_map.categories)
        )


def size_buckets(objects: Annotations) -> np.ndarray:
    """(N,) 0 small, 1 medium, 2 large by COCO's areas; the box's area where the source gives none."""
    box_area: FloatArray = objects.boxes_xywh[:, 2] * objects.boxes_xywh[:, 3]
    area = np.where(np.isnan(objects.area), box_area, objects.area)
    return (area >= SMALL_AREA).astype(np.int64) + (area >= LARGE_AREA)
