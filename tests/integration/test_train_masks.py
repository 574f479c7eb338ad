"""A few steps of real training on masks: what comes out, and what is measured on the way."""

import json
import math
from pathlib import Path

import pytest

from detectors import load
from pipelines import open_predictions
from tests.integration.training import make_dataset, tiny_config
from workers.label import LabelConfig, label
from workers.train import train
from workers.train_config import AugmentConfig

pytestmark = pytest.mark.ray
TINY = {
    "fpn_channels": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "mask_convs": 1,
    "proposals_train": 64,
    "proposals": 32,
    "roi_batch": 32,
    "rpn_batch": 64,
    "max_detections": 10,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(str(tmp_path_factory.mktemp("masks") / "scenes"), num_train=8, num_val=2)


@pytest.mark.long
def test_masks_are_learnt_measured_and_labelled_with(dataset, tmp_path, ray_cluster):
    config = tiny_config(
        dataset,
        str(tmp_path / "model"),
        detector="mask_rcnn_lite0_fpn",
        detector_options=TINY,
        epochs=1,
        workers=1,
        augment=AugmentConfig(scale=(0.8, 1.3), rotation=5.0, copy_paste=0.5),
    )
    model = train(config)
    (epoch,) = model.history
    assert math.isfinite(epoch["loss_mask"]) and epoch["loss_mask"] > 0
    assert {"AP", "segm_AP", "segm_AP50", "segm_AR_100"} <= model.metrics.keys()
    assert "keypoints_AP" not in model.metrics
    described = json.loads((Path(model.uri) / "model.json").read_text())
    assert described["provenance"]["config"]["augment"]["copy_paste"] == 0.5
    assert load(Path(model.uri)).detector.needs == {"masks"}
    made = label(LabelConfig(input=dataset, model=model.uri, out="found", splits=("val",), score_threshold=0.0))
    rows = [row[4] for row in open_predictions(made.reference).annotations()]
    assert sum(map(len, rows)) > 0
    assert all(rle is not None and rle.size == (128, 128) for row in rows for rle in row.rles)
