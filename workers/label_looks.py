"""What images look like before they are labelled: a pass over the input, in tasks with receipts like any other.

The hashes depend on the input alone, so that every model that labels it takes the same ones. Of a dataset they are
those that its shards keep under ``_hashes``, as ingest makes them; of images elsewhere one small file a task, below
``_jobs/<plan>/looks``.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.checks import BadImage, probe_image
from pipelines.in_order import in_order
from pipelines.jobs import Job, Receipt, make_plan_id
from pipelines.look_alikes import LOOKS
from pipelines.near_duplicates import hash_image, shard_hashes
from pipelines.shard_paths import index_path, shard_stem
from pipelines.shards import ShardFile, ShardRef, read_image_columns
from pipelines.storage import Store
from workers.exits import exit_within
from workers.label_attempts import FailedTask
from workers.label_job import LabelJob
from workers.label_listing import LabelInput
from workers.label_plan import LabelPlan, task_size
from workers.label_readers import RawImage, open_reader
from workers.label_tasks import listed_tasks, read_task

_WHOLE_SHARD = 1 << 30
_CHUNK = 16  # images that a thread reads in one go
_MADE = 1  # raised when the same image comes to look otherwise


def looks_plan(source: LabelInput, plan: LabelPlan) -> LabelPlan:
    """The pass over the input of a labelling plan: no model is in it."""
    listed = source.dataset is None
    return replace(
        plan,
        plan_id=make_plan_id(
            job="label-looks",
            made=_MADE,
            input={"kind": source.kind, "digest": source.digest, "uri": source.reference if listed else None},
            splits=plan.settings["splits"],
        ),
        # Hashes are kept by shard.
        task_images=task_size(source.num_images) if listed else _WHOLE_SHARD,
    )


def each_task(source: LabelInput, passed: LabelPlan, label_job: LabelJob) -> Iterator[pa.Table]:
    """Every image of the input, in order: tables of ``workers.label_tasks.TASK``, a few in memory at a time.

    Args:
        passed: ``looks_plan``, which is saved.
        label_job: of that plan.
    """
    if source.dataset is None:
        yield from listed_tasks(source, passed)
        return
    job = Job(passed.root, passed.plan_id)
    yield from in_order(partial(read_task, label_job, job), range(job.plan().num_tasks))


def each_looks(source: LabelInput, passed: LabelPlan, label_job: LabelJob) -> Iterator[tuple[pa.Table, pa.Table]]:
    """As ``each_task``, each with what its images look like (``LOOKS``); every task has its receipt."""
    job = Job(passed.root, passed.plan_id)
    numbers = range(job.plan().num_tasks)
    if source.dataset is None:
        yield from zip(listed_tasks(source, passed), in_order(partial(_listed_looks, job), numbers), strict=True)
        return

    def stored(number: int) -> tuple[pa.Table, pa.Table]:
        task = read_task(label_job, job, number)
        return task, _stored_looks(job, number, task)

    yield from in_order(stored, numbers)


def _listed_looks(job: Job, task_id: int) -> pa.Table:
    receipt = job.receipt(task_id)
    if not receipt.files:
        return _nothing_known(int(receipt.extra["rows"]))
    content = Store.open(job.dataset_uri).read_bytes(receipt.files[0].path)
    return pq.read_table(pa.BufferReader(content), schema=LOOKS)


def _stored_looks(job: Job, task_id: int, task: pa.Table) -> pa.Table:
    if job.receipt(task_id).extra.get("dead"):
        return _nothing_known(task.num_rows)
    shard = _shard(job.dataset_uri, task)
    hashes = shard_hashes(shard)
    index = Store.open(shard.uri).read_bytes(index_path(shard_stem(shard.image_path)))
    digests = pq.read_table(pa.BufferReader(index), columns=["sha256"])["sha256"]
    facts = read_image_columns(shard, ["format", "exif_orientation"])
    # What could not be decoded has no hashes, and gets nulls.
    there = pc.index_in(task["row"], value_set=hashes["row"].combine_chunks())
    columns = {
        "sha256": digests.take(task["row"]),
        **{name: hashes[name].take(there) for name in ("across", "down", "flat")},
        **{name: facts[name].take(task["row"]) for name in ("format", "exif_orientation")},
        **{name: task[name] for name in ("width", "height")},
        **dict.fromkeys(("image_offset", "image_length"), pa.nulls(task.num_rows)),
    }
    return pa.table([columns[f.name].cast(f.type) for f in LOOKS], schema=LOOKS)


def _nothing_known(rows: int) -> pa.Table:
    return pa.table([pa.nulls(rows, f.type) for f in LOOKS], schema=LOOKS)


def _shard(uri: str, task: pa.Table) -> ShardRef:
    path = task["image_path"][0].as_py()
    return ShardRef(uri=uri, label_set="", image_path=path, label_path="", rows=task.num_rows)


def attempted(job: Job, board: Any, limit: int, task_id: int, work: Callable[[int], Receipt]) -> dict[str, Any]:
    """Do a task unless it is done, and put its receipt down.

    Args:
        board: ``workers.label_attempts.AttemptBoard``.
        limit: of attempts; after that many nobody was left to tell how they ended.
        work: from the number of the attempt to the receipt.
    Returns:
        What ``workers.label_run.Finished`` says; a task that fails is told, not raised.
    """
    import ray

    nothing: dict[str, Any] = {"images": 0, "failed": 0, "bytes": 0, "model_seconds": 0.0, "receipts": []}
    begun = ray.get(board.begun.remote(task_id))
    receipt = _receipt(job, task_id) if begun else None
    if receipt is None and begun >= limit:
        died = {"error_class": "WorkerDied", "error": "the worker died each time, or its node"}
        return {"task": task_id, "attempts": begun, **died, **nothing}
    if receipt is None:
        attempt = ray.get(board.begin.remote(task_id))
        try:
            receipt = work(attempt)
            receipt = receipt if job.finish(task_id, receipt) else job.receipt(task_id)
        except Exception as error:  # one task that cannot be done must not end the others' run
            told = {"error_class": type(error).__name__, "error": str(error) or type(error).__name__}
            return {"task": task_id, "attempts": attempt, **told, **nothing}
    extra = receipt.extra
    # Somebody else may have given up a task of copying: as one of labelling, whose receipt tells rows by its files.
    rows = extra["rows"] if "rows" in extra else sum(file.rows for file in receipt.files)
    counts = {"images": int(rows), "failed": int(extra.get("failed", 0))}
    done = {"task": task_id, "attempts": int(extra.get("attempts", 1)), "error_class": "", "error": ""}
    return {**nothing, **done, **counts, "receipts": [json.dumps(receipt.to_json(), ensure_ascii=False)]}


def _receipt(job: Job, task_id: int) -> Receipt | None:
    try:
        return job.receipt(task_id)
    except FileNotFoundError:
        return None


class LooksShard:
    """A Ray Data actor: finds out what the images of one task look like, one task a call."""

    def __init__(self, jobs: Sequence[LabelJob], board: Any) -> None:
        exit_within()
        (job,) = jobs
        self._job, self._board = job, board
        self._tasks = Job(job.root, job.plan_id)
        self._reader = open_reader(job.input_kind, job.input_uri)
        # Two readers of one compressed stream would take turns to send each other back to its beginning.
        self._turn: Any = threading.Lock() if self._reader.threads == 1 else nullcontext()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """See ``attempted``."""
        task_id = int(row["task"])
        with self._turn:
            return attempted(self._tasks, self._board, self._job.max_attempts, task_id, partial(self._look, task_id))

    def _look(self, task_id: int, attempt: int) -> Receipt:
        started = time.perf_counter()
        task = read_task(self._job, self._tasks, task_id)
        files: tuple[ShardFile, ...] = ()
        if self._job.input_kind == "dataset":
            shard_hashes(_shard(self._job.root, task))
        else:
            files = (self._write(task_id, self._looks(task)),)
        told = {"rows": task.num_rows, "attempts": attempt, "seconds": round(time.perf_counter() - started, 4)}
        return Receipt(task_id=task_id, files=files, extra=told)

    def _looks(self, task: pa.Table) -> list[dict[str, Any]]:
        starts = range(0, task.num_rows, _CHUNK)
        threads = min(self._reader.threads, self._job.threads)
        chunks = in_order(partial(self._chunk, task), starts, threads=threads)
        return [looks for chunk in chunks for looks in chunk]

    def _chunk(self, task: pa.Table, first: int) -> list[dict[str, Any]]:
        return [looks_of(raw) for raw in self._reader.read(task, first, min(first + _CHUNK, task.num_rows))]

    def _write(self, task_id: int, looks: list[dict[str, Any]]) -> ShardFile:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(looks, schema=LOOKS), sink, compression="zstd")
        content = sink.getvalue()
        name = f"{task_id:06d}.{hashlib.sha256(content).hexdigest()[:32]}.parquet"
        path = f"_jobs/{self._job.plan_id}/looks/{name}"
        Store.open(self._job.root).write_bytes(path, content)
        return ShardFile(path=path, size=len(content), rows=len(looks))


def looks_of(raw: RawImage) -> dict[str, Any]:
    """A row of ``LOOKS``; of what cannot be read or decoded nothing: labelling says what is wrong with it."""
    hashed = None if raw.failure is not None else hash_image(raw.image)
    if hashed is None:
        return {}
    try:
        header = probe_image(raw.image)
    except BadImage:
        return {}
    across, down, flat = hashed
    return {
        "sha256": hashlib.sha256(raw.image).hexdigest(),
        "across": across,
        "down": down,
        "flat": flat,
        "width": header.width,
        "height": header.height,
        "format": header.format,
        "exif_orientation": header.exif_orientation,
        "image_offset": raw.offset,
        "image_length": raw.length,
    }


def give_up_looks(label_job: LabelJob, job: Job, failed: FailedTask) -> None:
    """Of whose images nobody can say what they look like: they are like no other, and each is labelled."""
    rows = read_task(label_job, job, failed.task).num_rows
    job.finish(failed.task, Receipt(task_id=failed.task, extra={"rows": rows, "dead": True, "error": failed.error}))
