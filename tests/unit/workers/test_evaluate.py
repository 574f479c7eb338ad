"""Evaluation on the seam: references in, numbers and files out, and what does not fit is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.metrics.coco import evaluate_boxes
from pipelines.records import LabelMap
from pipelines.references import CategoryMismatch, DatasetNotFound
from tests.evaluated import guessed_rows, make_evaluated, synthetic_records, write_dataset, write_guesses
from workers.evaluate import evaluate


def test_numbers_and_files(tmp_path: Path) -> None:
    made = make_evaluated(tmp_path / "dataset", num_train=4, num_val=8)
    steps: list[tuple[str, int, int]] = []
    result = evaluate(
        made.dataset.reference,
        made.predictions.reference,
        ["val"],
        str(tmp_path / "out/report.html"),
        metrics_uri=str(tmp_path / "out/metrics.json"),
        progress=lambda stage, done, total, **numbers: steps.append((stage, done, total)),
    )
    truths = [(row[0], row[4]) for row in made.dataset.annotations(["val"])]
    found = [(row[0], row[4]) for row in made.predictions.annotations()]
    assert result.metrics.stats == evaluate_boxes(truths, found, made.dataset.label_map).stats
    assert 0.3 < result.metrics.stats["AP"] < 0.9
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["stats"]["AP50"] == result.metrics.stats["AP50"]
    assert written["dataset_ref"] == made.dataset.reference
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
    assert steps[-1] == ("evaluate", 3, 3)
    assert not result.unknown_images
    assert not result.images_without_row


def test_perfect_predictions_of_other_ids_and_order(tmp_path: Path) -> None:
    """Categories are matched by name: the model's ids and their order are its own."""
    records, label_map = synthetic_records(0, 5)
    dataset = write_dataset(tmp_path / "dataset", records, label_map)
    own = LabelMap.from_json(
        [{**c, "id": 50 - c["id"], "keypoints": [], "skeleton": []} for c in reversed(label_map.to_json())]
    )
    rows = []
    for row in guessed_rows(records):
        truth = next(r.annotations for r in records if r.image_id == row.image_id)
        assert truth is not None
        found = replace(truth, category_ids=50 - truth.category_ids, scores=np.full(len(truth), 0.9))
        rows.append(replace(row, annotations=found))
    predictions = write_guesses(dataset, rows, own)
    assert evaluate(dataset.reference, predictions.reference).metrics.stats["AP"] == pytest.approx(1.0)


def test_a_category_that_the_truth_does_not_have(tmp_path: Path) -> None:
    records, label_map = synthetic_records(0, 3)
    dataset = write_dataset(tmp_path / "dataset", records, label_map)
    renamed = [{**c, "name": "dog" if c["name"] == "star" else c["name"]} for c in label_map.to_json()]
    predictions = write_guesses(dataset, guessed_rows(records), LabelMap.from_json(renamed))
    with pytest.raises(CategoryMismatch, match=r"categories that .* has not: dog; the dataset has star"):
        evaluate(dataset.reference, predictions.reference)


def test_images_that_do_not_fit_are_counted_and_named(tmp_path: Path) -> None:
    records, label_map = synthetic_records(2, 6)
    dataset = write_dataset(tmp_path / "dataset", records, label_map)
    rows = [row for row in guessed_rows(records) if row.split == "val"]
    rows[0] = replace(rows[0], image_id="elsewhere/cat.jpg")
    rows[1] = replace(rows[1], annotations=None, status="failed", error="truncated")
    rows = rows[:-1]
    predictions = write_guesses(dataset, rows, label_map)
    result = evaluate(dataset.reference, predictions.reference, ["val"], str(tmp_path / "r.html"))
    assert result.unknown_images == ("elsewhere/cat.jpg",)
    assert result.failed_images == ("val/000001.jpg",)
    assert result.images_without_row == ("val/000000.jpg", "val/000005.jpg")
    assert result.metrics.num_images == 6
    page = (tmp_path / "r.html").read_text()
    assert "1 predicted image is not in the dataset and is not measured: elsewhere/cat.jpg" in page
    assert "2 images with truth have no prediction and count as nothing found: val/000000.jpg" in page
    # Predictions on images of other splits are neither unknown nor measured.
    assert evaluate(dataset.reference, predictions.reference, ["train"]).unknown_images == ("elsewhere/cat.jpg",)


def test_refusals(tmp_path: Path) -> None:
    made = make_evaluated(tmp_path / "dataset", num_train=2, num_val=3)
    with pytest.raises(ValueError, match="no split 'test'; it has 'train', 'val'"):
        evaluate(made.dataset.reference, made.predictions.reference, ["test"])
    with pytest.raises(DatasetNotFound):
        evaluate(str(tmp_path / "datasets"), made.predictions.reference)
    with pytest.raises(ValueError, match="truth, not predictions"):
        evaluate(made.dataset.reference, made.dataset.reference)
