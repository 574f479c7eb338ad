"""The proxy in a process of its own.

delta-rs holds the interpreter's lock while it waits for some answers: a proxy in the same process could not give them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tests.faults.rules import Entry, Rule


class RemoteProxy:
    """Talks to the control port; see ``tests.faults.rules.Script`` for what the calls mean."""

    def __init__(self, endpoint: str, control: str) -> None:
        self.endpoint = endpoint
        self._control = control

    def set_rules(self, rules: Iterable[Rule]) -> None:
        self._call("PUT", "/rules", [asdict(rule) for rule in rules])

    @property
    def log(self) -> list[Entry]:
        return self.log_from(0)

    def log_from(self, first: int) -> list[Entry]:
        """The log without its first entries."""
        return [Entry(**entry) for entry in self._call("GET", f"/log?{first}")]

    def faults(self) -> list[Entry]:
        return [entry for entry in self.log if entry.fault is not None]

    def clear(self) -> None:
        self._call("DELETE", "/")

    def _call(self, method: str, path: str, value: object = None) -> Any:
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self._control + path, body, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


@contextmanager
def remote_proxy(upstream: str) -> Iterator[RemoteProxy]:
    """A proxy in front of ``upstream``, until the block is left."""
    command = [sys.executable, "-m", "tests.faults.proxy", upstream]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield RemoteProxy(**json.loads(process.stdout.readline()))
        finally:
            process.kill()
