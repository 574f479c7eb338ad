"""Processes that race to commit: of one plan exactly one wins, of different plans all land."""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines import open_dataset
from tests.conftest import S3Server
from tests.making import commit_records, record

RACERS = 4
ROUNDS = 3


def _commit(args: tuple[str, int, bool, Any]) -> list[dict[str, Any]]:
    uri, racer, same, barrier = args
    results = []
    for i in range(ROUNDS):
        barrier.wait(60)
        if same:
            version = commit_records(uri, [record(i, prefix=str(i))], plan_id=f"plan-{i}")
        else:
            version = commit_records(uri, [record(i, prefix=f"{racer}-{i}")], plan_id=f"plan-{racer}-{i}")
        results.append(asdict(version))
    return results


def _race(uri: str, *, same: bool) -> list[list[dict[str, Any]]]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(RACERS) as pool:
        barrier = manager.Barrier(RACERS)
        return pool.map(_commit, [(uri, racer, same, barrier) for racer in range(RACERS)], chunksize=1)


def _check_same_plan(uri: str) -> None:
    found = _race(uri, same=True)
    for i in range(ROUNDS):
        made = [results[i] for results in found]
        assert sum(not version["found"] for version in made) == 1
        assert len({version["reference"] for version in made}) == 1
        assert len({version["digest"] for version in made}) == 1
    dataset = open_dataset(uri)
    assert dataset.num_images == ROUNDS == dataset.index().num_rows


def _check_different_plans(uri: str) -> None:
    found = [version for results in _race(uri, same=False) for version in results]
    assert not any(version["found"] for version in found)
    # Each built on the one before it: no two saw the same predecessor, so the sums are exact in every version.
    assert sorted(version["num_images"] for version in found) == list(range(1, RACERS * ROUNDS + 1))
    dataset = open_dataset(uri)
    assert dataset.num_images == RACERS * ROUNDS == dataset.index().num_rows
    assert dataset.metadata["ledger"]["images"]["imported"] == RACERS * ROUNDS
    assert len(set(dataset.index()["image_id"].to_pylist())) == RACERS * ROUNDS


def test_same_plan_on_a_local_disk(tmp_path: Path) -> None:
    _check_same_plan(str(tmp_path / "d"))


def test_different_plans_on_a_local_disk(tmp_path: Path) -> None:
    _check_different_plans(str(tmp_path / "d"))


@pytest.mark.parametrize("same", [True, False])
def test_on_s3(s3_server: S3Server, same: bool) -> None:
    uri = s3_server.uri(f"race-{same}")
    (_check_same_plan if same else _check_different_plans)(uri)
