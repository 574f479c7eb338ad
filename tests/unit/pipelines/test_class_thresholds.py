"""Thresholds by class: their names, and what an evaluation has written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.class_thresholds import check_class_names
from pipelines.records import Category, LabelMap
from pipelines.threshold_files import read_class_thresholds
from tests.evaluated import make_evaluated
from workers.evaluate import evaluate

LABEL_MAP = LabelMap(categories=tuple(Category(category_id=i * 3, name=n) for i, n in enumerate(["cat", "dog", "cow"])))


def test_unknown_classes_are_refused_with_the_nearest_one() -> None:
    check_class_names(["cow", "cat"], LABEL_MAP)
    with pytest.raises(ValueError, match="the class 'dogs', which the predictions have not; did you mean 'dog'"):
        check_class_names(["cat", "dogs"], LABEL_MAP)
    with pytest.raises(ValueError, match="it has cat, dog, cow"):
        check_class_names(["zebra"], LABEL_MAP)


def test_an_evaluations_best_thresholds_are_read(tmp_path: Path) -> None:
    made = make_evaluated(tmp_path / "scenes", num_train=4, num_val=8)
    metrics = str(tmp_path / "metrics.json")
    found = evaluate(
        made.dataset.reference,
        made.predictions.reference,
        splits=("val",),
        metrics_uri=metrics,
        report_uri=str(tmp_path / "report.html"),
        resamples=0,
    )
    assert found.analysis is not None
    best = found.analysis.thresholds.per_class
    assert any(of.score is not None for of in best.values())
    read = read_class_thresholds(metrics)
    assert read.keys() == {name for name, of in best.items() if of.score is not None}
    for name, threshold in read.items():
        # What is kept scores above a threshold, and the one that was found best is a detection's own score.
        kept = np.float32(best[name].score)
        assert kept > np.float32(threshold) and np.nextafter(np.float32(threshold), np.float32(1)) == kept
    check_class_names(read, made.dataset.label_map)


def test_a_plain_mapping_is_read_and_all_else_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"cat": 0.25, "dog": 1}')
    assert read_class_thresholds(str(path)) == {"cat": 0.25, "dog": 1.0}
    for text, told in (
        ("{", "is no JSON"),
        ("[0.4]", "must map names of classes to scores"),
        ('{"cat": "0.4"}', "must map names of classes to scores"),
        ('{"cat": 1.4}', "must map names of classes to scores"),
        ('{"cat": true}', "must map names of classes to scores"),
        (json.dumps({"stats": {"AP": 0.5}}), "an evaluation without thresholds"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            read_class_thresholds(str(path))
    with pytest.raises(FileNotFoundError):
        read_class_thresholds(str(tmp_path / "none.json"))
