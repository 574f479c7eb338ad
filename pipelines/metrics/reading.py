"""Truth and predictions from label files straight into columns: no object is made of any row.

The order of images is that of ``pairing``: by COCO image id, then by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.metrics.columns import ObjectColumns, detection_columns, truth_columns
from pipelines.metrics.pairing import pair, predicted_category_ids
from pipelines.metrics.rles import BrokenMask, StoredMasks, mask_areas, to_rle
from pipelines.metrics.settings import IouType
from pipelines.predictions import PredictionSet
from pipelines.records import FloatArray, IntArray, LabelMap
from pipelines.schema import flat_polygons, flat_rles
from pipelines.shards import ShardRef, open_label_files
from pipelines.versions import Dataset

_NUMBERS = {"category_id": np.int64, "id": np.int64, "iscrowd": np.bool_}
_MASKS = ("polygons", "rle")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelColumns:
    """Labelled images of some shards, N objects in all, in the order of the files.

    Attributes:
        image_ids: I names.
        coco_image_ids: (I,) int64.
        counts: (I,) int64, objects of each image.
        category_ids, ids: (N,) int64.
        boxes_xywh: (N, 4) float64.
        area: (N,) float64 square pixels; of truth what the source says, NaN where it says nothing; of predictions
            that of the box, or of the mask where masks were asked for.
        scores: (N,) float64, NaN where there is none; of truth none.
        iscrowd: (N,) bool.
        masks: N compressed RLEs; None where none were asked for.
        mask_areas: (N,) float64; of none where none were asked for.
    """

    image_ids: pa.Array
    coco_image_ids: IntArray
    counts: IntArray
    category_ids: IntArray
    ids: IntArray
    boxes_xywh: FloatArray
    area: FloatArray
    scores: FloatArray
    iscrowd: np.ndarray
    masks: StoredMasks | None
    mask_areas: FloatArray


def read_columns(
    dataset: Dataset, predictions: PredictionSet, splits: Collection[str] | None = None, *, iou_type: IouType = "bbox"
) -> tuple[ObjectColumns, ObjectColumns]:
    """Truth and detections of the images that are labelled; detections on other images are left out (see ``pair``).

    Raises:
        CategoryMismatch: the predictions have a category that the dataset has not, by name.
        ValueError: a box or score that is not finite, a mask that is missing or of another size than its image.
    """
    if iou_type == "keypoints":  # of which each object may have another number
        images = pair(dataset, predictions, splits).images
        truth = truth_columns([(i.image_id, i.truth) for i in images], dataset.label_map, iou_type=iou_type)
        found = [(i.image_id, i.found) for i in images]
        return truth, detection_columns(found, dataset.label_map, truth, iou_type=iou_type)
    masks = iou_type == "segm"
    given = read_label_files(dataset.shards, splits, masks=masks, scored=False)
    truth = truth_of(given, dataset.label_map)
    found_columns = read_label_files(predictions.labels.shards, masks=masks, scored=True)
    new_ids = predicted_category_ids(dataset, predictions)
    return truth, found_of(found_columns, truth, predictions.label_map, dataset.label_map, new_ids)


def read_label_files(
    shards: Sequence[ShardRef], splits: Collection[str] | None = None, *, masks: bool, scored: bool
) -> LabelColumns:
    """Labelled images of these shards; images that nobody has looked at, or that failed, are left out.

    Args:
        shards: in any order; those of the lower COCO image ids come first.
        splits: only images of these.
        masks: read them too.
        scored: predictions, which have scores, and areas that follow from what was found.
    """
    values = ("score",) if scored else ("area",)
    leaves = [f"objects.{name}" for name in ("bbox", *_NUMBERS, *values, *(_MASKS if masks else ()))]
    wanted = ["image_id", "coco_image_id", "height", "width", *(["split"] if splits is not None else []), *leaves]
    # Where shards lie as their images do, no object has to be moved afterwards.
    files = sorted(open_label_files(shards), key=_first_image)
    sink = _Sink(sum(_most_objects(file) for file in files), values)
    for file in files:
        table = file.read(wanted, use_threads=False)
        if table["objects"].null_count:
            table = table.filter(pc.field("objects").is_valid())
        if splits is not None:
            table = table.filter(pc.field("split").isin(list(splits)))
        if table.num_rows:
            sink.add(table.combine_chunks(), masks)
    return sink.columns(masks)


def truth_of(given: LabelColumns, label_map: LabelMap) -> ObjectColumns:
    """Columns in the order of images."""
    order = np.arange(len(given.coco_image_ids))
    if (np.diff(given.coco_image_ids) <= 0).any():
        order = np.lexsort((np.array(given.image_ids.to_pylist(), object), given.coco_image_ids))
    names = given.image_ids.take(pa.array(order)).to_pylist()
    _check_unique(names, "truth")
    columns = _objects(given, order, np.arange(len(order)), tuple(names), label_map.to_labels)
    return replace(columns, scores=np.zeros(len(columns)))


def found_of(
    given: LabelColumns, truth: ObjectColumns, own: LabelMap, label_map: LabelMap, new_ids: IntArray
) -> ObjectColumns:
    """Columns in the order of the truth's images.

    Args:
        given: predictions.
        truth: of the images that are measured.
        own, label_map: of the predictions and of the truth.
        new_ids: (C,) the truth's category id of each of ``own``'s labels.
    """
    names = pa.array(truth.image_ids, pa.string())
    places = pc.index_in(given.image_ids, names).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.flatnonzero(places >= 0)
    order = order[np.argsort(places[order], kind="stable")]
    twice = np.flatnonzero(np.diff(places[order]) == 0)
    if len(twice):
        name = truth.image_ids[places[order[twice[0]]]]
        raise ValueError(f"image {name!r} is in the detections twice; image ids must be unique")
    to_labels = lambda ids: label_map.to_labels(new_ids[own.to_labels(ids)])  # noqa: E731
    columns = _objects(given, order, places[order], truth.image_ids, to_labels)
    missing = np.flatnonzero(~np.isfinite(columns.scores))
    if len(missing):
        name = truth.image_ids[columns.images[missing[0]]]
        raise ValueError(f"detections on image {name!r} have no finite scores; is this a truth label set?")
    return replace(columns, image_numbers=truth.image_numbers)


def _objects(
    given: LabelColumns,
    order: IntArray,
    places: IntArray,
    names: tuple[str, ...],
    to_labels: Callable[[IntArray], IntArray],
) -> ObjectColumns:
    """Objects of the images ``order``, whose numbers among ``names`` are ``places``."""
    counts = given.counts[order]
    columns = ("category_ids", "ids", "boxes_xywh", "area", "scores", "iscrowd", "mask_areas")
    of = {name: getattr(given, name) for name in columns}
    masks = given.masks
    if len(order) != len(given.counts) or (np.diff(order) != 1).any():
        begins = np.cumsum(given.counts) - given.counts
        rows = np.arange(int(counts.sum())) + np.repeat(begins[order] - (np.cumsum(counts) - counts), counts)
        of = {name: values[rows] if len(values) else values for name, values in of.items()}
        masks = None if masks is None else masks.take(rows)
    images = np.repeat(places, counts)
    if not np.isfinite(of["boxes_xywh"]).all():
        wrong = int(np.flatnonzero(~np.isfinite(of["boxes_xywh"]).all(axis=1))[0])
        raise ValueError(f"object {of['ids'][wrong]} of image {names[images[wrong]]!r} has a box that is not finite")
    area = of["area"]
    unknown = np.flatnonzero(np.isnan(area))
    if len(unknown):
        boxes = of["boxes_xywh"][unknown]
        area[unknown] = boxes[:, 2] * boxes[:, 3] if masks is None else of["mask_areas"][unknown]
    return ObjectColumns(
        image_ids=names,
        image_numbers=np.arange(1, len(names) + 1),
        images=images,
        ids=of["ids"],
        labels=_labels(of["category_ids"], to_labels),
        boxes_xywh=of["boxes_xywh"],
        area=area,
        iscrowd=of["iscrowd"],
        ignored=of["iscrowd"],
        scores=of["scores"],
        masks=masks,
    )


def _labels(category_ids: IntArray, to_labels: Callable[[IntArray], IntArray]) -> IntArray:
    """Each id is looked up once."""
    if not len(category_ids):
        return np.zeros(0, np.int64)
    low, high = int(category_ids.min()), int(category_ids.max())
    if high - low < 2**16:
        known = np.flatnonzero(np.bincount(category_ids - low))
        table = np.zeros(high - low + 1, np.int64)
        table[known] = to_labels(known + low)
        return table[category_ids - low]
    known, inverse = np.unique(category_ids, return_inverse=True)
    return to_labels(known)[inverse]


def _first_image(file: pq.ParquetFile) -> int:
    """The least COCO image id, where the file tells it."""
    for at in range(file.metadata.num_columns if file.metadata.num_row_groups else 0):
        column = file.metadata.row_group(0).column(at)
        if column.path_in_schema == "coco_image_id" and column.statistics and column.statistics.has_min_max:
            return int(column.statistics.min)
    return 0


def _most_objects(file: pq.ParquetFile) -> int:
    """At least as many as the file holds: an empty list counts as one value."""
    groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
    columns = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("objects.category_id."))


class _Sink:
    """Takes file after file into arrays that are made once."""

    def __init__(self, most: int, values: tuple[str, ...]) -> None:
        self._arrays: dict[str, np.ndarray] = {name: np.empty(most, kind) for name, kind in _NUMBERS.items()}
        self._arrays |= {name: np.empty(most) for name in values}
        self._boxes = np.empty((most, 4))
        self._values = values
        self._end = 0
        self._image_ids: list[pa.Array] = []
        self._numbers: list[IntArray] = []
        self._counts: list[IntArray] = []
        self._texts: list[pa.Array] = []
        self._sizes: list[IntArray] = []
        self._mask_areas: list[FloatArray] = []

    def add(self, table: pa.Table, masks: bool) -> None:
        objects = pa.chunked_array(table["objects"]).combine_chunks()
        counts = _numbers(pc.list_value_length(pc.struct_field(objects, "category_id"))).astype(np.int64)
        end = self._end + int(counts.sum())
        block = slice(self._end, end)
        for name in _NUMBERS:
            self._arrays[name][block] = _numbers(pc.struct_field(objects, name).flatten(), False)
        for name in self._values:
            self._arrays[name][block] = _floats(pc.struct_field(objects, name), counts)
        boxes = _numbers(pc.struct_field(objects, "bbox").flatten().flatten(), np.nan)
        if len(boxes) != 4 * (end - self._end):
            raise ValueError("a bbox in the labels table has not 4 numbers; the file was not written by boxmill")
        self._boxes[block] = boxes.reshape(-1, 4)
        image_ids = pa.chunked_array(table["image_id"]).combine_chunks()
        if masks:
            sizes = np.column_stack([table[side].to_numpy() for side in ("height", "width")]).astype(np.int64)
            stored, areas = _masks(objects, image_ids, np.repeat(sizes, counts, axis=0), counts)
            self._texts.append(stored)
            self._sizes.append(np.repeat(sizes, counts, axis=0))
            self._mask_areas.append(areas)
        self._image_ids.append(image_ids)
        self._numbers.append(table["coco_image_id"].to_numpy())
        self._counts.append(counts)
        self._end = end

    def columns(self, masks: bool) -> LabelColumns:
        whole = np.zeros(0, np.int64)
        boxes = self._boxes[: self._end]
        arrays = {name: values[: self._end] for name, values in self._arrays.items()}
        areas = np.concatenate([np.zeros(0), *self._mask_areas])
        found = areas if masks else boxes[:, 2] * boxes[:, 3]
        sizes = np.concatenate([np.zeros((0, 2), np.int64), *self._sizes])
        return LabelColumns(
            image_ids=pa.concat_arrays(self._image_ids) if self._image_ids else pa.array([], pa.string()),
            coco_image_ids=np.concatenate([whole, *self._numbers]),
            counts=np.concatenate([whole, *self._counts]),
            category_ids=arrays["category_id"],
            ids=arrays["id"],
            boxes_xywh=boxes,
            area=arrays.get("area", found),
            scores=arrays.get("score", np.broadcast_to(np.nan, self._end)),
            iscrowd=arrays["iscrowd"],
            masks=StoredMasks(texts=pa.chunked_array(self._texts, pa.binary()), sizes=sizes) if masks else None,
            mask_areas=areas,
        )


def _numbers(array: pa.Array, nothing: Any = 0) -> np.ndarray:
    """Without a copy where there is no null."""
    filled = array.fill_null(nothing) if array.null_count else array
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def _floats(lists: pa.ListArray, counts: IntArray) -> FloatArray:
    """One an object; truth has no scores at all: a null list, which is nothing when flattened."""
    flat = _numbers(lists.flatten(), np.nan)
    if len(flat) == counts.sum():
        return flat
    there = np.repeat(lists.is_valid().to_numpy(zero_copy_only=False), counts)
    spread = np.full(len(there), np.nan)
    spread[there] = flat
    return spread


def _masks(
    objects: pa.StructArray, image_ids: pa.Array, sizes: IntArray, counts: IntArray
) -> tuple[pa.Array, FloatArray]:
    """Compressed RLEs as binary, and their areas; what is a polygon or a list of runs is made one.

    Args:
        objects, image_ids, counts: of one file.
        sizes: (N, 2) of each object's image.
    """
    rles = pc.struct_field(objects, "rle").flatten()
    texts = pc.struct_field(rles, "counts").cast(pa.binary())
    compressed = pc.and_(rles.is_valid(), texts.is_valid()).to_numpy(zero_copy_only=False)
    ready, rest = np.flatnonzero(compressed), np.flatnonzero(~compressed)
    own = sizes.copy()
    own[ready] = pc.struct_field(rles, "size").filter(pa.array(compressed)).flatten().to_numpy().reshape(-1, 2)

    def wrong(at: int, why: str) -> ValueError:
        image = int(np.searchsorted(np.cumsum(counts), at, side="right"))
        return ValueError(f"a mask of image {image_ids[image].as_py()!r}: {why}")

    for at in np.flatnonzero((own != sizes).any(axis=1))[:1]:
        (height, width), (rows, columns) = sizes[at], own[at]
        raise wrong(int(at), f"its RLE is {rows} x {columns}, the image is {height} x {width} (height x width)")
    if len(rest):
        made: list[Any] = texts.to_pylist()
        polygons = flat_polygons(pc.struct_field(objects, "polygons").flatten().take(pa.array(rest)))
        for at, shape, rle in zip(rest.tolist(), polygons, flat_rles(rles.take(pa.array(rest))), strict=True):
            try:
                made[at] = to_rle(shape, rle, (int(sizes[at, 0]), int(sizes[at, 1])))["counts"]
            except ValueError as error:
                raise wrong(at, str(error)) from None
        texts = pa.array(made, pa.binary())
    try:
        areas = mask_areas(StoredMasks(texts=pa.chunked_array([texts]), sizes=sizes))
    except BrokenMask as error:
        raise wrong(error.at, str(error)) from None
    return texts, areas


def _check_unique(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"image {name!r} is in the {what} twice; image ids must be unique")
        seen.add(name)
