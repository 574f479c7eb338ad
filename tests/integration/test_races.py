"""Many processes commit at once: sixteen with twenty plans each, eight with the same plan, and answers that get lost.

Small races on every run are in test_commit_race.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines.versions import open_dataset
from tests.conftest import S3Server
from tests.faults.remote import remote_proxy
from tests.faults.rules import Rule
from tests.making import commit_records, record
from tests.s3.rgw import use_server

RACERS, PLANS, SAME = 16, 20, 8


def _many_plans(args: tuple[str, int, Any]) -> list[dict[str, Any]]:
    uri, racer, barrier = args
    barrier.wait(120)
    return [
        asdict(commit_records(uri, [record(i, prefix=f"{racer}-{i}")], plan_id=f"plan-{racer}-{i}"))
        for i in range(PLANS)
    ]


def _one_plan(args: tuple[str, int, Any]) -> dict[str, Any]:
    uri, _, barrier = args
    barrier.wait(120)
    return asdict(commit_records(uri, [record(i) for i in range(5)], plan_id="the-same"))


def _race(target: Any, uri: str, racers: int) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(racers) as pool:
        barrier = manager.Barrier(racers)
        return pool.map(target, [(uri, racer, barrier) for racer in range(racers)], chunksize=1)


def _all_land(uri: str) -> None:
    versions = [version for results in _race(_many_plans, uri, RACERS) for version in results]
    total = RACERS * PLANS
    # Each commit counts one image more than the one it builds on: nothing lost, nothing doubled, no gaps.
    assert sorted(version["num_images"] for version in versions) == list(range(1, total + 1))
    dataset = open_dataset(uri)
    ids = dataset.index()["image_id"].to_pylist()
    assert dataset.num_images == total == len(ids) == len(set(ids))
    assert dataset.metadata["ledger"]["images"]["imported"] == total


def _one_lands(uri: str) -> None:
    versions = _race(_one_plan, uri, SAME)
    assert len({version["reference"] for version in versions}) == 1
    assert len({version["digest"] for version in versions}) == 1
    # One made it and knows that, even where it did not hear of it.
    assert sum(version["found"] for version in versions) == SAME - 1
    dataset = open_dataset(uri)
    assert (dataset.version, dataset.num_images, dataset.index().num_rows) == (1, 5, 5)
    assert len(dataset.history()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixteen_times_twenty_plans_on_a_local_disk(tmp_path: Path):
    _all_land(str(tmp_path / "d"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixteen_times_twenty_plans_on_s3(any_s3_server: S3Server):
    _all_land(any_s3_server.uri("races/many"))


def test_eight_with_the_same_plan_on_a_local_disk(tmp_path: Path):
    _one_lands(str(tmp_path / "d"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_with_the_same_plan_on_s3(any_s3_server: S3Server):
    _one_lands(any_s3_server.uri("races/same"))


@pytest.mark.timeout(600)
def test_eight_with_the_same_plan_and_lost_answers(any_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch):
    """The server commits, and the winner never hears of it: all eight must find the one commit."""
    with remote_proxy(any_s3_server.endpoint) as proxy:
        use_server(any_s3_server, monkeypatch, endpoint=proxy.endpoint)
        # The label commit has a rule of its own: the others' requests must not use up its faults.
        rules = [(r"labels/gt/_delta_log/0+1\.json", SAME), (r"_delta_log/\d+\.json", 2 * SAME)]
        proxy.set_rules([Rule(fault="lose_answer", method="PUT", path=path, count=count) for path, count in rules])
        uri = any_s3_server.uri("races/lost")
        _one_lands(uri)
        lost = [entry for entry in proxy.faults() if entry.status == 200]
        assert any("labels/gt/_delta_log/00000000000000000001.json" in entry.path for entry in lost)
