"""A second evaluation matches only what changed, and its numbers are those of an evaluation at once."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.commits import commit_images, commit_labels
from pipelines.ledger import Ledger
from pipelines.metrics import incremental
from pipelines.metrics.coco import CocoMetrics, evaluate
from pipelines.metrics.incremental import evaluate_incrementally, evaluation_units, merge_units
from pipelines.metrics.pairing import pair
from pipelines.metrics.settings import COCO_AREAS, MatchSettings
from pipelines.predictions import PredictionSet, commit_predictions, open_predictions, write_predictions
from pipelines.records import ImageRecord, LabelMap
from pipelines.shard_paths import shard_stem
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.storage import Store
from pipelines.versions import Dataset, open_dataset
from tests.evaluated import guessed_rows, synthetic_records

ARRAYS = ("precision", "recall", "scores")
SHARDS = 4


class Sets:
    """Shards whose images interleave by COCO id; predictions with tied scores, written anew for some shards."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self.store = Store.open(self.uri)
        records, self.label_map = synthetic_records(0, 20)
        records = [replace(r, coco_image_id=(at * 7) % 20 + 1) for at, r in enumerate(records)]
        self.parts = [records[at::SHARDS] for at in range(SHARDS)]
        self.shards = [write_image_shard(self.store, part) for part in self.parts]
        images = commit_images(self.uri, self.shards, plan_id="images")
        labels = [
            write_label_shard(self.store, "gt", shard.path, label_rows(part))
            for shard, part in zip(self.shards, self.parts, strict=True)
        ]
        made = commit_labels(
            self.uri, "gt", labels, plan_id="truth", label_map=self.label_map, images_version=images, ledger={}
        )
        self.dataset = open_dataset(made.reference)

    def predict(self, name: str, seeds: list[int]) -> PredictionSet:
        files = [
            write_predictions(self.store, name, shard_stem(shard.path), self._rows(part, seed))
            for shard, part, seed in zip(self.shards, self.parts, seeds, strict=True)
        ]
        made = commit_predictions(
            *(self.uri, name, files),
            plan_id=name,
            label_map=self.label_map,
            images_version=0,
            ledger=Ledger(),
            provenance={},
        )
        return open_predictions(made.reference)

    def _rows(self, part: list[ImageRecord], seed: int) -> list[Any]:
        rows = []
        for row in guessed_rows(part, seed=seed):
            assert row.annotations is not None and row.annotations.scores is not None
            rows.append(replace(row, annotations=replace(row.annotations, scores=row.annotations.scores.round(1))))
        return rows


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
