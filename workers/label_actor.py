"""The labelling worker: one task from the images' bytes to a written file and its receipt.

    read ──▶ decode ──▶ batches of one size ──▶ model ──▶ encode ──▶ write, receipt
    threads  threads                            1 thread  threads    the task's own thread

Each arrow is a queue of bounded length, so memory does not grow with the number of images. Two tasks are under way at
a time: while one fills its first batch or writes its file, the model works for the other. Several models look at the
same images: these are read and decoded once, and each model's predictions have a file and a receipt of their own.

A task's predictions depend on the task alone: images go through the model in the order of the task, in batches of
one padded size each, so that no image is padded because of its neighbours and a repeated task makes the same batches.
Arithmetic is the same for the same machine, number of threads and library versions; another batch size, number of
threads or processor may change the last bits of scores and boxes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
import torch

from detectors.base import Preprocessing
from detectors.structures import Prediction
from pipelines.jobs import Job, Receipt
from pipelines.records import LabelMap
from workers.batches import to_annotations
from workers.exits import exit_within
from workers.label_inputs import CHUNK, WHOLE_CHUNK, Decoded, DecodedImage, InputThreads, decoded_images
from workers.label_job import TASKS_AT_ONCE, LabelJob
from workers.label_model import LabelModel, SizeBatches
from workers.label_readers import open_reader
from workers.label_stages import StageClock, ahead
from workers.label_tasks import read_task
from workers.label_write import Outcome, write_task
from workers.memory import hand_back_freed_memory, keep_freed_memory

_BATCHES_AHEAD = 2
_HAND_BACK_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """One model of a worker with the plan that it works for.

    Attributes:
        at: its place among the worker's.
        tasks: the plan's folder.
    """

    at: int
    job: LabelJob
    tasks: Job
    label_map: LabelMap
    model: LabelModel

    @classmethod
    def of(cls, at: int, job: LabelJob) -> Line:
        label_map = LabelMap.from_json(job.categories)
        return cls(at=at, job=job, tasks=Job(job.root, job.plan_id), label_map=label_map, model=LabelModel(job))

    @property
    def resized_by(self) -> Preprocessing | None:
        return None if self.model.whole else self.model.detector.preprocessing

    def receipt(self, task_id: int) -> Receipt | None:
        """Of a task that somebody finished."""
        try:
            return self.tasks.receipt(task_id)
        except FileNotFoundError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """A line's part in one task.

    Attributes:
        clock: of its stages; the first line's has reading and decoding, too.
        outcomes: so far.
    """

    line: Line
    clock: StageClock
    outcomes: list[Outcome] = field(default_factory=list)


Batch = tuple[Work, list[DecodedImage]]
Predicted = tuple[Work, list[DecodedImage], list[Prediction]]


class LabelShard:
    """A Ray Data actor: holds the models, labels one task a call; calls may come from several threads.

    Args:
        jobs: one a model, of the same images cut into the same tasks.
        board: see ``workers.label_attempts.AttemptBoard``.
    """

    def __init__(self, jobs: Sequence[LabelJob], board: Any) -> None:
        first = jobs[0]
        torch.set_num_threads(first.threads)
        keep_freed_memory()
        exit_within()
        self._handed_back = time.monotonic()
        self._board, self._max_attempts = board, first.max_attempts
        self._lines = [Line.of(at, job) for at, job in enumerate(jobs)]
        self._reader = open_reader(first.input_kind, first.input_uri)
        self._turns = Turns(TASKS_AT_ONCE if self._reader.threads > 1 else 1)
        self._input_threads = InputThreads(
            readers=ThreadPoolExecutor(self._reader.threads, thread_name_prefix="read"),
            decoders=ThreadPoolExecutor(first.threads, thread_name_prefix="decode"),
            decoding=first.threads,
            chunk=WHOLE_CHUNK if any(line.model.whole for line in self._lines) else CHUNK,
        )
        # One thread for the models: its own threads for arithmetic are kept by the thread that calls them.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._encoders = ThreadPoolExecutor(first.threads, thread_name_prefix="encode")

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Label a task for those ``jobs``, by their places, that lack it.

        Returns:
            What ``workers.label_run.Finished`` says; a task that fails is told, not raised.
        """
        task_id, lines = int(row["task"]), [self._lines[int(at)] for at in row["jobs"]]
        begun = ray.get(self._board.begun.remote(task_id))
        # What failed before may have killed its worker: from then on it has one for itself, and takes no other along.
        with self._turns.taken(alone=begun > 0):
            # Somebody else may have finished it, or a part.
            there = {line.at: line.receipt(task_id) for line in lines} if begun else {}
            done = {at: receipt for at, receipt in there.items() if receipt is not None}
            left = [line for line in lines if line.at not in done]
            if left and begun >= self._max_attempts:
                return _failed(task_id, begun, "WorkerDied", "the worker died each time, or its node")
            try:
                if left:
                    begun = ray.get(self._board.begin.remote(task_id))
                    done |= self._label(task_id, begun, left)
                return _finished(task_id, [done.get(at) for at in range(len(self._lines))])
            except Exception as error:  # one shard that cannot be labelled must not end the others' run
                return _failed(task_id, begun, type(error).__name__, str(error))
            finally:
                self._hand_back_memory()

    def _hand_back_memory(self) -> None:
        """Now and then, between tasks: fresh pages cost time, and tasks may be small."""
        if time.monotonic() - self._handed_back > _HAND_BACK_SECONDS:
            self._handed_back = time.monotonic()
            hand_back_freed_memory()

    def _label(self, task_id: int, attempt: int, lines: Sequence[Line]) -> dict[int, Receipt]:
        """The receipts by the places of lines."""
        started = time.perf_counter()
        works = [Work(line=line, clock=StageClock()) for line in lines]
        task = read_task(lines[0].job, lines[0].tasks, task_id)
        for work, outcome in self._outcomes(task, works):
            work.outcomes.append(outcome)
        return {work.line.at: self._put_down(task_id, attempt, task, work, started) for work in works}

    def _put_down(self, task_id: int, attempt: int, task: pa.Table, work: Work, started: float) -> Receipt:
        job, clock = work.line.job, work.clock
        outcomes = sorted(work.outcomes, key=lambda o: o.decoded.raw.place)
        assert len(outcomes) == task.num_rows, "every image of a task has one outcome"
        with clock.timed("write"):
            written = write_task(job, task_id, task, outcomes, {"attempts": attempt})
        measured = {**clock.to_json(), "seconds": round(time.perf_counter() - started, 4)}
        receipt = replace(written, extra={**written.extra, **measured})
        # The receipt comes last: a worker that is killed leaves files that nobody names, and the task is done again.
        return receipt if work.line.tasks.finish(task_id, receipt) else work.line.tasks.receipt(task_id)

    def _outcomes(self, task: pa.Table, works: Sequence[Work]) -> Iterator[tuple[Work, Outcome]]:
        """One an image and model, as batches come out of the models."""
        threads, resized_by = self._input_threads, [work.line.resized_by for work in works]
        images = decoded_images(self._reader, task, resized_by, threads, works[0].clock)
        predicted = ahead(self._model_thread, _predict, _batches(images, works), _BATCHES_AHEAD)
        for work, outcomes in ahead(self._encoders, _encode, predicted, threads.decoding + 1):
            yield from ((work, outcome) for outcome in outcomes)


