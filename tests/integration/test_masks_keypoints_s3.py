"""An archive in a bucket labelled with masks and keypoints, exported, and measured alike by pycocotools and by us."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from flows import steps
from flows.config import ExportConfig
from pipelines import open_dataset, open_predictions
from pipelines.exports.coco import export_coco
from pipelines.metrics.settings import IOU_TYPES, coco_settings
from pipelines.predictions import PredictionSet
from pipelines.sources.drawn import decode_mask
from pipelines.versions import Dataset
from tests.cocotools import run_cocotools
from tests.conftest import S3Server
from tests.integration.recalling import save_recaller
from tests.integration.test_label_s3 import run, write_tar
from tests.integration.training import make_dataset
from workers.evaluate import evaluate
from workers.label import LabelConfig
from workers.models import put_model

pytestmark = pytest.mark.ray
_CATEGORY = {"categories": "id", "annotations": "category_id"}
SIGMAS = {"figure": (0.06,) * 11}


def test_an_archive_is_labelled_exported_and_measured(s3_server: S3Server, tmp_path: Path) -> None:
    truth, predictions = label_archive(s3_server, tmp_path)
    assert_rows_have_masks_and_keypoints(open_dataset(truth), open_predictions(predictions))
    exported = steps.export(ExportConfig(dataset=predictions, out=s3_server.uri("masks/results.json")))["files"]
    assert exported == {
        "results": s3_server.uri("masks/results.json"),
        "results_segm": s3_server.uri("masks/results.segm.json"),
        "results_keypoints": s3_server.uri("masks/results.keypoints.json"),
    }
    document = read_json(export_coco(truth, str(tmp_path / "truth")).files["val"])
    for kind, uri in zip(IOU_TYPES, exported.values(), strict=True):
        settings = replace(coco_settings(kind), oks_sigmas=SIGMAS if kind == "keypoints" else None)
        ours = evaluate(truth, predictions, iou_type=kind, oks_sigmas=SIGMAS).metrics
        labels = [at for at, c in enumerate(ours.label_map.categories) if kind != "keypoints" or c.keypoints]
        measured = of_categories(document, {ours.label_map.categories[at].category_id for at in labels})
        theirs = run_cocotools(measured, read_json(uri), settings).eval["precision"]
        np.testing.assert_allclose(ours.precision[:, :, labels], theirs, rtol=0, atol=1e-12)
        assert 0.3 < ours.stats["AP"] < 0.95, "good, but not perfect: there is something to disagree on"


def label_archive(s3_server: S3Server, folder: Path) -> tuple[str, str]:
    """References of the truth and of the archive's predictions, both in the bucket."""
    dataset = open_dataset(make_dataset(s3_server.uri("masks/scenes"), num_train=0, num_val=8, seed=5))
    records = list(dataset.records())
    save_recaller(records, dataset.label_map, folder / "model", size=128)
    put_model(folder / "model", s3_server.uri("masks/model"))
    write_tar(s3_server.uri("masks/images.tar"), {record.image_id: record.image for record in records})
    config = LabelConfig(
        input=s3_server.uri("masks/images.tar"),
        model=s3_server.uri("masks/model"),
        out=s3_server.uri("masks/out"),
        workers=1,
        batch_size=3,
    )
    made = json.loads(run([config], folder)[-1])
    assert made["num_quarantined"] == 0
    return dataset.reference, made["reference"]


def assert_rows_have_masks_and_keypoints(dataset: Dataset, predictions: PredictionSet) -> None:
    truth = {row[0]: row[4] for row in dataset.annotations()}
    (figure,) = (c.category_id for c in predictions.label_map.categories if c.keypoints)
    figures = 0
    for image_id, _, width, height, found in predictions.annotations():
        assert len(found) == len(truth[image_id])
        masks = np.array([decode_mask(rle) for rle in found.rles if rle is not None])
        assert masks.shape == (len(found), height, width)
        assert found.area.tolist() == masks.sum((1, 2)).tolist()
        is_figure = (found.category_ids == figure).tolist()
        figures += sum(is_figure)
        assert [points is not None for points in found.keypoints] == is_figure
        assert found.num_keypoints.tolist() == [11 if of_figure else -1 for of_figure in is_figure]
        scores = [len(attributes.get("keypoint_scores", ())) for attributes in found.attributes]
        assert scores == [11 if of_figure else 0 for of_figure in is_figure]
    assert figures > 0


def of_categories(document: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """Some categories of a document: pycocotools measures keypoints where all objects have some."""
    chosen = {key: [v for v in document[key] if v[name] in ids] for key, name in _CATEGORY.items()}
    return document | chosen


def read_json(uri: str) -> Any:
    with fsspec.open(uri) as file:
        return json.load(file)
