"""Everything that a network can do to an ingest into a bucket ends in the version of an undisturbed one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.shards import CorruptShard, read_image
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.conftest import S3Server
from tests.faults.remote import RemoteProxy, remote_proxy
from tests.faults.rules import Fault, Rule
from tests.faults.runs import content, small_ingest, small_source, start_victim, wait_until_stopped
from tests.s3.rgw import use_server

WRITES = {
    "plan": "plan.parquet",
    "index": "images/_index/part-",
    "shard": "images/part-",
    "labels": "labels/gt/part-",
    "receipt": "done/000001.json",
    "images-table": "images/_delta_log/00000000000000000000.json",
    "images-commit": "images/_delta_log/00000000000000000001.json",
    "labels-commit": "labels/gt/_delta_log/00000000000000000001.json",
}
READS = {
    "plan": "plan.parquet",
    "receipt": "done/000001.json",
    "log": "_delta_log/.*json",
    "list": "list-type=2",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("source")
    options = small_source(folder)
    small_ingest(options, str(folder / "dataset"))
    return options, content(str(folder / "dataset"))


@pytest.fixture
def proxy(any_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteProxy]:
    """In front of the server; this process talks to it."""
    with remote_proxy(any_s3_server.endpoint) as proxy:
        use_server(any_s3_server, monkeypatch, endpoint=proxy.endpoint)
        yield proxy


@pytest.fixture
def new_uri(any_s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return any_s3_server.uri(f"faults/{name}")


def _rules(fault: Fault, *, count: int = 1) -> list[Rule]:
    """The fault for the first ``count`` requests of each sort."""
    match fault:
        case "cut":
            return [Rule(fault=fault, method="GET", path=p, count=count) for p in READS.values()]
        case "stall":
            return [Rule(fault=fault, path=p, count=count, seconds=1.5) for p in (READS["plan"], READS["log"])]
        case "lose_answer":
            return [Rule(fault=fault, method="PUT", path=p, count=count) for p in WRITES.values()]
        case _:
            writes = [Rule(fault=fault, method="PUT", path=p, count=count) for p in WRITES.values()]
            return writes + [Rule(fault=fault, method="GET", path=p, count=count) for p in READS.values()]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["error_503", "stall", "cut", "reset", "lose_answer"])
def test_one_run_outlives_each_fault_once(fault: Fault, proxy: RemoteProxy, new_uri: str, source):
    options, expected = source
    rules = _rules(fault)
    proxy.set_rules(rules)
    small_ingest(options, new_uri)
    hit = proxy.faults()
    assert len(hit) == len(rules), [entry.path for entry in hit]
    proxy.clear()
    assert content(new_uri) == expected


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "write", [pytest.param(name, marks=() if name == "labels-commit" else pytest.mark.slow) for name in WRITES]
)
def test_a_write_that_is_refused_for_long_is_resumed(write: str, proxy: RemoteProxy, new_uri: str, source):
    options, expected = source
    proxy.set_rules([Rule(fault="reset", method="PUT", path=WRITES[write], count=0)])
    with pytest.raises(OSError):
        small_ingest(options, new_uri)
    proxy.clear()
    small_ingest(options, new_uri)
    assert content(new_uri) == expected


@pytest.mark.parametrize("point", ["between-data-and-receipt", "between-the-commits"])
def test_killed_over_s3(point: str, proxy: RemoteProxy, new_uri: str, source):
    options, expected = source
    with start_victim(options, new_uri, point, signal.SIGKILL) as victim:
        assert victim.wait(120) == -signal.SIGKILL
    small_ingest(options, new_uri)
    assert content(new_uri) == expected


def test_a_zombie_wakes_on_s3_after_its_replacement_has_committed(proxy: RemoteProxy, new_uri: str, source):
    options, expected = source
    with start_victim(options, new_uri, "between-data-and-receipt", signal.SIGSTOP) as zombie:
        try:
            wait_until_stopped(zombie)
            replacement = small_ingest(options, new_uri)
            os.kill(zombie.pid, signal.SIGCONT)
            _, errors = zombie.communicate(timeout=120)
        finally:
            zombie.kill()
    assert zombie.returncode == 0, errors.decode()
    assert content(new_uri) == expected
    assert open_dataset(new_uri).reference == replacement.reference


@pytest.mark.parametrize("write", ["shard", "labels", "receipt", "labels-commit"])
def test_killed_while_a_put_is_in_flight(write: str, proxy: RemoteProxy, new_uri: str, source):
    """The server has the file, the process that sent it dies before it hears so."""
    options, expected = source
    proxy.set_rules([Rule(fault="stall", method="PUT", path=WRITES[write], seconds=60)])
    with start_victim(options, new_uri, "after-commit", signal.SIGKILL) as victim:
        try:
            _wait_for(lambda: bool(proxy.faults()))
        finally:
            victim.kill()
    proxy.clear()
    small_ingest(options, new_uri)
    assert content(new_uri) == expected


def _wait_for(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    import time

    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_flipped_bits_are_found_and_named(proxy: RemoteProxy, new_uri: str, source, tmp_path: Path):
    options, _ = source
    small_ingest(options, new_uri)
    first = open_dataset(new_uri).shards[0]

    def flip(path: str) -> None:
        proxy.set_rules([Rule(fault="flip", method="GET", path=path, count=0)])

    flip("images/part-")
    with pytest.raises((CorruptShard, OSError), match=first.image_path):
        read_image(first, 0)
    # Of each answer one bit in the middle: of three shards one may be hit where it says nothing, as between images.
    with pytest.raises((CorruptShard, OSError), match=r"images/part-[0-9a-f]+\.parquet"):
        list(open_dataset(new_uri).records())
    flip("labels/gt/part-")
    with pytest.raises((CorruptShard, OSError), match=r"labels/gt/part-[0-9a-f.]+parquet"):
        list(open_dataset(new_uri).annotations())
    with pytest.raises((CorruptShard, OSError), match=r"labels/gt/part-[0-9a-f.]+parquet"):
        open_dataset(new_uri).index()
    proxy.clear()
    assert Store.open(new_uri).exists(first.label_path)
    assert sum(1 for _ in open_dataset(new_uri).records()) == 10


@pytest.mark.parametrize("method, path", [("HEAD", "burst"), ("GET", "list-type=2")])
def test_a_burst_that_outlasts_the_clients_own_retries(
    proxy: RemoteProxy, new_uri: str, method: str, path: str
) -> None:
    store = Store.open(new_uri)
    store.write_bytes("burst/a", b"here")
    # The client gives up after five; a look at what is there goes on as a read does.
    proxy.set_rules([Rule(fault="error_503", method=method, path=path, count=7)])
    store.fs.invalidate_cache()
    if method == "HEAD":
        assert store.exists("burst/a")
    else:
        assert [stat.path for stat in store.list_files("burst")] == ["burst/a"]
        store.fs.invalidate_cache()
        assert store.children("burst") == ["a"]
    assert len(proxy.faults()) == 7
