"""One small ingest, undisturbed or disturbed, and what a version holds down to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.commits import DatasetVersion
from pipelines.shard_paths import index_path, shard_stem
from pipelines.sources import open_source
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco

IMAGES, TASKS = 11, 3


def small_source(folder: Path) -> dict[str, str]:
    """Options of a COCO source of 11 images, one of them cut off."""
    images = coco_images(IMAGES)
    images["5.jpg"] = images["5.jpg"][:-20]
    return write_coco(folder, "train", coco_document(IMAGES), images)


def small_ingest(options: dict[str, str], uri: str) -> DatasetVersion:
    """In this process, three tasks of four images."""
    # Not `import workers.ingest`: the package shows the function under that name.
    planning, ingest = (import_module(name) for name in ("pipelines.planning", "workers.ingest"))
    before = planning.MAX_SHARD_IMAGES, ingest._TASKS_WITHOUT_RAY
    planning.MAX_SHARD_IMAGES, ingest._TASKS_WITHOUT_RAY = 4, 100
    try:
        return ingest.ingest(open_source("coco", **options), uri)
    finally:
        planning.MAX_SHARD_IMAGES, ingest._TASKS_WITHOUT_RAY = before


def content(uri: str) -> dict[str, Any]:
    """Everything that a version says and holds: number, metadata, and the sha256 of each of its files."""
    dataset = open_dataset(uri)
    store = Store.open(dataset.uri)
    paths = [
        path
        for shard in dataset.shards
        for path in (shard.image_path, shard.label_path, index_path(shard_stem(shard.image_path)))
    ]
    return {
        "version": dataset.version,
        "metadata": dict(dataset.metadata),
        "files": {path: hashlib.sha256(store.read_bytes(path)).hexdigest() for path in paths},
        "annotations": [found[:4] for found in dataset.annotations()],
    }


def start_victim(options: dict[str, str], uri: str, point: str, sign: int) -> subprocess.Popen[bytes]:
    """An ingest in a process of its own that sends itself a signal at a named point; see tests.faults.victim."""
    command = [sys.executable, "-m", "tests.faults.victim", json.dumps(options), uri, point, str(int(sign))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def wait_until_stopped(process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    """Until the process has stopped itself with SIGSTOP."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG)
        if pid and os.WIFSTOPPED(status):
            return
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            raise AssertionError(f"ended with {process.returncode} instead of stopping: {process.stderr.read()!r}")
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    raise AssertionError("the process never came to the point where it stops itself")
