"""Faults that fall upon a labelling run on several nodes, and the log of where each of them fell.

What the network does is in the proxy's log; receipts are too, since every one of them goes through the proxy.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.paced import Pace
from tests.faults.ray_nodes import Node, RayNodes, is_alive
from tests.faults.remote import RemoteProxy
from tests.faults.rules import Entry, Rule

HELD_UP, STEADY = 60.0, 1.0
"""Seconds a batch, while something restarts and otherwise: the run must not end before its faults have fallen."""
_RECEIPT = re.compile(r"/done/(\d+)\.json$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fell:
    """A fault, or a burst of one.

    Attributes:
        what: a name that is the fault's own.
        began, ended: seconds since 1970.
        detail: processes, or requests.
        before: receipts that were there when it began.
        between: the tasks of the last receipt before and of the first one after; None where there was none.
    """

    what: str
    began: float
    ended: float
    detail: str
    before: int
    between: tuple[int | None, int | None]


class FaultLog:
    """What fell when, and which receipts there were then.

    Args:
        proxy: all processes of the run talk to the store through it.
        folder: part of the path of all that the run writes.
    """

    def __init__(self, proxy: RemoteProxy, folder: str) -> None:
        self._proxy, self._folder = proxy, folder
        self._entries: list[Entry] = []
        self._notes: list[tuple[float, str, str]] = []

    def note(self, what: str, detail: str, when: float | None = None) -> None:
        """A fault that did not come over the network; by default it has fallen now."""
        self._notes.append((time.time() if when is None else when, what, detail))

    def entries(self) -> list[Entry]:
        """Requests so far, by time of their answers."""
        self._entries += self._proxy.log_from(len(self._entries))
        return self._entries

    def receipts(self) -> dict[int, float]:
        """Tasks and when the store took their receipts, whether the worker learned of it or not."""
        return {task: when for task, when, status in self._receipt_requests() if status == 200}

    def refused_receipts(self, since: float) -> dict[int, float]:
        """Tasks for which a receipt came when there was one, and when."""
        return {task: when for task, when, status in self._receipt_requests() if status == 412 and when > since}

    def _receipt_requests(self) -> Iterator[tuple[int, float, int | None]]:
        for entry in self.entries():
            found = _RECEIPT.search(entry.path)
            if found and entry.method == "PUT" and self._folder in entry.path:
                yield int(found[1]), entry.time, entry.status

    def fallen(self) -> list[Fell]:
        """Every fault, by time."""
        faults = [Fell(what=w, began=t, ended=t, detail=d, **self._place(t)) for t, w, d in self._notes]
        bursts: dict[str, list[Entry]] = {}
        for entry in self.entries():
            if entry.fault:
                bursts.setdefault(entry.rule, []).append(entry)
        for name, burst in bursts.items():
            times = [entry.time for entry in burst]
            detail = f"{len(burst)} x {burst[0].fault}, first {burst[0].method} {burst[0].path.rpartition('/')[2][:48]}"
            faults.append(Fell(what=name, began=min(times), ended=max(times), detail=detail, **self._place(min(times))))
        return sorted(faults, key=lambda fell: fell.began)

    def _place(self, when: float) -> dict:
        order = sorted((t, task) for task, t in self.receipts().items())
        before = sum(t <= when for t, _ in order)
        last = order[before - 1][1] if before else None
        return {"before": before, "between": (last, order[before][1] if before < len(order) else None)}

    def table(self, began: float) -> str:
        """The log in words, seconds since ``began``."""
        lines = ["seconds          receipts  between tasks  what"]
        for fell in self.fallen():
            last, after = ("-" if task is None else str(task) for task in fell.between)
            lines.append(
                f"{fell.began - began:6.1f}..{fell.ended - began:6.1f}  {fell.before:8d}  {last:>5} | {after:<5}  "
                f"{fell.what}: {fell.detail}"
            )
        return "\n".join(lines)


@dataclass(kw_only=True, eq=False)
class Chaos:
    """A labelling run and what is done to it. Waiting fails where the driver ends.

    Attributes:
        nodes: where it runs.
        proxy: between it and the store.
        pace: of its model.
        log: of what is done.
        workers: of its pool.
        command: of the driver.
        output: folder for what drivers print.
    """

    nodes: RayNodes
    proxy: RemoteProxy
    pace: Pace
    log: FaultLog
    workers: int
    command: Sequence[str]
    output: Path
    _drivers: int = 0
    _driver: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The run, until the block is left."""
        self.pace.set(STEADY)
        self.start_driver()
        try:
            yield
        finally:
            assert self._driver is not None
            self._driver.kill()
            self._driver.wait()

    def start_driver(self) -> None:
        self._drivers += 1
        self._driver = start(self.command, self.nodes, self.output / f"driver-{self._drivers}")

    def finish(self) -> str:
        """Nothing holds the run up any more; what the driver prints."""
        assert self._driver is not None
        self.pace.set(0.0)
        return finished(self._driver, self.output / f"driver-{self._drivers}")

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 400.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self._driver is not None
            assert self._driver.poll() is None, f"the driver ended before {what}: {self._told()}"
            assert time.monotonic() < end, f"{what}: not after {seconds} s: {self._told()}"
            time.sleep(0.2)

    def _told(self) -> str:
        return (self.output / f"driver-{self._drivers}.err").read_text()[-3000:]

    def more_receipts(self, number: int) -> None:
        """Wait for so many more."""
        wanted = len(self.log.receipts()) + number
        self.wait(lambda: len(self.log.receipts()) >= wanted, f"{wanted} receipts")

    def network(self, *rules: Rule) -> None:
        """Set rules, and wait until each has done what it can; then until there is one more receipt."""
        self.proxy.set_rules(rules)
        self.wait(lambda: all(self._hits(rule) >= rule.count for rule in rules), " and ".join(r.name for r in rules))
        self.proxy.set_rules([])
        self.more_receipts(1)

    def _hits(self, rule: Rule) -> int:
        return sum(entry.rule == rule.name for entry in self.log.entries())

    def busy(self, node: Node) -> list[int]:
        """Workers of a node that are at a batch."""
        return [pid for pid in node.workers() if self.pace.has_begun(pid, within=STEADY + 0.5)]

    def all_at_work(self) -> None:
        """Wait until each worker of the pool has begun to label; the run is held up as long."""
        self.pace.set(HELD_UP)

        def at_work() -> bool:
            pids = [pid for node in self.nodes.nodes for pid in node.workers()]
            return sum(self.pace.has_begun(pid) for pid in pids) >= self.workers

        self.wait(at_work, f"{self.workers} workers label")
        self.pace.set(STEADY)

    def kill_worker(self, what: str) -> None:
        """SIGKILL a worker that is at a batch."""
        found: list[tuple[Node, int]] = []

        def look() -> bool:
            found[:] = [(node, pid) for node in self.nodes.nodes for pid in self.busy(node)]
            return bool(found)

        self.wait(look, "a worker labels")
        node, pid = found[-1]
        os.kill(pid, signal.SIGKILL)
        self.log.note(what, f"SIGKILL, process {pid} on {node.name}")

    def kill_node(self, what: str, *, zombies: int = 0) -> list[int]:
        """SIGKILL a node that labels, and start another in its place.

        Args:
            zombies: so many of its workers are only stopped, in the middle of a batch; returned.
        """
        found: list[tuple[Node, list[int]]] = []

        def look() -> bool:
            found[:] = [(node, pids) for node in self.nodes.nodes[1:] if (pids := self.busy(node))]
            return any(len(pids) >= max(1, zombies) for _, pids in found)

        self.wait(look, f"a node has {max(1, zombies)} busy workers")
        node, pids = max(found, key=lambda pair: len(pair[1]))
        spared = pids[:zombies]
        killed = self.nodes.kill(node, but=spared)
        # Not before: the kernel hangs up on, and wakes, stopped processes whose group loses its parent.
        for pid in spared:
            os.kill(pid, signal.SIGSTOP)
        self.log.note(what, f"SIGKILL, {killed} processes of {node.name}")
        for pid in spared:
            self.log.note(f"zombie {spared.index(pid) + 1} stopped", f"SIGSTOP, process {pid} of that node")
        self.pace.set(HELD_UP)
        self.nodes.start(cpus=2)
        return spared

    def wake(self, pid: int, what: str) -> None:
        """SIGCONT a zombie, and wait until it has brought a receipt that comes too late."""
        assert is_alive(pid), f"zombie {pid} was killed by somebody else"
        when = time.time()
        os.kill(pid, signal.SIGCONT)
        end = time.monotonic() + 120
        while not (refused := self.log.refused_receipts(when)):
            assert time.monotonic() < end, "the zombie brought no receipt"
            time.sleep(0.2)
        receipts = self.log.receipts()
        assert all(receipts[task] < when for task in refused), "others were first"
        tasks = ", ".join(map(str, refused))
        self.log.note(what, f"SIGCONT, process {pid}, whose receipt of {tasks} is refused", when)

    def kill_driver(self, what: str) -> int:
        """SIGKILL it; how many receipts were there."""
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()
        self.log.note(what, f"SIGKILL, process {self._driver.pid}")
        return len(self.log.receipts())


def start(command: Sequence[str], nodes: RayNodes, output: Path) -> subprocess.Popen[bytes]:
    """A driver; what it prints goes to ``output`` with .out and .err."""
    with output.with_suffix(".out").open("wb") as out, output.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen(
            command, env=nodes.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
        )


def finished(driver: subprocess.Popen[bytes], output: Path, seconds: float = 600.0) -> str:
    """What a driver prints that ends well."""
    assert driver.wait(timeout=seconds) == 0, output.with_suffix(".err").read_text()[-3000:]
    return output.with_suffix(".out").read_text()
