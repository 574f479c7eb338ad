"""A process and all that it started, Ray's workers included, as /proc shows them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


def process_tree(root: int) -> Iterator[int]:
    """A process and its descendants."""
    parents = {pid: int(fields[1]) for pid, fields in _stats()}
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    yield from found


class TreeCpu:
    """CPU seconds of this process and its descendants while it is entered.

    They are looked at every ``every`` seconds; what a process used after the last look at it is not counted, nor is
    what the looking takes.
    """

    def __init__(self, *, every: float = 1.0) -> None:
        self._every = every
        self._used: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._looking = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeCpu:
        self._look()
        self._before, self._looking = dict(self._used), 0.0
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    @property
    def seconds(self) -> float:
        return sum(used - self._before.get(pid, 0.0) for pid, used in self._used.items()) - self._looking

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._look()

    def _look(self) -> None:
        started = time.thread_time()
        tree = set(process_tree(os.getpid()))
        tick = os.sysconf("SC_CLK_TCK")
        for pid, fields in _stats():
            if pid in tree:
                # A pid is not used again for something else within minutes; what it has used only grows.
                used = (int(fields[11]) + int(fields[12])) / tick
                self._used[pid] = max(used, self._used.get(pid, 0.0))
        self._looking += time.thread_time() - started


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Fields of /proc/<pid>/stat behind the name: state, parent, ...; of all processes that are readable."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if len(fields) > 12:
                yield int(entry.name), fields


class TreePss:
    """The highest sum of PSS of a process and its descendants, MiB, while it is entered.

    PSS counts a page shared by n processes as a part of n in each, so that the sum is what the tree really holds.

    Args:
        root: of the tree.
        every: seconds between two looks.
    """

    def __init__(self, root: int, *, every: float = 0.5) -> None:
        self._root, self._every = root, every
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreePss:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak(self) -> float:
        return max(self.samples)

    def _watch(self) -> None:
        while True:
            self.samples.append(sum(_pss(pid) for pid in process_tree(self._root)) / 1024)
            if self._stop.wait(self._every):
                return


def _pss(pid: int) -> int:
    """KiB; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
