"""Resumable work: a plan cut into tasks, and one receipt a task.

``DATASET/_jobs/<plan_id>/plan.parquet`` has one row group a task; ``done/<task>.json`` is a task's receipt, created
exclusively. The first receipt wins: retries, speculative copies and workers thought dead do no harm.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.shards import ShardFile
from pipelines.storage import Store

_PLAN = "plan.parquet"
_METADATA_KEY = b"boxmill"
_READERS = 16


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
        """Write the plan, one table a task; memory holds one task at a time.

        The plan is a function of its id, so writing it twice changes nothing.

        Args:
            tasks: one table a task; consumed once.
            schema: of the tables.
            metadata: see ``Plan``; evaluated after the last task, so its values may be filled while tasks are drawn.
        """
        with tempfile.TemporaryDirectory(prefix="boxmill-plan-") as folder:
            local = Path(folder) / _PLAN
            with pq.ParquetWriter(local, schema, compression="zstd") as writer:
                for table in tasks:
                    writer.write_table(table, row_group_size=max(1, table.num_rows))
                writer.add_key_value_metadata({_METADATA_KEY.decode(): json.dumps(dict(metadata))})
            self.store.upload(local, _PLAN)
        return self.plan()

    def plan(self) -> Plan:
        """Raises FileNotFoundError where no plan was saved."""
        footer = self._footer
        return Plan(
            plan_id=self.plan_id,
            num_tasks=footer.num_row_groups,
            metadata=json.loads((footer.metadata or {})[_METADATA_KEY]),
        )

    @cached_property
    def _footer(self) -> pq.FileMetaData:
        with self.store.open_arrow(_PLAN) as stream:
            return pq.read_metadata(stream)

    def task_rows(self) -> list[int]:
        """How many rows each task has."""
        return [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]

    def read_task(self, task_id: int) -> pa.Table:
        """The rows of one task; nothing else of the plan is read."""
        with self.store.open_arrow(_PLAN) as stream:
            return pq.ParquetFile(stream, metadata=self._footer, pre_buffer=True).read_row_group(task_id)

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

    def receipts(self) -> list[Receipt]:
        """All receipts, by task."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.receipt, self.done()))

    def each_receipt(self) -> Iterator[Receipt]:
        """All receipts, by task, a few in memory at a time."""
        tasks = iter(self.done())
        with ThreadPoolExecutor(_READERS) as pool:
            while window := list(islice(tasks, _READERS)):
                yield from pool.map(self.receipt, window)

    def forget(self, image_ids: Collection[str]) -> None:
        """Take some images' rows and ledger entries out of a finished plan; counts stay. Nobody needs the rows then.

        An unfinished plan stays as it is: it would bring the images again in any case.
        """
        if not self.has_plan() or self.missing():
            return
        self._forget_rows(image_ids)
        for task_id in self.done():
            path = _receipt_path(task_id)
            receipt = json.loads(self.store.read_bytes(path))
            if _forget_entries(receipt["ledger"], image_ids):
                self.store.write_bytes(path, json.dumps(receipt, ensure_ascii=False).encode())

    def _forget_rows(self, image_ids: Collection[str]) -> None:
        plan = self.plan()
        metadata = dict(plan.metadata)
        told = _forget_entries(metadata.get("ledger", {}), image_ids)
        if not told and set(image_ids).isdisjoint(self.read_column("image_id")):
            return
        gone = pa.array(list(image_ids), pa.string())
        # A task without rows keeps its row group: their number is the number of tasks.
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


def _receipt_path(task_id: int) -> str:
    return f"done/{task_id:06d}.json"
