"""The tasks of a labelling run: how they are cut and kept, and what a worker makes of one.

Of a dataset the plan says which rows of which label file, no more: the commit tells how many rows each file has, so
that planning reads none of them, and a worker reads the one that it needs. Images that lie elsewhere are in the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.in_order import in_order
from pipelines.jobs import Job, Plan
from pipelines.shard_paths import image_path, shard_stem
from pipelines.shards import CorruptShard, ShardRef, read_label_columns
from pipelines.storage import Store, redact
from pipelines.versions import Dataset
from workers.label_job import LabelJob
from workers.label_listing import LISTING, LabelInput
from workers.label_plan import LabelPlan

_LABEL_COLUMNS = ["image_id", "row", "row_group", "split", "coco_image_id", "width", "height"]
TASK = pa.schema(
    [
        ("image_id", pa.string()),
        ("row", pa.int32()),  # in the image shard, or in the listing
        ("row_group", pa.int32()),
        ("split", pa.string()),
        ("coco_image_id", pa.int64()),
        ("width", pa.int32()),  # 0: not known before the image is read
        ("height", pa.int32()),
        ("image_path", pa.string()),  # of the shard; null where images lie elsewhere
        ("uri", pa.string()),  # these six as in ``LISTING``; null in a dataset
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("method", pa.int32()),
    ]
)
PART = pa.schema(
    [
        ("label_path", pa.string()),  # relative to the dataset
        ("first", pa.int32()),  # of its images that are labelled, in the shard's order
        ("count", pa.int32()),
    ]
)


def save_tasks(job: Job, source: LabelInput, plan: LabelPlan, facts: Mapping[str, Any]) -> Plan:
    """Cut the input into tasks and write them down.

    Args:
        facts: JSON-ready, for whoever looks into ``_jobs``.
    Raises:
        ValueError: the dataset's label files and the commit that names them disagree.
    """
    if source.dataset is None:
        return job.save_plan(listed_tasks(source, plan), TASK, facts)
    parts = dataset_parts(source.dataset, plan.settings["splits"], plan.task_images)
    if int(np.asarray(parts["count"]).sum()) != source.num_images:
        raise ValueError(
            f"the commit of {source.reference} says {source.num_images} images, of its label files "
            f"{int(np.asarray(parts['count']).sum())}; find out with `boxmill verify {redact(source.uri)}`"
        )
    return job.save_rows(parts, facts)


def dataset_parts(dataset: Dataset, splits: Sequence[str] | None, task_images: int) -> pa.Table:
    """The tasks in order, one row of ``PART`` each; only shards that may be of several splits are looked into."""
    rows = [shard.rows for shard in dataset.shards] if splits is None else _rows_of(dataset, splits)
    counts = np.asarray(rows, np.int64)
    pieces = -(-counts // task_images)
    shards = np.repeat(np.arange(len(counts)), pieces)
    before = np.cumsum(pieces) - pieces  # tasks of the shards in front
    first = (np.arange(len(shards)) - before[shards]) * task_images
    columns = {
        "label_path": pa.array([shard.label_path for shard in dataset.shards], pa.string()).take(pa.array(shards)),
        "first": first.astype(np.int32),
        "count": np.minimum(task_images, counts[shards] - first).astype(np.int32),
    }
    return pa.table(columns, schema=PART)


def _rows_of(dataset: Dataset, splits: Sequence[str]) -> list[int]:
    """Images of some splits in each shard."""
    count = partial(_count_rows, splits=splits)
    if Store.open(dataset.uri).is_local:  # files of some kilobytes: handing them to threads costs more than it saves
        return [count(shard) for shard in dataset.shards]
    return list(in_order(count, dataset.shards))


def _count_rows(shard: ShardRef, splits: Sequence[str]) -> int:
    if shard.split is not None:  # told by the commit
        return shard.rows if shard.split in splits else 0
    rows = read_label_columns(shard, ["split"])
    return int(pc.sum(pc.is_in(rows["split"], value_set=pa.array(splits, pa.string()))).as_py() or 0)


def listed_tasks(source: LabelInput, plan: LabelPlan) -> Iterator[pa.Table]:
    """The tasks of images that lie elsewhere in order, one table of ``TASK`` each."""
    assert source.listing is not None, "what is no dataset is listed"
    for first in range(0, source.listing.num_rows, plan.task_images):
        yield listed_task(source.listing.slice(first, plan.task_images), first)


def planned_images(job: Job) -> list[int]:
    """How many images each task has."""
    counts = job.read_column("count") if job.has_column("count") else job.task_rows()
    return [int(count) for count in counts]


def read_task(label_job: LabelJob, job: Job, task_id: int) -> pa.Table:
    """The images of a task, a table of ``TASK``.

    Raises:
        CorruptShard: the label file is damaged, or is not the one that was planned.
    """
    planned = job.read_task(task_id)
    if "label_path" not in planned.column_names:
        return planned
    part = planned.to_pylist()[0]
    path = part["label_path"]
    images = image_path(shard_stem(path))
    shard = ShardRef(uri=label_job.input_uri, label_set=label_job.label_set, image_path=images, label_path=path, rows=0)
    rows = read_label_columns(shard, _LABEL_COLUMNS)
    if label_job.splits is not None:
        rows = rows.filter(pc.field("split").isin(list(label_job.splits)))
    rows = rows.sort_by("row").slice(part["first"], part["count"])
    if rows.num_rows != part["count"]:
        raise CorruptShard(
            f"{path} in {redact(label_job.input_uri)} lacks rows of task {task_id}: planned were {part['count']} from "
            f"{part['first']}, there are {rows.num_rows}; restore the file from a copy"
        )
    return dataset_task(rows, images)


def dataset_task(rows: pa.Table, shard_path: str) -> pa.Table:
    """A task of rows of one shard, ascending."""
    columns = {name: rows[name] for name in _LABEL_COLUMNS}
    columns["image_path"] = pa.array([shard_path] * rows.num_rows, pa.string())
    return pa.table([_column(columns, f, rows.num_rows) for f in TASK], schema=TASK)


def listed_task(images: pa.Table, first: int) -> pa.Table:
    """A task of images that follow each other in a listing, ``first`` being the place of its first."""
    count = images.num_rows
    nothing = pa.array(np.zeros(count, np.int32))
    columns = {
        "image_id": images["name"],
        "row": pa.array(np.arange(first, first + count, dtype=np.int32)),
        "row_group": nothing,
        "split": pa.array([""] * count, pa.string()),
        "coco_image_id": pa.array(np.arange(first + 1, first + count + 1, dtype=np.int64)),
        "width": nothing,
        "height": nothing,
        **{name: images[name] for name in LISTING.names if name != "name"},
    }
    return pa.table([_column(columns, f, count) for f in TASK], schema=TASK)


def _column(columns: Mapping[str, Any], field: pa.Field, count: int) -> Any:
    return columns[field.name] if field.name in columns else pa.nulls(count, field.type)
