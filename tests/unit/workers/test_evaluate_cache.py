"""A cache of matches: only changed shards are matched again, and the numbers are those of a full evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.cli import app, console
from tests.sharded import SHARDS, Sets
from workers import evaluate


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("cache"))


def test_a_second_evaluation_equals_a_full_one(sets: Sets, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    truth = sets.dataset.reference
    first = evaluate(truth, sets.predict("first", [1, 2, 3, 4]).reference, cache_uri=cache)
    assert (first.shards_matched, first.shards_known) == (SHARDS, 0)
    second_ref = sets.predict("second", [1, 8, 3, 9]).reference
    second = evaluate(truth, second_ref, cache_uri=cache)
    assert (second.shards_matched, second.shards_known) == (2, SHARDS - 2)
    full = evaluate(truth, second_ref)
    assert full.shards_matched is None
    by_table = evaluate(truth, second_ref, metrics_uri=str(tmp_path / "m.json"), cache_uri=cache, resamples=0)
    assert by_table.shards_matched is None  # the file needs the matches themselves
    for other in (full, by_table):
        for name in ("precision", "recall", "scores"):
            np.testing.assert_array_equal(getattr(second.metrics, name), getattr(other.metrics, name))
        assert (second.splits, second.images_without_row) == (other.splits, other.images_without_row)
    assert first.stats != second.stats


def test_the_command_says_how_much_was_known(sets: Sets, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cache", str(tmp_path / "cache")]
    told = []
    for name, seeds in (("third", [1, 2, 3, 4]), ("fourth", [1, 2, 3, 5])):
        references = [sets.dataset.reference, sets.predict(name, seeds).reference]
        assert app.run(["evaluate", *references, *arguments, "--json"]) == console.OK
        found = json.loads(capfd.readouterr().out)
        told.append((found["shards_matched"], found["shards_known"]))
    assert told == [(SHARDS, 0), (1, SHARDS - 1)]
    assert app.run(["evaluate", *references, *arguments]) == console.OK
    assert f"shards matched: 0, known from the cache: {SHARDS}" in " ".join(capfd.readouterr().err.split())
