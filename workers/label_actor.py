"""The labelling worker: one task from the images' bytes to a written file and its receipt.

    read ──▶ decode ──▶ batches of one size ──▶ model ──▶ encode ──▶ write, receipt
    threads  threads                            1 thread  threads    the task's own thread

Each arrow is a queue of bounded length, so memory does not grow with the number of images. Two tasks are under way at
a time: while one fills its first batch or writes its file, the model works for the other.

A task's predictions depend on the task alone: images go through the model in the order of the task, in batches of
one padded size each, so that no image is padded because of its neighbours and a repeated task makes the same batches.
Arithmetic is the same for the same machine, number of threads and library versions; another batch size, number of
threads or processor may change the last bits of scores and boxes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import torch

from detectors.structures import Prediction
from pipelines.jobs import Job, Receipt
from pipelines.records import LabelMap
from workers.batches import to_annotations
from workers.label_inputs import CHUNK, WHOLE_CHUNK, DecodedImage, InputThreads, decoded_images
from workers.label_job import TASKS_AT_ONCE, LabelJob
from workers.label_model import LabelModel, batches_of_one_size
from workers.label_readers import open_reader
from workers.label_stages import StageClock, ahead
from workers.label_tasks import read_task
from workers.label_write import Outcome, write_task
from workers.memory import hand_back_freed_memory, keep_freed_memory

_BATCHES_AHEAD = 2
_HAND_BACK_SECONDS = 10.0

Predicted = tuple[list[DecodedImage], list[Prediction]]


class LabelShard:
    """A Ray Data actor: holds the model, labels one task a call; calls may come from several threads."""

    def __init__(self, job: LabelJob, board: Any) -> None:
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        self._handed_back = time.monotonic()
        self._job, self._board = job, board
        self._tasks = Job(job.root, job.plan_id)
        self._label_map = LabelMap.from_json(job.categories)
        self._model = LabelModel(job)
        self._reader = open_reader(job.input_kind, job.input_uri)
        self._turns = Turns(TASKS_AT_ONCE if self._reader.threads > 1 else 1)
        self._input_threads = InputThreads(
            readers=ThreadPoolExecutor(self._reader.threads, thread_name_prefix="read"),
            decoders=ThreadPoolExecutor(job.threads, thread_name_prefix="decode"),
            decoding=job.threads,
            chunk=WHOLE_CHUNK if self._model.whole else CHUNK,
        )
        # One thread for the model: its own threads for arithmetic are kept by the thread that calls it.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._encoders = ThreadPoolExecutor(job.threads, thread_name_prefix="encode")

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Label a task and put its receipt down.

        Returns:
            What ``workers.label_run.Finished`` says; a task that fails is told, not raised.
        """
        task_id = int(row["task"])
        begun = ray.get(self._board.begun.remote(task_id))
        # What failed before may have killed its worker: from then on it has one for itself, and takes no other along.
        with self._turns.taken(alone=begun > 0):
            receipt = self._receipt(task_id) if begun else None
            if receipt is not None:
                return _finished(receipt)
            if begun >= self._job.max_attempts:
                return _failed(task_id, begun, "WorkerDied", "the worker died each time, or its node")
            attempt = ray.get(self._board.begin.remote(task_id))
            try:
                return _finished(self._label(task_id, attempt))
            except Exception as error:  # one shard that cannot be labelled must not end the others' run
                return _failed(task_id, attempt, type(error).__name__, str(error))
            finally:
                self._hand_back_memory()

    def _hand_back_memory(self) -> None:
        """Now and then, between tasks: fresh pages cost time, and tasks may be small."""
        if time.monotonic() - self._handed_back > _HAND_BACK_SECONDS:
            self._handed_back = time.monotonic()
            hand_back_freed_memory()

    def _receipt(self, task_id: int) -> Receipt | None:
        """Of a task that somebody else finished."""
        try:
            return self._tasks.receipt(task_id)
        except FileNotFoundError:
            return None

    def _label(self, task_id: int, attempt: int) -> Receipt:
        started, clock = time.perf_counter(), StageClock()
        task = read_task(self._job, self._tasks, task_id)
        outcomes = sorted(self._outcomes(task, clock), key=lambda o: o.decoded.raw.place)
        assert len(outcomes) == task.num_rows, "every image of a task has one outcome"
        with clock.timed("write"):
            written = write_task(self._job, task_id, task, outcomes, {"attempts": attempt})
        measured = {**clock.to_json(), "seconds": round(time.perf_counter() - started, 4)}
        receipt = replace(written, extra={**written.extra, **measured})
        # The receipt comes last: a worker that is killed leaves files that nobody names, and the task is done again.
        return receipt if self._tasks.finish(task_id, receipt) else self._tasks.receipt(task_id)

    def _outcomes(self, task: pa.Table, clock: StageClock) -> Iterator[Outcome]:
        """One an image, as batches come out of the model."""
        preprocessing, threads = self._model.detector.preprocessing, self._input_threads
        resized_by = None if self._model.whole else preprocessing
        images = decoded_images(self._reader, task, resized_by, threads, clock)
        batches = batches_of_one_size(images, preprocessing, self._model.batch_size)
        predicted = ahead(self._model_thread, partial(self._predict, clock), batches, _BATCHES_AHEAD)
        for encoded in ahead(self._encoders, partial(self._encode, clock), predicted, threads.decoding + 1):
            yield from encoded

    def _predict(self, clock: StageClock, images: list[DecodedImage]) -> Predicted:
        if images[0].pixels is None:
            return images, []
        with clock.timed("model"):
            predictions = self._model.predict(images)
        return [replace(image, pixels=None) for image in images], predictions

    def _encode(self, clock: StageClock, predicted: Predicted) -> list[Outcome]:
        images, predictions = predicted
        if not predictions:
            return [Outcome(decoded=image, annotations=None) for image in images]
        with clock.timed("encode"):
            found = [to_annotations(prediction, self._label_map) for prediction in predictions]
        return [Outcome(decoded=image, annotations=a) for image, a in zip(images, found, strict=True)]


def _finished(receipt: Receipt) -> dict[str, Any]:
    extra = receipt.extra
    return {
        "task": receipt.task_id,
        "attempts": int(extra.get("attempts", 1)),
        "error_class": "",
        "error": "",
        "images": sum(file.rows for file in receipt.files),
        "failed": int(extra["failed"]),
        "bytes": int(extra.get("bytes", 0)),
        "model_seconds": float(extra.get("stages", {}).get("model", 0.0)),
        "receipt": json.dumps(receipt.to_json(), ensure_ascii=False),
    }


def _failed(task_id: int, attempts: int, error_class: str, error: str) -> dict[str, Any]:
    nothing = {"images": 0, "failed": 0, "bytes": 0, "model_seconds": 0.0, "receipt": ""}
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
