"""Resumable work: a plan cut into tasks, and one receipt a task.

``DATASET/_jobs/<plan_id>/plan.parquet`` has the tasks' rows one after the other, and in its metadata how many each has;
``done/<task>.json`` is a task's receipt, created exclusively. The first receipt wins: retries, speculative copies and
workers thought dead do no harm. ``bundles/<digest>.json`` has copies of many receipts, to be read in one go.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.in_order import in_order
from pipelines.shards import ShardFile
from pipelines.storage import Store

_PLAN = "plan.parquet"
_METADATA_KEY = b"boxmill"
_TASKS_KEY = b"boxmill.tasks"  # rows of each task; plans without it have one row group a task
_BUNDLES = "bundles"
_ALIVE = "alive"  # its time counts, nothing else
_GROUP_ROWS = 1024  # a row group holds whole tasks: of one each, the footer of 100,000 tasks would be 100 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job does.

    Attributes:
        plan_id: hash of everything that the result depends on; also the commit's transaction id.
        num_tasks: tasks are numbered 0..num_tasks-1.
        metadata: JSON-ready, whatever the job's owner needs to run a task and to commit.
    """

    plan_id: str
    num_tasks: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a task has done.

    Attributes:
        task_id: its number.
        files: the data files it wrote; their names are hashes of their content.
        ledger: ``Ledger.to_json``, or other counts.
        extra: JSON-ready, whatever else the job's owner wants to know.
    """

    task_id: int
    files: tuple[ShardFile, ...] = ()
    ledger: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "files": [f.to_json() for f in self.files],
            "ledger": dict(self.ledger),
            "extra": dict(self.extra),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Receipt:
        return cls(
            task_id=int(values["task_id"]),
            files=tuple(ShardFile.from_json(f) for f in values["files"]),
            ledger=values["ledger"],
            extra=values["extra"],
        )


def make_plan_id(**parts: Any) -> str:
    """32 hex digits of the sha256 over JSON-ready parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Job:
    """A plan's folder. Cheap to pickle.

    Args:
        dataset_uri: the dataset (or other root) in whose ``_jobs`` folder the job lies.
        plan_id: of the plan.
    """

    dataset_uri: str
    plan_id: str

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset_uri": self.dataset_uri, "plan_id": self.plan_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def store(self) -> Store:
        return Store.open(self.dataset_uri).sub("_jobs", self.plan_id)

    def has_plan(self) -> bool:
        return self.store.exists(_PLAN)

    def save_plan(self, tasks: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, Any]) -> Plan:
        """Write the plan, one table a task; memory holds about a thousand rows, or one task, at a time.

        The plan is a function of its id, so writing it twice changes nothing.

        Args:
            tasks: one table a task; consumed once.
            schema: of the tables.
            metadata: see ``Plan``; evaluated after the last task, so its values may be filled while tasks are drawn.
        """
        rows: list[int] = []
        return self._save(_row_groups(tasks, rows), schema, rows, metadata)

    def save_rows(self, tasks: pa.Table, metadata: Mapping[str, Any]) -> Plan:
        """As ``save_plan``, of tasks of one row each."""
        groups = (tasks.slice(first, _GROUP_ROWS) for first in range(0, tasks.num_rows, _GROUP_ROWS))
        return self._save(groups, tasks.schema, [1] * tasks.num_rows, metadata)

    def _save(
        self, groups: Iterable[pa.Table], schema: pa.Schema, rows: Sequence[int], metadata: Mapping[str, Any]
    ) -> Plan:
        with tempfile.TemporaryDirectory(prefix="boxmill-plan-") as folder:
            local = Path(folder) / _PLAN
            with pq.ParquetWriter(local, schema, compression="zstd") as writer:
                for group in groups:
                    writer.write_table(group, row_group_size=max(1, group.num_rows))
                told = {_METADATA_KEY: json.dumps(dict(metadata)), _TASKS_KEY: json.dumps(rows)}
                writer.add_key_value_metadata({key.decode(): value for key, value in told.items()})
            self.store.upload(local, _PLAN)
        return self.plan()

    def plan(self) -> Plan:
        """Raises FileNotFoundError where no plan was saved."""
        return Plan(
            plan_id=self.plan_id,
            num_tasks=len(self.task_rows()),
            metadata=json.loads((self._footer.metadata or {})[_METADATA_KEY]),
        )

    @cached_property
    def _footer(self) -> pq.FileMetaData:
        with self.store.open_arrow(_PLAN) as stream:
            return pq.read_metadata(stream)

    def task_rows(self) -> list[int]:
        """How many rows each task has."""
        return np.diff(self._starts).tolist()

    @cached_property
    def _starts(self) -> np.ndarray:
        """(tasks + 1,) the first row of each task, and the end."""
        told = (self._footer.metadata or {}).get(_TASKS_KEY)
        return _sums(self._group_rows if told is None else json.loads(told))

    @cached_property
    def _group_rows(self) -> list[int]:
        return [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]

    def read_task(self, task_id: int) -> pa.Table:
        """The rows of one task; of the plan only the row group that holds them is read."""
        first, last = self._starts[task_id : task_id + 2].tolist()
        if first == last:
            return self._footer.schema.to_arrow_schema().empty_table()
        groups = _sums(self._group_rows)
        group = int(np.searchsorted(groups, first, side="right")) - 1
        with self.store.open_arrow(_PLAN) as stream:
            read = pq.ParquetFile(stream, metadata=self._footer, pre_buffer=True).read_row_group(group)
        return read.slice(first - int(groups[group]), last - first)

    def has_column(self, name: str) -> bool:
        return name in self._footer.schema.to_arrow_schema().names

    def read_column(self, name: str) -> list[Any]:
        """One column of all tasks."""
        with self.store.open_arrow(_PLAN) as stream:
            plan = pq.ParquetFile(stream, metadata=self._footer, pre_buffer=True)
            return list(plan.read(columns=[name])[name].to_pylist())

    def finish(self, task_id: int, receipt: Receipt) -> bool:
        """Put down a task's receipt, after its files. False if another was first: then that one counts."""
        content = {**receipt.to_json(), "token": uuid.uuid4().hex}
        return self.store.put_new(_receipt_path(task_id), json.dumps(content, ensure_ascii=False).encode())

    def receipt(self, task_id: int) -> Receipt:
        """Raises FileNotFoundError where the task is not done."""
        return Receipt.from_json(json.loads(self.store.read_bytes(_receipt_path(task_id))))

    def write_dead_letter(self, task_id: int, letter: Mapping[str, Any]) -> None:
        """Say why a task was given up; see ``dead_letters``."""
        self.store.write_bytes(f"dead/{task_id:06d}.json", json.dumps(dict(letter), ensure_ascii=False).encode())

    def dead_letters(self) -> list[dict[str, Any]]:
        """Of the tasks that were given up: ``task``, ``images`` and whatever else the job's owner wrote."""
        names = sorted(name for name in self.store.children("dead") if name.endswith(".json"))
        return [json.loads(self.store.read_bytes(f"dead/{name}")) for name in names]

    def bundle(self, receipts: Sequence[Receipt]) -> None:
        """Put down copies of receipts in one file, so that whoever adds up many of them need not ask for each.

        Args:
            receipts: that won: they are there, one by one, as ``done/<task>.json``.
        """
        content = json.dumps([receipt.to_json() for receipt in receipts], ensure_ascii=False).encode()
        self.store.write_bytes(f"{_BUNDLES}/{_digest(content)}.json", content)

    def receipts(self) -> list[Receipt]:
        """All receipts, by task."""
        return sorted(self.each_receipt(), key=lambda receipt: receipt.task_id)

    def each_receipt(self) -> Iterator[Receipt]:
        """All receipts, a few in memory at a time: those of bundles in any order, then the others by task."""
        left = dict.fromkeys(self.done())
        for name in self._bundles():
            for values in self._read_bundle(name):
                if values["task_id"] in left:
                    del left[values["task_id"]]
                    yield Receipt.from_json(values)
        if self.store.is_local:  # a file of some kilobytes: handing it to a thread costs more than reading it
            yield from map(self.receipt, left)
            return
        yield from in_order(self.receipt, left)

    def _bundles(self) -> list[str]:
        return [name for name in self.store.children(_BUNDLES) if name.endswith(".json") and not name.startswith(".")]

    def _read_bundle(self, name: str) -> list[dict[str, Any]]:
        """What it holds, nothing if it is damaged or was taken away: it has only copies."""
        try:
            content = self.store.read_bytes(f"{_BUNDLES}/{name}")
        except FileNotFoundError:
            return []
        copies: list[dict[str, Any]] = json.loads(content) if _digest(content) == name.removesuffix(".json") else []
        return copies

    def say_alive(self) -> None:
        """Leave a fresh file in the folder: somebody goes on with the plan."""
        self.store.write_bytes(_ALIVE, uuid.uuid4().hex.encode())

    def take_back(self, task_ids: Iterable[int]) -> None:
        """Delete receipts, so that their tasks are done again."""
        self._unbundle()
        for task_id in task_ids:
            self.store.remove(_receipt_path(task_id))

    def delete(self) -> None:
        """Delete the plan with all that was kept of it, receipts first: the same work starts anew then."""
        self.take_back(self.done())
        for file in self.store.list_files():
            self.store.remove(file.path)

    def _unbundle(self) -> None:
        """First: the receipts are there without the bundles, but not the other way about."""
        for name in self._bundles():
            self.store.remove(f"{_BUNDLES}/{name}")

    def forget(self, image_ids: Collection[str]) -> None:
        """Take some images' rows and ledger entries out of a finished plan; counts stay. Nobody needs the rows then.

        An unfinished plan stays as it is: it would bring the images again in any case.
        """
        if not self.has_plan() or self.missing():
            return
        self._forget_rows(image_ids)
        self._unbundle()
        for task_id in self.done():
            path = _receipt_path(task_id)
            receipt = json.loads(self.store.read_bytes(path))
            if _forget_entries(receipt["ledger"], image_ids):
                self.store.write_bytes(path, json.dumps(receipt, ensure_ascii=False).encode())
        for letter in self.dead_letters():
            kept = [image_id for image_id in letter["images"] if image_id not in image_ids]
            if len(kept) < len(letter["images"]):
                self.write_dead_letter(letter["task"], {**letter, "images": kept})

    def _forget_rows(self, image_ids: Collection[str]) -> None:
        if not self.has_column("image_id"):
            return  # its tasks are parts of files, and name no image
        plan = self.plan()
        metadata = dict(plan.metadata)
        told = _forget_entries(metadata.get("ledger", {}), image_ids)
        if not told and set(image_ids).isdisjoint(self.read_column("image_id")):
            return
        gone = pa.array(list(image_ids), pa.string())
        # A task without rows stays a task: their number is not changed.
        tasks = (self.read_task(i) for i in range(plan.num_tasks))
        kept = (task.filter(pc.invert(pc.is_in(task["image_id"], value_set=gone))) for task in tasks)
        Job(self.dataset_uri, self.plan_id).save_plan(kept, self._footer.schema.to_arrow_schema(), metadata)

    def done(self) -> list[int]:
        """Numbers of the tasks that have a receipt, ascending."""
        names = (name for name in self.store.children("done") if name.endswith(".json"))
        return sorted(int(name.removesuffix(".json")) for name in names if not name.startswith("."))

    def missing(self, num_tasks: int | None = None) -> list[int]:
        """Numbers of the tasks without a receipt, ascending."""
        total = self.plan().num_tasks if num_tasks is None else num_tasks
        return sorted(set(range(total)) - set(self.done()))


def _row_groups(tasks: Iterable[pa.Table], rows: list[int]) -> Iterator[pa.Table]:
    """Whole tasks together in tables of about ``_GROUP_ROWS`` rows; ``rows`` is told how many each task has."""
    waiting: list[pa.Table] = []
    count = 0
    for task in tasks:
        rows.append(task.num_rows)
        if waiting and count + task.num_rows > _GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting, count = [], 0
        waiting.append(task)
        count += task.num_rows
    if count:
        yield pa.concat_tables(waiting)


def _sums(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _forget_entries(ledger: dict[str, Any], image_ids: Collection[str]) -> bool:
    """Take the entries of some images out of a ledger's JSON; whether there were any."""
    entries = ledger.get("entries", [])
    kept = [entry for entry in entries if entry["image_id"] not in image_ids]
    if len(kept) == len(entries):
        return False
    ledger["entries"] = kept
    return True


def files_of(receipts: Sequence[Receipt], folder: str) -> list[ShardFile]:
    """The files that receipts name below a folder of the dataset, e.g. ``images`` or ``labels/gt``, in task order."""
    return [f for r in receipts for f in r.files if f.path.startswith(f"{folder}/")]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _receipt_path(task_id: int) -> str:
    return f"done/{task_id:06d}.json"
