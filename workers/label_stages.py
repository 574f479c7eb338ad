"""The stages of a labelling worker: how long each took, and work that runs ahead of who needs it, within bounds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar

STAGES = ("read", "decode", "model", "encode", "write")

T = TypeVar("T")
R = TypeVar("R")


class StageClock:
    """Seconds of each stage of one task, added up over threads, and the bytes of images that were read."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._seconds[stage] += seconds

    def read(self, num_bytes: int) -> None:
        with self._lock:
            self._bytes += num_bytes

    def to_json(self) -> dict[str, Any]:
        """``stages`` with seconds by name, ``bytes``."""
        with self._lock:
            return {"stages": {name: round(s, 4) for name, s in self._seconds.items()}, "bytes": self._bytes}


def ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """``map`` on a pool, in order, with at most ``depth`` results begun and not yet taken.

    What fails is raised where its result would have come; what waits then is not begun.
    """
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