def _batches(images: Iterator[Decoded], works: Sequence[Work]) -> Iterator[Batch]:
    """Of each model by itself, so that it makes the same ones whoever else looks at the images."""
    models = [work.line.model for work in works]
    waiting = [SizeBatches(model.detector.preprocessing, model.batch_size) for model in models]
    for decoded in images:
        for work, batches, image in zip(works, waiting, decoded, strict=True):
            yield from ((work, batch) for batch in batches.add(image))
    for work, batches in zip(works, waiting, strict=True):
        yield from ((work, batch) for batch in batches.rest())


def _predict(batch: Batch) -> Predicted:
    work, images = batch
    if images[0].pixels is None:
        return work, images, []
    with work.clock.timed("model"):
        predictions = work.line.model.predict(images)
    return work, [replace(image, pixels=None) for image in images], predictions


def _encode(predicted: Predicted) -> tuple[Work, list[Outcome]]:
    work, images, predictions = predicted
    if not predictions:
        return work, [Outcome(decoded=image, annotations=None) for image in images]
    with work.clock.timed("encode"):
        found = [to_annotations(prediction, work.line.label_map) for prediction in predictions]
    return work, [Outcome(decoded=image, annotations=a) for image, a in zip(images, found, strict=True)]


def _finished(task_id: int, receipts: Sequence[Receipt | None]) -> dict[str, Any]:
    """Of all models that had to do with it; images, bad ones and bytes are counted once."""
    there = [receipt for receipt in receipts if receipt is not None]
    first = there[0]
    return {
        "task": task_id,
        "attempts": max(int(receipt.extra.get("attempts", 1)) for receipt in there),
        "error_class": "",
        "error": "",
        "images": sum(file.rows for file in first.files),
        "failed": int(first.extra["failed"]),
        "bytes": max(int(receipt.extra.get("bytes", 0)) for receipt in there),
        "model_seconds": sum(float(receipt.extra.get("stages", {}).get("model", 0.0)) for receipt in there),
        "receipts": ["" if r is None else json.dumps(r.to_json(), ensure_ascii=False) for r in receipts],
    }


def _failed(task_id: int, attempts: int, error_class: str, error: str) -> dict[str, Any]:
    nothing = {"images": 0, "failed": 0, "bytes": 0, "model_seconds": 0.0, "receipts": []}
    return {"task": task_id, "attempts": attempts, "error_class": error_class, "error": error or error_class, **nothing}


class Turns:
    """Several tasks side by side, or one alone.

    Args:
        together: most at a time.
    """

    def __init__(self, together: int) -> None:
        self._together = together
        self._entrance = threading.Lock()
        self._places = threading.Semaphore(together)

    @contextmanager
    def taken(self, *, alone: bool = False) -> Iterator[None]:
        """Waits for a place, ``alone`` for all of them."""
        wanted = self._together if alone else 1
        with self._entrance:  # who waits for all places must not meet another who does
            for _ in range(wanted):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(wanted)
