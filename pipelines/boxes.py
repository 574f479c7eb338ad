"""Boxes and categories of a whole version as plain arrays: what statistics, samplers and anchors need, and fast."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.records import FloatArray, IntArray
from pipelines.shards import ShardRef, read_label_columns
from pipelines.storage import Store
from pipelines.versions import Dataset

_COLUMNS = ("image_id", "objects.bbox", "objects.category_id")
_TOP = ["image_id", "objects"]
_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxTable:
    """The objects of I images, N in all, in the order of the version.

    Attributes:
        image_ids: I names; images that nobody has looked at are left out.
        offsets: (I + 1,) int64; the objects of image i are ``offsets[i]:offsets[i + 1]``.
        boxes_xywh: (N, 4) float64, pixels of the stored frame.
        category_ids: (N,) int64, the source's own.
    """

    image_ids: pa.Array
    offsets: IntArray
    boxes_xywh: FloatArray
    category_ids: IntArray


def read_boxes(dataset: Dataset, splits: tuple[str, ...] | None = None) -> BoxTable:
    """Read them from the label files; nothing else is decoded, and no image file is touched."""

    def read(shard: ShardRef) -> pa.Table:
        table = read_label_columns(shard, _COLUMNS if splits is None else (*_COLUMNS, "split"))
        if table["objects"].null_count:
            table = table.filter(pc.field("objects").is_valid())
        return table if splits is None else table.filter(pc.field("split").isin(list(splits))).select(_TOP)

    if Store.open(dataset.uri).is_local:  # other threads would only cost memory of their own
        table = pa.concat_tables(map(read, dataset.shards)).combine_chunks()
    else:
        with ThreadPoolExecutor(_READERS) as pool:
            table = pa.concat_tables(pool.map(read, dataset.shards)).combine_chunks()
    objects = pa.chunked_array(table["objects"]).combine_chunks() if table.num_rows else None
    if objects is None:
        return BoxTable(
            image_ids=pa.array([], pa.string()),
            offsets=np.zeros(1, np.int64),
            boxes_xywh=np.zeros((0, 4)),
            category_ids=np.zeros(0, np.int64),
        )
    boxes, categories = pc.struct_field(objects, "bbox"), pc.struct_field(objects, "category_id")
    counts = pc.list_value_length(categories).to_numpy(zero_copy_only=False)
    return BoxTable(
        image_ids=table["image_id"].combine_chunks(),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=boxes.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4),
        category_ids=categories.flatten().to_numpy(zero_copy_only=False),
    )
