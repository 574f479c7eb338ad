"""Evaluation by shards that remembers: what was matched once is not matched again.

A unit is an image shard's label files: the truth's and the predictions'. Its counts are kept under a name that follows
from the files' names, which follow from their content, and from everything else that changes a match. So a second
evaluation, of a new version too, reads and matches only the units of which a file is another one; the rest is read
from the cache. The cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from pipelines.metrics.coco import CocoMetrics, metrics_of
from pipelines.metrics.counting import Counts, count_columns, merge_counts
from pipelines.metrics.pairing import predicted_category_ids
from pipelines.metrics.reading import found_of, read_columns, read_label_files, truth_of
from pipelines.metrics.settings import MatchSettings
from pipelines.predictions import PredictionSet
from pipelines.records import IntArray
from pipelines.shards import ShardRef
from pipelines.storage import Store
from pipelines.versions import Dataset

FORMAT = 2
FOLDER = "_matches"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationUnit:
    """Label files that hold the same images; small and picklable, for workers."""

    truths: tuple[ShardRef, ...]
    predictions: tuple[ShardRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitCounts:
    """A unit's counts, by which units come together: their images' COCO ids, of all units, decide between equal scores.

    Attributes:
        coco_image_ids: (I,) int64, of ``counts.image_ids``.
        counts: ``image_numbers`` are places in the unit, from 1, int32.
    """

    coco_image_ids: IntArray
    counts: Counts


Count = Callable[[Sequence[EvaluationUnit]], Iterable[tuple[int, UnitCounts]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incremental:
    """Metrics, and how many units were matched and how many were known."""

    metrics: CocoMetrics
    matched: int
    known: int


def evaluate_incrementally(
    dataset: Dataset,
    predictions: PredictionSet,
    splits: Collection[str] | None = None,
    *,
    settings: MatchSettings | None = None,
    cache_uri: str | None = None,
    cached: bool = True,
    count: Count | None = None,
    threads: int = 1,
) -> Incremental:
    """COCO's numbers, as ``evaluate`` gives them, of sets at rest.

    Args:
        dataset, predictions: opened.
        splits: only images of these.
        settings: COCO's for boxes where None.
        cache_uri: a folder for counts; ``_matches`` in the dataset where None.
        cached: False reads and writes no cache.
        count: gets the units to match and gives each one's place among them with its counts, in any order; None
            matches them here, one after the other.
        threads: that share the classes at the end.
    Raises:
        ValueError: no labelled image in the splits; see also ``reading.read_columns``.
    """
    settings = settings or MatchSettings()
    units = evaluation_units(dataset, predictions)
    parts: list[UnitCounts | None] = [None] * len(units)
    if cached:
        store = Store.open(cache_uri) if cache_uri is not None else Store.open(dataset.uri).sub(FOLDER)
        names = [f"{unit_key(unit, dataset, predictions, splits, settings)}.npz" for unit in units]
        parts = [_load(store, name) for name in names]
    missing = [number for number, part in enumerate(parts) if part is None]
    if count is None:
        count = _Here(dataset=dataset, predictions=predictions, splits=splits, settings=settings)
    for place, part in count([units[number] for number in missing]):
        parts[missing[place]] = part
        if cached:
            store.write_bytes(names[missing[place]], _dumped(part))
    counts = merge_units([part for part in parts if part is not None])
    if not counts.image_ids:
        where = f" in split {', '.join(sorted(splits))}" if splits else ""
        raise ValueError(f"{dataset.reference} has no labelled image{where}: there is nothing to measure against")
    metrics = metrics_of(counts, dataset.label_map, settings, threads=threads)
    return Incremental(metrics=metrics, matched=len(missing), known=len(units) - len(missing))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """Matches units in this process."""

    dataset: Dataset
    predictions: PredictionSet
    splits: Collection[str] | None
    settings: MatchSettings

    def __call__(self, units: Sequence[EvaluationUnit]) -> Iterator[tuple[int, UnitCounts]]:
        for place, unit in enumerate(units):
            yield place, count_unit(unit, self.dataset, self.predictions, self.splits, self.settings)


def evaluation_units(dataset: Dataset, predictions: PredictionSet) -> list[EvaluationUnit]:
    """One an image shard; a single one where the predictions were made on other shards than the truth names now."""
    by_path: dict[str, tuple[list[ShardRef], list[ShardRef]]] = {s.image_path: ([], []) for s in dataset.shards}
    for shard in dataset.shards:
        by_path[shard.image_path][0].append(shard)
    for shard in predictions.labels.shards:
        if shard.image_path not in by_path or predictions.is_archive:
            return [EvaluationUnit(truths=dataset.shards, predictions=predictions.labels.shards)]
        by_path[shard.image_path][1].append(shard)
    return [EvaluationUnit(truths=tuple(t), predictions=tuple(p)) for t, p in by_path.values()]


def count_unit(
    unit: EvaluationUnit,
    dataset: Dataset,
    predictions: PredictionSet,
    splits: Collection[str] | None,
    settings: MatchSettings,
) -> UnitCounts:
    """Read and match one unit; what a worker does."""
    masks = settings.iou_type == "segm"
    numbers = read_label_files(unit.truths, splits, masks=masks, scored=False)
    if settings.iou_type == "keypoints" and len(numbers.image_ids):
        own = replace(dataset, shards=unit.truths)
        guesses = replace(predictions, labels=replace(predictions.labels, shards=unit.predictions))
        truth, found = read_columns(own, guesses, splits, iou_type="keypoints")
    else:
        truth = truth_of(numbers, dataset.label_map)
        given = read_label_files(unit.predictions, masks=masks, scored=True)
        new_ids = predicted_category_ids(dataset, predictions)
        found = found_of(given, truth, predictions.label_map, dataset.label_map, new_ids)
    ids = dict(zip(numbers.image_ids.to_pylist(), numbers.coco_image_ids.tolist(), strict=True))
    counts = count_columns(truth, found, dataset.label_map, settings)
    return UnitCounts(
        coco_image_ids=np.array([ids[name] for name in truth.image_ids], np.int64),
        counts=replace(counts, image_numbers=counts.image_numbers.astype(np.int32)),
    )


def merge_units(parts: Sequence[UnitCounts]) -> Counts:
    """All images in their order: by COCO image id, of equal ones by name.

    Raises:
        ValueError: an image in two units.
    """
    names = np.array([name for part in parts for name in part.counts.image_ids], object)
    order = np.lexsort((names, np.concatenate([np.zeros(0, np.int64), *(part.coco_image_ids for part in parts)])))
    numbers = np.empty(len(names), np.int32)
    numbers[order] = np.arange(1, len(names) + 1)
    starts = np.cumsum([0, *(len(part.coco_image_ids) for part in parts)])
    return merge_counts(
        [
            replace(part.counts, image_numbers=numbers[start + part.counts.image_numbers - 1])
            for part, start in zip(parts, starts[:-1], strict=True)
        ]
    )


def unit_key(
    unit: EvaluationUnit,
    dataset: Dataset,
    predictions: PredictionSet,
    splits: Collection[str] | None,
    settings: MatchSettings,
) -> str:
    """Of everything that the counts of a unit follow from."""
    made_of = {
        "format": FORMAT,
        "settings": settings.digest,
        "categories": [dataset.label_map.digest, predictions.label_map.digest],
        "splits": None if splits is None else sorted(splits),
        # Names end with a digest of the content; the folder is the label set's and says nothing.
        "truths": [shard.label_path.rpartition("/")[2] for shard in unit.truths],
        "predictions": [shard.label_path.rpartition("/")[2] for shard in unit.predictions],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _dumped(part: UnitCounts) -> bytes:
    arrays = {field.name: getattr(part.counts, field.name) for field in fields(Counts) if field.name != "image_ids"}
    names = json.dumps(part.counts.image_ids).encode()
    sink = io.BytesIO()
    np.savez_compressed(
        sink, coco_image_ids=part.coco_image_ids, image_ids=np.frombuffer(names, np.uint8), allow_pickle=False, **arrays
    )
    return sink.getvalue()


def _load(store: Store, name: str) -> UnitCounts | None:
    """None where there is none, or one that was cut: it is made anew."""
    try:
        with np.load(io.BytesIO(store.read_bytes(name)), allow_pickle=False) as arrays:
            given = {field.name: arrays[field.name] for field in fields(Counts) if field.name != "image_ids"}
            names = tuple(json.loads(arrays["image_ids"].tobytes()))
            return UnitCounts(coco_image_ids=arrays["coco_image_ids"], counts=Counts(image_ids=names, **given))
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, KeyError, ValueError):
        return None
