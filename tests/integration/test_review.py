"""Predictions to people and back: routed, reviewed in Label Studio, committed as a label version, trained on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors import load
from flows.config import ExportConfig, RelabelConfig, RouteConfig
from flows.steps import export, relabel, route
from pipelines.records import Annotations
from pipelines.schema import LabelRow
from pipelines.shard_writing import label_rows
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.evaluated import write_dataset, write_guesses
from tests.integration.training import tiny_config
from workers.train import train

pytestmark = pytest.mark.ray
COUNT = 16


def guess(row: LabelRow, number: int) -> LabelRow:
    """Right and sure on the first half of the images; on the rest shifted boxes of middling scores."""
    truth = row.annotations
    assert truth is not None
    sure = number < COUNT // 2
    boxes = truth.boxes_xywh + (0.0 if sure else np.array([4.0, 3.0, 0.0, 0.0]))
    found = Annotations.from_boxes(boxes, truth.category_ids, scores=np.full(len(truth), 0.95 if sure else 0.5))
    return replace(row, annotations=found, status="ok")


def corrected(task: dict[str, Any], truth: Annotations, names: dict[int, str]) -> dict[str, Any]:
    """What Label Studio exports after somebody drew every box where it belongs."""
    (guessed,) = task.pop("predictions")
    results = []
    for region, box, category in zip(guessed["result"], truth.boxes_xywh, truth.category_ids.tolist(), strict=True):
        x, y, w, h = (float(v) / 128 * 100 for v in box)
        value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [names[category]]}
        results.append({**{k: v for k, v in region.items() if k != "score"}, "value": value})
    return {**task, "annotations": [{"id": task["id"], "result": results, "was_cancelled": False}]}


def test_from_predictions_to_a_model_of_corrected_labels(tmp_path: Path, ray_cluster: Any) -> None:
    source = open_source("synthetic", seed=3, num_train=COUNT, num_val=0, size=(128, 128))
    drawn = [source.load(item) for item in source.scan()]
    truths = {record.image_id: record.annotations for record in drawn}
    uri = write_dataset(tmp_path / "data", [replace(r, annotations=None) for r in drawn], source.label_map).uri
    rows = [guess(row, number) for number, row in enumerate(label_rows(drawn))]
    predictions = write_guesses(open_dataset(uri), rows, source.label_map)

    routed = route(RouteConfig(predictions=predictions.reference, accept=0.9, reject=0.2))
    sets = {one: version["reference"] for one, version in routed["sets"].items() if version}
    assert sets.keys() == {"accept", "review"}
    assert routed["sets"]["review"]["num_images"] == COUNT // 2

    out = str(tmp_path / "review")
    export(ExportConfig(format="label_studio", dataset=sets["review"], out=out, images=False))
    tasks = json.loads((tmp_path / "review/tasks.json").read_text())
    names = {category.category_id: category.name for category in source.label_map.categories}
    done = [corrected(task, truths[task["data"]["image_id"]], names) for task in tasks]
    (tmp_path / "done.json").write_text(json.dumps(done))

    relabel(RelabelConfig(dataset=uri, source="labels", options={"labels": sets["accept"]}))
    options = {"annotations": str(tmp_path / "done.json"), "sent": sets["review"]}
    version = relabel(RelabelConfig(dataset=uri, source="label_studio", options=options))
    assert version["review"] == {"returned": COUNT // 2, "missing": 0, "missing_images": []}
    labelled = {row[0]: row[4] for row in open_dataset(version["reference"]).annotations()}
    assert labelled.keys() == truths.keys()
    for image_id, found in labelled.items():
        np.testing.assert_allclose(found.boxes_xywh, truths[image_id].boxes_xywh, atol=1e-9)
        assert found.category_ids.tolist() == truths[image_id].category_ids.tolist()

    config = tiny_config(
        version["reference"], str(tmp_path / "model"), epochs=1, val_split=None, workers=1, warmup_steps=1
    )
    model = train(config)
    loaded = load(Path(model.uri))
    assert loaded.provenance["dataset"]["reference"] == version["reference"]
    assert loaded.provenance["dataset"]["digest"] == version["digest"]
    assert [entry["epoch"] for entry in model.history] == [1] and math.isfinite(model.history[0]["loss"])
