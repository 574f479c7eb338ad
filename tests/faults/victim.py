"""An ingest that sends itself a signal at a named point: ``python -m tests.faults.victim OPTIONS URI POINT SIGNAL``.

With SIGKILL it dies there; with SIGSTOP it sleeps until it is sent SIGCONT, and goes on as if nothing had happened.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pyarrow as pa

from pipelines.open_files import LocalNewFile
from tests.faults.runs import small_ingest

# Which function, before or after it, at which call.
POINTS: dict[str, tuple[str, str, int]] = {
    "before-write": ("pipelines.shard_writing:ImageShardWriter.finish", "before", 2),
    "between-shard-and-labels": ("pipelines.importing:write_label_shard", "before", 2),
    "between-data-and-receipt": ("pipelines.jobs:Job.finish", "before", 2),
    "between-receipts-and-commit": ("pipelines.importing:commit_images", "before", 1),
    "between-the-commits": ("pipelines.importing:commit_labels", "before", 1),
    "after-commit": ("pipelines.importing:commit_labels", "after", 1),
}
MID_WRITE = "in-mid-write"


def arm(point: str, sign: int) -> None:
    """Patch this process so that the signal is sent at the point."""
    if point == MID_WRITE:
        return _arm_write(sign)
    path, when, at_call = POINTS[point]
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    owner: Any = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, _signalling(getattr(owner, name), when, at_call, sign))
    return None


def _signalling(real: Callable[..., Any], when: str, at_call: int, sign: int) -> Callable[..., Any]:
    calls = 0

    def signalling(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call and when == "before":
            os.kill(os.getpid(), sign)
        result = real(*args, **options)
        if calls == at_call and when == "after":
            os.kill(os.getpid(), sign)
        return result

    return signalling


def _arm_write(sign: int) -> None:
    """Half of the images of the second shard is in its file on the disk when the signal comes."""
    real = LocalNewFile.arrow
    shards = 0

    class Halving(io.FileIO):
        halved = False

        def write(self, content: Any) -> int:
            content = bytes(content)
            if len(content) < 1024 or self.halved:
                return super().write(content)
            self.halved = True
            half = len(content) // 2
            super().write(content[:half])
            os.kill(os.getpid(), sign)
            return half + super().write(content[half:])

    def arrow(self: LocalNewFile) -> pa.NativeFile:
        nonlocal shards
        shards += 1
        return pa.PythonFile(Halving(str(self._temporary), "w"), "w") if shards == 2 else real(self)

    LocalNewFile.arrow = arrow  # type: ignore[method-assign]


def main() -> None:
    options, uri, point, sign = sys.argv[1:]
    arm(point, int(sign))
    version = small_ingest(json.loads(options), uri)
    print(json.dumps(version.to_json()))


if __name__ == "__main__":
    main()
