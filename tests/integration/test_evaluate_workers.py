"""Shards matched by Ray tasks: the numbers of one process, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.cli import app, console
from tests.sharded import SHARDS, Sets
from workers import evaluate

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("workers"))


def test_workers_change_no_number(sets: Sets, tmp_path: Path, ray_cluster: str) -> None:
    truth, found = sets.dataset.reference, sets.predict("first", [1, 2, 3, 4]).reference
    alone = evaluate(truth, found)
    cache = str(tmp_path / "cache")
    for known in (0, SHARDS):
        shared = evaluate(truth, found, workers=2, cache_uri=cache)
        assert (shared.shards_matched, shared.shards_known) == (SHARDS - known, known)
        for name in ("precision", "recall", "scores"):
            np.testing.assert_array_equal(getattr(shared.metrics, name), getattr(alone.metrics, name))


def test_the_command_shares_and_refuses(
    sets: Sets, tmp_path: Path, ray_cluster: str, capfd: pytest.CaptureFixture[str]
) -> None:
    references = [sets.dataset.reference, sets.predict("first", [1, 2, 3, 4]).reference]
    assert app.run(["evaluate", *references, "--workers", "3", "--json"]) == console.OK
    assert json.loads(capfd.readouterr().out)["shards_matched"] == SHARDS
    report = str(tmp_path / "report.html")
    assert app.run(["evaluate", *references, "--workers", "3", "--report", report]) == console.BAD_INPUT
    assert "Leave workers out" in " ".join(capfd.readouterr().err.split())
    assert not Path(report).exists()


def test_what_a_task_raises_is_raised(sets: Sets, ray_cluster: str) -> None:
    predictions = sets.predict("cut", [1, 2, 3, 7])
    file = next(Path(sets.dataset.uri).glob("labels/cut/*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=file.name):
        evaluate(sets.dataset.reference, predictions.reference, workers=2)
