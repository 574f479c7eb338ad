"""Bring truth and predictions together: by image id, and by the names of their categories."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from pipelines.predictions import PredictionSet
from pipelines.records import Annotations, IntArray, LabelMap
from pipelines.references import CategoryMismatch
from pipelines.shards import ShardRef, read_label_columns
from pipelines.versions import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedImage:
    """One image of the truth with what was found in it.

    Attributes:
        truth: of the dataset.
        found: with scores and the dataset's category ids; empty where nothing was found or the image has no row.
    """

    image_id: str
    coco_image_id: int
    width: int
    height: int
    truth: Annotations
    found: Annotations


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """All images of the truth, by COCO image id, and what does not fit.

    Attributes:
        unknown: ids of predicted images that the dataset does not have; their detections are not measured.
        without_row: ids of images with truth on which no prediction was made; they count as nothing found.
        failed: (image id, error) of images with truth that the model could not read; likewise.
    """

    images: tuple[PairedImage, ...]
    label_map: LabelMap
    unknown: tuple[str, ...]
    without_row: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def pair(dataset: Dataset, predictions: PredictionSet, splits: Collection[str] | None = None) -> Pairs:
    """Join the truth of some splits with predictions.

    Raises:
        CategoryMismatch: the predictions have a category that the dataset has not, by name.
        ValueError: a split that the dataset has not, or no labelled image in the splits.
    """
    _check_splits(dataset, splits)
    new_ids = predicted_category_ids(dataset, predictions)
    truths = {row[0]: row for row in dataset.annotations(splits)}
    if not truths:
        raise ValueError(_nothing_labelled(dataset, splits))
    found: dict[str, Annotations] = {}
    elsewhere = []
    for image_id, _, _, _, objects in predictions.annotations():
        if image_id in truths:
            ids = predictions.label_map.to_labels(objects.category_ids)
            found[image_id] = replace(objects, category_ids=new_ids[ids])
        else:
            elsewhere.append(image_id)
    known = set(dataset.index()["image_id"].to_pylist()) if elsewhere else set()
    failed = tuple((image_id, error) for image_id, error in predictions.errors() if image_id in truths)
    nothing = Annotations.empty(with_scores=True)
    # pycocotools takes images by id; their order decides between equal scores.
    ordered = sorted(truths.values(), key=lambda row: (row[1], row[0]))
    return Pairs(
        images=tuple(
            PairedImage(
                image_id=image_id,
                coco_image_id=number,
                width=width,
                height=height,
                truth=truth,
                found=found.get(image_id, nothing),
            )
            for image_id, number, width, height, truth in ordered
        ),
        label_map=dataset.label_map,
        unknown=tuple(i for i in elsewhere if i not in known),
        without_row=tuple(row[0] for row in ordered if row[0] not in found and row[0] not in dict(failed)),
        failed=failed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """What does not fit, as in ``Pairs``."""

    unknown: tuple[str, ...]
    without_row: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def unpaired(dataset: Dataset, predictions: PredictionSet, splits: Collection[str] | None = None) -> Unpaired:
    """What ``pair`` says of a whole evaluation, without reading an object.

    Raises:
        ValueError: a split that the dataset has not, or no labelled image in the splits.
    """
    _check_splits(dataset, splits)
    given = [row for shard in dataset.shards for row in _rows(shard)]
    truths = {name: (number, name) for name, number, split, labelled in given if labelled and _wanted(split, splits)}
    if not truths:
        raise ValueError(_nothing_labelled(dataset, splits))
    rows = [(name, there) for shard in predictions.labels.shards for name, _, _, there in _rows(shard)]
    found = {name for name, there in rows if there}
    elsewhere = [name for name, there in rows if there and name not in truths]
    known = set(dataset.index()["image_id"].to_pylist()) if elsewhere else set()
    failed = tuple((name, error) for name, error in predictions.errors() if name in truths)
    missing = truths.keys() - found - dict(failed).keys()
    return Unpaired(
        unknown=tuple(name for name in elsewhere if name not in known),
        without_row=tuple(sorted(missing, key=truths.__getitem__)),
        failed=failed,
    )


def _rows(shard: ShardRef) -> list[tuple[str, int, str, bool]]:
    """Image id, COCO id, split, and whether somebody has looked at the image."""
    table = read_label_columns(shard, ["image_id", "coco_image_id", "split", "objects.iscrowd"])
    columns = [table[name].to_pylist() for name in ("image_id", "coco_image_id", "split")]
    return list(zip(*columns, table["objects"].is_valid().to_pylist(), strict=True))


def _wanted(split: str, splits: Collection[str] | None) -> bool:
    return splits is None or split in splits


def _nothing_labelled(dataset: Dataset, splits: Collection[str] | None) -> str:
    where = f" in split {', '.join(sorted(splits))}" if splits else ""
    return f"{dataset.reference} has no labelled image{where}: there is nothing to measure against"


def _check_splits(dataset: Dataset, splits: Collection[str] | None) -> None:
    strange = sorted(set(splits or ()) - set(dataset.splits))
    if strange:
        raise ValueError(
            f"{dataset.reference} has no split {', '.join(map(repr, strange))}; "
            f"it has {', '.join(map(repr, sorted(dataset.splits)))}"
        )


def predicted_category_ids(dataset: Dataset, predictions: PredictionSet) -> IntArray:
    """(C,) the dataset's category id of each of the predictions' labels."""
    ids = {c.name: c.category_id for c in dataset.label_map.categories}
    strange = [name for name in predictions.label_map.names if name not in ids]
    if strange:
        raise CategoryMismatch(
            f"the predictions {predictions.reference} have categories that {dataset.reference} has not: "
            f"{', '.join(strange[:10])}{' ...' if len(strange) > 10 else ''}; the dataset has "
            f"{', '.join(dataset.label_map.names[:10])}{' ...' if len(ids) > 10 else ''}. "
            "Evaluate against the dataset whose classes the model was trained on"
        )
    return np.array([ids[name] for name in predictions.label_map.names], np.int64)
