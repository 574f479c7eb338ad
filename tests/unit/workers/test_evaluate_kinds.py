"""Evaluation of masks and keypoints, and by LVIS's rules, from references to numbers and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.metrics.pairing import pair
from pipelines.predictions import PredictionSet, open_predictions
from pipelines.records import ImageRecord, LabelMap
from pipelines.shard_writing import label_rows
from pipelines.versions import Dataset, open_dataset
from tests.evaluated import synthetic_records, write_dataset, write_guesses
from workers.evaluate import evaluate
from workers.evaluate_protocols import measure_lvis


def perfect(dataset: Dataset, records: list[ImageRecord], label_map: LabelMap) -> PredictionSet:
    """Predictions that are the truth, with its masks and keypoints."""
    rows = [
        replace(row, annotations=replace(row.annotations, scores=np.full(len(row.annotations), 0.9)), status="ok")
        for row in label_rows(records)
        if row.annotations is not None
    ]
    return write_guesses(dataset, rows, label_map)


def test_masks_that_are_the_truth_are_perfect_and_drawn(tmp_path: Path) -> None:
    records, label_map = synthetic_records(0, 4)
    dataset = write_dataset(tmp_path / "d", records, label_map)
    predictions = perfect(dataset, records, label_map)
    report = tmp_path / "r.html"
    found = evaluate(dataset.reference, predictions.reference, iou_type="segm", report_uri=str(report), resamples=10)
    assert found.stats["AP"] == pytest.approx(1.0)
    assert found.to_json()["iou_type"] == "segm"
    page = report.read_text()
    assert "COCO masks" in page
    # Of truth and of predictions, in every picture.
    assert page.count('class="mask"') == 2 * sum(len(r.annotations) for r in records if r.annotations is not None)
    # A figure's keypoints, twice.
    assert page.count('class="bone"') > 0


def test_keypoints_need_their_spread_and_take_it(tmp_path: Path) -> None:
    records, label_map = synthetic_records(0, 6)
    dataset = write_dataset(tmp_path / "d", records, label_map)
    predictions = perfect(dataset, records, label_map)
    (category,) = [c for c in label_map.categories if c.keypoints]
    with pytest.raises(ValueError, match=f"category '{category.name}' has {len(category.keypoints)} keypoints and no"):
        evaluate(dataset.reference, predictions.reference, iou_type="keypoints")
    sigmas = {category.name: [0.1] * len(category.keypoints)}
    found = evaluate(dataset.reference, predictions.reference, iou_type="keypoints", oks_sigmas=sigmas)
    assert found.stats["AP"] == pytest.approx(1.0)
    assert len(found.stats) == 10


def test_lvis_judges_only_classes_that_were_looked_for(tmp_path: Path) -> None:
    records, label_map = synthetic_records(0, 4)
    ids = [c.category_id for c in label_map.categories]

    def verified(record: ImageRecord) -> ImageRecord:
        assert record.annotations is not None
        there = set(record.annotations.category_ids.tolist())
        # One absent class of each image was looked for, the others nobody knows of.
        absent = [i for i in ids if i not in there][:1]
        return replace(record, extra={"neg_category_ids": absent, "not_exhaustive_category_ids": []})

    records = [verified(record) for record in records]
    dataset = write_dataset(tmp_path / "d", records, label_map)
    rows = []
    for row in label_rows(records):
        assert row.annotations is not None
        # Everything that is there, and each class once more, with a better score, where nothing is.
        n = len(row.annotations) + len(ids)
        boxes = np.concatenate([row.annotations.boxes_xywh, np.tile([[1.0, 1.0, 4.0, 4.0]], (len(ids), 1))])
        categories = np.concatenate([row.annotations.category_ids, ids])
        objects = row.annotations.from_boxes(
            boxes, categories, scores=np.r_[np.full(n - len(ids), 0.5), np.full(len(ids), 0.9)]
        )
        rows.append(replace(row, annotations=objects, status="ok"))
    predictions = write_guesses(dataset, rows, label_map)
    found = evaluate(dataset.reference, predictions.reference, protocol="lvis", metrics_uri=str(tmp_path / "m.json"))
    unjudged = sum(
        len(set(ids) - set(r.annotations.category_ids.tolist()) - set(r.extra["neg_category_ids"]))
        for r in records
        if r.annotations is not None
    )
    assert unjudged > 0
    told = found.to_json()
    assert told["protocol"] == "lvis"
    assert told["num_unjudged"] == unjudged
    assert found.analysis is not None
    assert found.analysis.table.num_detections == predictions.num_objects - unjudged
    assert (
        found.stats["AP"]
        == found.metrics.stats["AP"]
        < evaluate(dataset.reference, predictions.reference).stats["AR_100"]
    )
    pairs, _ = measure_lvis(
        open_dataset(dataset.reference), pair(dataset, open_predictions(predictions.reference)), "bbox"
    )
    assert sum(len(image.found) for image in pairs.images) == predictions.num_objects - unjudged
