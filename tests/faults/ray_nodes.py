"""A Ray cluster of several nodes on this machine, each with processes of its own that can be killed like a machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import free_port

_RAY = Path(sys.executable).parent / "ray"
_LABELLING = "MapWorker(Map(LabelShard))"  # Ray writes the class into a worker's title
_STARTS = 4
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    # A machine that is busy with other things is no error.
    "RAY_worker_register_timeout_seconds": "300",
    # A dead node is noticed after seconds, not after most of a minute; one that answers slowly is not dead.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    # A worker that has lost its node goes on for so long before it looks: zombies are to have the time to do harm.
    "RAY_raylet_death_check_interval_milliseconds": "600000",
}


@dataclass(eq=False, slots=True)
class Node:
    """``ray start`` and whatever it has started."""

    name: str
    process: subprocess.Popen[bytes]

    def workers(self) -> list[int]:
        """Process ids of its labelling workers."""
        return [pid for pid in descendants(self.process.pid) if _LABELLING in _title(pid)]


class RayNodes:
    """The head, and nodes that come and go.

    Args:
        environment: of all nodes, as a machine's; keys of stores are in it.

    Attributes:
        address: of the head, for drivers.
        environment: of a driver.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Their sockets lie below, and paths of sockets must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="bxm", dir="/tmp"))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        self.environment = {**clean, **environment, **_SETTINGS}
        self.address = f"127.0.0.1:{free_port()}"
        self._nodes: list[Node] = []
        self._begun = 0
        self._left: set[int] = set()

    @property
    def nodes(self) -> list[Node]:
        """Those that live; the head is the first."""
        return list(self._nodes)

    def start(self, *, cpus: int) -> Node:
        """The head, or one more node; returns when it has joined."""
        for attempt in range(_STARTS):
            node = self._begin(cpus)
            while node.process.poll() is None:
                if b"Ray runtime started" in self._log(node).read_bytes():
                    return node
                time.sleep(0.1)
            # Ray gives a node 30 seconds to join, which may be too few on a machine that is busy with other things.
            assert attempt < _STARTS - 1, self._log(node).read_text()[-3000:]
            self._nodes.remove(node)
        raise AssertionError("unreachable")

    def _begin(self, cpus: int) -> Node:
        self._begun += 1
        command = [os.fspath(_RAY), "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"]
        command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
        # An address of its own: a driver joins the node that has its own, and must not join one that will be killed.
        address = f"127.0.0.{self._begun if self._nodes else 1}"
        command += [f"--node-ip-address={address}", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--include-log-monitor=false"]
        if not self._nodes:
            command += ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
            # Nobody asks for a monitor, and the usual port of the client server may be another cluster's.
            command += ["--no-monitor", f"--ray-client-server-port={free_port()}", f"--temp-dir={self.folder}/ray"]
        else:
            command += [f"--address={self.address}"]
        name = f"node-{self._begun}" if self._nodes else "head"
        with (self.folder / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(name, process)
        self._nodes.append(node)
        return node

    def _log(self, node: Node) -> Path:
        return self.folder / f"{node.name}.log"

    def kill(self, node: Node, *, but: Collection[int] = ()) -> int:
        """All processes of a node at once, as when its plug is pulled; how many.

        Args:
            node: any but the head.
            but: processes that outlive it, for the caller to end.
        """
        self._nodes.remove(node)
        doomed = [pid for pid in descendants(node.process.pid) if pid not in but]
        # Who would tidy up after the others comes first.
        doomed.sort(key=lambda pid: "process_reaper" not in _title(pid))
        for pid in [node.process.pid, *doomed]:
            _kill(pid)
        node.process.wait()
        self._left.update(but)
        return 1 + len(doomed)

    def stop(self) -> None:
        """Everything that was started, zombies too."""
        for pid in self._left:
            _kill(pid)
        for node in reversed(self.nodes):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def ray_nodes(environment: Mapping[str, str], cpus: Collection[int]) -> Iterator[RayNodes]:
    """A cluster with a node for each of ``cpus``, the head first, until the block is left."""
    nodes = RayNodes(environment)
    try:
        for count in cpus:
            nodes.start(cpus=count)
        yield nodes
    finally:
        nodes.stop()


def descendants(pid: int) -> list[int]:
    """Living children of a process and theirs, parents before children."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        state, parent = _stat(int(path.name))
        if state not in ("", "Z"):
            children.setdefault(parent, []).append(int(path.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def is_alive(pid: int) -> bool:
    return _stat(pid)[0] not in ("", "Z")


def _stat(pid: int) -> tuple[str, int]:
    """State and parent; an empty state where there is no such process."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return "", 0
    return state, int(parent)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
