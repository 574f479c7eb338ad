"""Truth and predictions from label files straight into columns: no object is made of any row.

The order of images is that of ``pairing``: by COCO image id, then by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics.columns import ObjectColumns, detection_columns, truth_columns
from pipelines.metrics.pairing import pair, predicted_category_ids
from pipelines.metrics.rles import BrokenMask, RleDict, mask_areas, to_rle
from pipelines.metrics.settings import IouType
from pipelines.predictions import PredictionSet
from pipelines.records import FloatArray, IntArray, LabelMap
from pipelines.schema import flat_polygons, flat_rles
from pipelines.shards import ShardRef, read_label_columns
from pipelines.versions import Dataset

_READERS = 4
_BOXES = ("id", "bbox", "category_id", "area", "iscrowd", "score")
_MASKS = ("polygons", "rle")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelColumns:
    """Labelled images of some shards, N objects in all, in the order of the files.

    Attributes:
        image_ids: I names.
        coco_image_ids: (I,) int64.
        sizes: (I, 2) int64 height and width.
        offsets: (I + 1,) int64; the objects of image i are ``offsets[i]:offsets[i + 1]``.
        category_ids, ids: (N,) int64.
        boxes_xywh: (N, 4) float64.
        area, scores: (N,) float64, NaN where there is none.
        iscrowd: (N,) bool.
        masks: N compressed RLEs, None for a row without one; None as a whole where none were asked for.
    """

    image_ids: pa.Array
    coco_image_ids: IntArray
    sizes: IntArray
    offsets: IntArray
    category_ids: IntArray
    ids: IntArray
    boxes_xywh: FloatArray
    area: FloatArray
    scores: FloatArray
    iscrowd: np.ndarray
    masks: tuple[RleDict, ...] | None


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
    given = read_label_files(dataset.shards, splits, masks=masks)
    truth = truth_of(given, dataset.label_map)
    found_columns = read_label_files(predictions.labels.shards, None, masks=masks)
    new_ids = predicted_category_ids(dataset, predictions)
    return truth, found_of(found_columns, truth, predictions.label_map, dataset.label_map, new_ids)


def read_label_files(
    shards: Sequence[ShardRef], splits: Collection[str] | None = None, *, masks: bool = False
) -> LabelColumns:
    """Labelled images of these shards; images that nobody has looked at, or that failed, are left out."""
    leaves = [f"objects.{name}" for name in (*_BOXES, *(_MASKS if masks else ()))]
    wanted = ["image_id", "coco_image_id", "height", "width", "split", *leaves]

    def read(shard: ShardRef) -> pa.Table:
        table = read_label_columns(shard, wanted)
        if table["objects"].null_count:
            table = table.filter(pc.field("objects").is_valid())
        return table if splits is None else table.filter(pc.field("split").isin(list(splits)))

    with ThreadPoolExecutor(_READERS) as pool:
        parts = [_columns(table, masks) for table in pool.map(read, shards) if table.num_rows]
    return _joined(parts, masks)


def truth_of(given: LabelColumns, label_map: LabelMap) -> ObjectColumns:
    """Columns in the order of images."""
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
    area = columns.boxes_xywh[:, 2] * columns.boxes_xywh[:, 3] if columns.masks is None else mask_areas(columns.masks)
    return replace(columns, area=area, image_numbers=truth.image_numbers)


def _objects(
    given: LabelColumns,
    order: IntArray,
    places: IntArray,
    names: tuple[str, ...],
    to_labels: Callable[[IntArray], IntArray],
) -> ObjectColumns:
    """Objects of the images ``order``, whose numbers among ``names`` are ``places``."""
    counts = np.diff(given.offsets)[order]
    rows: IntArray | slice = slice(0, int(given.offsets[-1]))
    if len(order) != len(given.coco_image_ids) or (np.diff(order) != 1).any():
        begins = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) + np.repeat(given.offsets[order] - begins, counts)
    images = np.repeat(places, counts)
    boxes, ids, iscrowd = given.boxes_xywh[rows], given.ids[rows], given.iscrowd[rows]
    masks = None
    if given.masks is not None:
        masks = given.masks if isinstance(rows, slice) else tuple(given.masks[at] for at in rows)
    wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if len(wrong):
        raise ValueError(f"object {ids[wrong[0]]} of image {names[images[wrong[0]]]!r} has a box that is not finite")
    area = given.area[rows]
    unknown = np.flatnonzero(np.isnan(area))
    area[unknown] = boxes[unknown, 2] * boxes[unknown, 3]
    if masks is not None and len(unknown):
        area[unknown] = mask_areas([masks[at] for at in unknown])
    return ObjectColumns(
        image_ids=names,
        image_numbers=np.arange(1, len(names) + 1),
        images=images,
        ids=ids,
        labels=_labels(given.category_ids[rows], to_labels),
        boxes_xywh=boxes,
        area=area,
        iscrowd=iscrowd,
        ignored=iscrowd,
        scores=given.scores[rows],
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


def _columns(table: pa.Table, masks: bool) -> LabelColumns:
    """Of one file."""
    table = table.combine_chunks()
    objects = pa.chunked_array(table["objects"]).combine_chunks()
    image_ids = pa.chunked_array(table["image_id"]).combine_chunks()
    sizes = np.column_stack([table[side].to_numpy() for side in ("height", "width")]).astype(np.int64)
    counts = pc.list_value_length(pc.struct_field(objects, "category_id")).to_numpy(zero_copy_only=False)
    flat = {name: pc.struct_field(objects, name).flatten() for name in _BOXES if name != "score"}
    boxes = flat["bbox"].flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    if len(boxes) != 4 * len(flat["bbox"]):
        raise ValueError("a bbox in the labels table has not 4 numbers; the file was not written by boxmill")
    scores = pc.struct_field(objects, "score")
    # Truth has no scores at all: a null list, which is nothing when flattened.
    flat_scores = scores.flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    if len(flat_scores) != len(boxes) // 4:
        scored = np.repeat(scores.is_valid().to_numpy(zero_copy_only=False), counts.astype(np.int64))
        spread = np.full(len(scored), np.nan)
        spread[scored] = flat_scores
        flat_scores = spread
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return LabelColumns(
        image_ids=image_ids,
        coco_image_ids=table["coco_image_id"].to_numpy(),
        sizes=sizes,
        offsets=offsets,
        category_ids=flat["category_id"].to_numpy(zero_copy_only=False),
        ids=flat["id"].to_numpy(zero_copy_only=False),
        boxes_xywh=boxes.reshape(-1, 4),
        area=np.array(flat["area"].fill_null(np.nan).to_numpy(zero_copy_only=False)),
        scores=flat_scores,
        iscrowd=flat["iscrowd"].fill_null(False).to_numpy(zero_copy_only=False),
        masks=_masks(objects, image_ids, sizes, offsets) if masks else None,
    )


def _masks(objects: pa.StructArray, image_ids: pa.Array, sizes: IntArray, offsets: IntArray) -> tuple[RleDict, ...]:
    """Compressed RLEs are taken as they are; what is a polygon or a list of runs is made one."""
    rles = pc.struct_field(objects, "rle").flatten()
    polygons = pc.struct_field(objects, "polygons").flatten()
    owners = np.repeat(np.arange(len(image_ids)), np.diff(offsets))
    texts = pc.struct_field(rles, "counts")
    ready = np.flatnonzero(pc.and_(rles.is_valid(), texts.is_valid()).to_numpy(zero_copy_only=False))
    found: list[RleDict | None] = [None] * len(rles)
    picked = rles.take(pa.array(ready))
    strings = pc.struct_field(picked, "counts").cast(pa.binary()).to_pylist()
    own = pc.struct_field(picked, "size").flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)

    def wrong(at: int, why: str) -> ValueError:
        return ValueError(f"a mask of image {image_ids[int(owners[at])].as_py()!r}: {why}")

    for row in np.flatnonzero((own != sizes[owners[ready]]).any(axis=1))[:1]:
        height, width = sizes[owners[ready[row]]]
        said = f"its RLE is {own[row][0]} x {own[row][1]}, the image is {height} x {width} (height x width)"
        raise wrong(int(ready[row]), said)
    made = [{"size": size, "counts": text} for size, text in zip(own.tolist(), strings, strict=True)]
    try:
        mask_areas(made)
    except BrokenMask as error:
        raise wrong(int(ready[error.at]), str(error)) from None
    for at, mask in zip(ready.tolist(), made, strict=True):
        found[at] = mask
    rest = np.setdiff1d(np.arange(len(rles)), ready)
    if len(rest):
        others = flat_polygons(polygons.take(pa.array(rest))), flat_rles(rles.take(pa.array(rest)))
        for at, shape, rle in zip(rest.tolist(), *others, strict=True):
            height, width = sizes[owners[at]].tolist()
            try:
                found[at] = to_rle(shape, rle, (height, width))
            except ValueError as error:
                raise wrong(at, str(error)) from None
    return tuple(mask for mask in found if mask is not None)


def _joined(parts: list[LabelColumns], masks: bool) -> LabelColumns:
    def column(name: str, nothing: np.ndarray) -> np.ndarray:
        return np.concatenate([nothing, *(getattr(part, name) for part in parts)])

    ends = np.cumsum([0, *(int(part.offsets[-1]) for part in parts)])
    whole, number = np.zeros(0, np.int64), np.zeros(0)
    return LabelColumns(
        image_ids=pa.concat_arrays([part.image_ids for part in parts]) if parts else pa.array([], pa.string()),
        coco_image_ids=column("coco_image_ids", whole),
        sizes=column("sizes", np.zeros((0, 2), np.int64)),
        offsets=np.concatenate([[0], *(p.offsets[1:] + end for p, end in zip(parts, ends[:-1], strict=True))]).astype(
            np.int64
        ),
        category_ids=column("category_ids", whole),
        ids=column("ids", whole),
        boxes_xywh=column("boxes_xywh", np.zeros((0, 4))),
        area=column("area", number),
        scores=column("scores", number),
        iscrowd=column("iscrowd", np.zeros(0, np.bool_)),
        masks=tuple(mask for part in parts for mask in part.masks or ()) if masks else None,
    )


def _check_unique(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"image {name!r} is in the {what} twice; image ids must be unique")
        seen.add(name)
