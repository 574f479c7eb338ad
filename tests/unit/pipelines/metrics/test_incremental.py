"""A second evaluation matches only what changed, and its numbers are those of an evaluation at once."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pipelines.metrics import incremental
from pipelines.metrics.coco import CocoMetrics, evaluate
from pipelines.metrics.incremental import evaluate_incrementally, evaluation_units, merge_units
from pipelines.metrics.pairing import pair
from pipelines.metrics.settings import COCO_AREAS, MatchSettings
from pipelines.predictions import PredictionSet
from pipelines.records import LabelMap
from pipelines.versions import Dataset
from tests.sharded import SHARDS, Sets

ARRAYS = ("precision", "recall", "scores")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("incremental"))


def at_once(dataset: Dataset, predictions: PredictionSet, label_map: LabelMap) -> CocoMetrics:
    """By the reference, from annotations."""
    images = pair(dataset, predictions).images
    truths, found = [(i.image_id, i.truth) for i in images], [(i.image_id, i.found) for i in images]
    return evaluate(truths, found, label_map, engine="pycocotools")


def assert_equal(one: CocoMetrics, other: CocoMetrics) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.num_images == other.num_images
    np.testing.assert_array_equal(one.truths_per_class, other.truths_per_class)
    np.testing.assert_array_equal(one.detections_per_class, other.detections_per_class)


def test_only_changed_shards_are_matched_again(sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    real = incremental.count_unit
    monkeypatch.setattr(
        incremental, "count_unit", lambda unit, *rest: (counted.append(unit.truths[0].image_path), real(unit, *rest))[1]
    )
    cache = str(tmp_path / "cache")
    first = sets.predict("first", [1, 2, 3, 4])
    found = evaluate_incrementally(sets.dataset, first, cache_uri=cache)
    assert (found.matched, found.known, len(counted)) == (SHARDS, 0, SHARDS)
    assert_equal(found.metrics, at_once(sets.dataset, first, sets.label_map))
    assert found.metrics.stats["AP"] > 0.3

    again = evaluate_incrementally(sets.dataset, first, cache_uri=cache)
    assert (again.matched, again.known, len(counted)) == (0, SHARDS, SHARDS)
    assert_equal(again.metrics, found.metrics)

    second = sets.predict("second", [1, 2, 9, 4])
    changed = evaluate_incrementally(sets.dataset, second, cache_uri=cache)
    assert (changed.matched, changed.known) == (1, SHARDS - 1)
    assert counted[SHARDS:] == [sets.shards[2].path]
    assert_equal(changed.metrics, at_once(sets.dataset, second, sets.label_map))
    assert changed.metrics.stats["AP"] != found.metrics.stats["AP"]

    # Other settings or splits are other matches; a file that was cut is made anew.
    others = MatchSettings(areas=COCO_AREAS[:1])
    assert evaluate_incrementally(sets.dataset, first, settings=others, cache_uri=cache).matched == SHARDS
    assert evaluate_incrementally(sets.dataset, first, ["val"], cache_uri=cache).matched == SHARDS
    for path in Path(cache).iterdir():
        path.write_bytes(path.read_bytes()[:100])
    mended = evaluate_incrementally(sets.dataset, first, cache_uri=cache)
    assert mended.matched == SHARDS
    assert_equal(mended.metrics, found.metrics)


def test_the_cache_is_in_the_dataset_unless_named(sets: Sets) -> None:
    guesses = sets.predict("third", [5, 6, 7, 8])
    assert evaluate_incrementally(sets.dataset, guesses).matched == SHARDS
    assert len(sets.store.list_files("_matches")) == SHARDS
    assert evaluate_incrementally(sets.dataset, guesses).known == SHARDS
    with pytest.raises(ValueError, match="no labelled image in split test"):
        evaluate_incrementally(sets.dataset, guesses, ["test"])


def test_processes_count_shards_and_any_order_is_the_same(sets: Sets) -> None:
    guesses = sets.predict("fourth", [9, 8, 7, 6])
    expected = at_once(sets.dataset, guesses, sets.label_map)
    units = evaluation_units(sets.dataset, guesses)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        work = [
            pool.submit(incremental.count_unit, unit, sets.dataset, guesses, None, MatchSettings()) for unit in units
        ]
        parts = [one.result() for one in work]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        counts = merge_units([parts[at] for at in order])
        assert_equal(incremental.metrics_of(counts, sets.label_map, MatchSettings()), expected)
    with pytest.raises(ValueError, match="shards must not overlap"):
        merge_units([parts[0], parts[1], parts[0]])
