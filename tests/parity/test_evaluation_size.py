"""A set of COCO's validation size against pycocotools, whole and in shards: minutes of CPU."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.metrics.coco import evaluate_columns, metrics_of
from pipelines.metrics.columns import ObjectColumns
from pipelines.metrics.counting import count_columns, merge_counts
from pipelines.metrics.reading import read_columns
from pipelines.metrics.settings import coco_settings
from pipelines.predictions import open_predictions
from pipelines.records import IntArray
from pipelines.versions import open_dataset
from tests.benchmarks.detected import make_detected

IMAGES = 5_000
ARRAYS = ("precision", "recall", "scores")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_arrays_of_boxes_at_full_size(tmp_path: Path) -> None:
    made = make_detected(tmp_path, IMAGES, masks=False)
    assert made.num_detections == 500_000 and 35_000 < made.num_truths < 39_000
    expected = by_cocotools(made.truth_json, made.results_json)
    dataset, predictions = open_dataset(made.dataset), open_predictions(made.predictions)
    truth, found = read_columns(dataset, predictions)
    assert len(np.unique(found.scores)) < 110  # most are tied
    settings, label_map = coco_settings("bbox"), dataset.label_map
    whole = evaluate_columns(truth, found, label_map, settings)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(whole, name), expected[name], err_msg=name)
    rng = np.random.default_rng(0)
    for shards in (2, 4, 7):
        images = np.array_split(rng.permutation(IMAGES), shards)
        parts = [count_columns(*(of_images(c, own) for c in (truth, found)), label_map, settings) for own in images]
        merged = metrics_of(merge_counts([parts[at] for at in rng.permutation(shards)]), label_map, settings)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(merged, name), expected[name], err_msg=f"{shards} shards: {name}")


def by_cocotools(truth: Path, results: Path) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(str(truth))
        evaluation = COCOeval(dataset, dataset.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return dict(evaluation.eval)


def of_images(columns: ObjectColumns, images: IntArray) -> ObjectColumns:
    """A shard."""
    images = np.sort(images)
    rows = np.flatnonzero(np.isin(columns.images, images))
    return replace(
        columns.take(rows),
        image_ids=tuple(columns.image_ids[at] for at in images),
        image_numbers=columns.image_numbers[images],
        images=np.searchsorted(images, columns.images[rows]),
    )
