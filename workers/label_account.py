"""What labelling took and cost: live for whoever watches, and as a document beside the predictions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.jobs import Receipt
from pipelines.ledger import Ledger
from pipelines.shards import ShardFile
from pipelines.storage import Store
from workers.label_stages import STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAccount:
    """One call that labelled something.

    Attributes:
        images: that it labelled or found to be bad.
        seconds: wall time from when Ray was there to the last receipt; loading the model in the workers is in it, and
            finding out what shows the same.
        images_per_second: of these.
        model_busy: share of the workers' time in which the model worked, 0 to 1.
        workers: most at a time.
        models: that looked at each image; all other numbers are of all of them together.
        cost_per_million_images: at the price that was given; None without one.
    """

    images: int
    seconds: float
    images_per_second: float
    model_busy: float
    workers: int
    cost_per_million_images: float | None
    models: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAccount:
    """A plan, over all calls that worked on it.

    Attributes:
        plan_id: its id.
        images, quarantined, objects: of its rows; ``quarantined`` are those without predictions.
        copied: of the images, those that carry the predictions of one that shows the same.
        tasks, tasks_given_up: of the plan.
        retries: attempts at tasks beyond their first, in the call that finished them.
        stage_seconds: by ``STAGES``, added up over all workers and their threads.
        task_seconds: from a task's start to its end, added up; a worker has two tasks under way.
        bytes_read, bytes_written: encoded images, and files of predictions.
        price_per_hour: of all machines of the run together, as it was given.
        run: the last call that labelled something; None where none told.
    """

    plan_id: str
    images: int
    quarantined: int
    objects: int
    copied: int
    tasks: int
    tasks_given_up: int
    retries: int
    stage_seconds: dict[str, float]
    task_seconds: float
    bytes_read: int
    bytes_written: int
    price_per_hour: float | None
    run: RunAccount | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class RunClock:
    """Adds up what the workers tell during one call.

    Args:
        workers: most at a time.
        before: seconds that the call has worked already.
        models: that look at each image.
    """

    def __init__(self, workers: int, *, before: float = 0.0, models: int = 1) -> None:
        self._workers, self._models = workers, models
        self._started = time.perf_counter() - before
        self._model_seconds = 0.0
        self.images = self.failed = 0
        self._retries: dict[int, int] = {}

    @property
    def retries(self) -> int:
        """Attempts at tasks beyond their first, those that nobody was left to tell of too."""
        return sum(self._retries.values())

    def add(self, finished: dict[str, Any]) -> None:
        """What a worker says of an attempt, see ``workers.label_run.Finished``."""
        self.images += finished["images"]
        self.failed += finished["failed"]
        if finished["attempts"] > 1:
            self._retries[finished["task"]] = finished["attempts"] - 1
        self._model_seconds += finished["model_seconds"]

    def account(self, price_per_hour: float | None) -> RunAccount:
        """Up to now."""
        seconds = max(1e-9, time.perf_counter() - self._started)
        cost = None
        if price_per_hour is not None and self.images:
            cost = price_per_hour * seconds / 3600 / self.images * 1e6
        return RunAccount(
            images=self.images,
            seconds=round(seconds, 3),
            images_per_second=self.images / seconds,
            model_busy=min(1.0, self._model_seconds / (seconds * self._workers)),
            workers=self._workers,
            models=self._models,
            cost_per_million_images=cost,
        )


class ReceiptSums:
    """Adds up a plan's receipts one by one; receipts of an older boxmill say nothing of stages.

    Attributes:
        files, ledger: of all of them.
    """

    def __init__(self) -> None:
        self.files: list[ShardFile] = []
        self.ledger = Ledger()
        self._stages = dict.fromkeys(STAGES, 0.0)
        self._seconds = 0.0
        self._failed = self._dead = self._retries = self._bytes = self._tasks = self._copied = 0

    def add(self, receipt: Receipt) -> None:
        extra = receipt.extra
        self.files += receipt.files
        self.ledger.merge(Ledger.from_json(receipt.ledger))
        self._tasks += 1
        self._failed += int(extra["failed"])
        self._copied += int(extra.get("copied", 0))
        self._dead += bool(extra.get("dead"))
        self._retries += int(extra.get("attempts", 1)) - 1
        self._seconds += extra.get("seconds", 0.0)
        self._bytes += int(extra.get("bytes", 0))
        for stage, seconds in extra.get("stages", {}).items():
            self._stages[stage] += seconds

    @property
    def num_labelled(self) -> int:
        """Images with predictions."""
        return sum(file.rows for file in self.files) - self._failed

    def account(self, plan_id: str, *, price_per_hour: float | None, run: RunAccount | None) -> LabelAccount:
        return LabelAccount(
            plan_id=plan_id,
            images=sum(file.rows for file in self.files),
            quarantined=self._failed,
            objects=sum(file.num_objects for file in self.files),
            copied=self._copied,
            tasks=self._tasks,
            tasks_given_up=self._dead,
            retries=self._retries,
            stage_seconds={stage: round(seconds, 3) for stage, seconds in self._stages.items()},
            task_seconds=round(self._seconds, 3),
            bytes_read=self._bytes,
            bytes_written=sum(file.size for file in self.files),
            price_per_hour=price_per_hour,
            run=run,
        )


def add_up(receipts: Iterable[Receipt]) -> ReceiptSums:
    """The sums of a plan; its receipts are drawn one by one."""
    sums = ReceiptSums()
    for receipt in receipts:
        sums.add(receipt)
    return sums


def write_account(root: str, account: LabelAccount) -> dict[str, Any]:
    """Write ``_accounts/<plan_id>.json`` beside the predictions; returns what it says.

    A call that found every task done says nothing new of a run: what an earlier one took, and its price, stay.
    """
    values = account.to_json()
    if account.run is None and (earlier := read_account(root, account.plan_id)) is not None:
        values |= {name: earlier.get(name) for name in ("run", "price_per_hour")}
    Store.open(root).write_bytes(_path(account.plan_id), json.dumps(values, indent=1).encode())
    return values


def account_uri(root: str, plan_id: str) -> str:
    return Store.open(root).join(_path(plan_id))


def read_account(root: str, plan_id: str) -> dict[str, Any] | None:
    """``LabelAccount.to_json`` of a plan; None where none was written."""
    try:
        found: dict[str, Any] = json.loads(Store.open(root).read_bytes(_path(plan_id)))
    except FileNotFoundError:
        return None
    return found


def _path(plan_id: str) -> str:
    return f"_accounts/{plan_id}.json"
