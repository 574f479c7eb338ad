"""FiftyOne loads the COCO exports of truth and of predictions: as many images and objects, the same scores and places.

FiftyOne is large, so it has an environment of its own: BOXMILL_FIFTYONE=/path/to/its/python.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pipelines.exports.coco import export_coco
from pipelines.predictions import to_coco_results
from tests.evaluated import make_evaluated

PYTHON = os.environ.get("BOXMILL_FIFTYONE")
pytestmark = [
    pytest.mark.fiftyone,
    pytest.mark.skipif(PYTHON is None, reason="BOXMILL_FIFTYONE names no Python with fiftyone (pip install fiftyone)"),
]


def test_it_loads_and_counts_agree(tmp_path: Path) -> None:
    made = make_evaluated(tmp_path / "data", num_train=2, num_val=10)
    out = tmp_path / "out"
    exported = export_coco(made.dataset, str(out), ["val"], images=True)
    results = to_coco_results(made.predictions, str(out / "results.json"), ["val"])
    program = Path(__file__).with_name("load_in_fiftyone.py")
    arguments = [str(PYTHON), str(program), str(out / "val"), exported.files["val"], results["bbox"]]
    home = {"HOME": str(tmp_path), "FIFTYONE_DATABASE_DIR": str(tmp_path / "db"), "FIFTYONE_DO_NOT_TRACK": "true"}
    done = subprocess.run(arguments, env=os.environ | home, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])

    names = {c.category_id: c.name for c in made.dataset.label_map.categories}
    truth: Counter[str] = Counter()
    guesses: Counter[str] = Counter()
    confidence = area = 0.0
    for *_, objects in made.dataset.annotations(["val"]):
        truth.update(names[i] for i in objects.category_ids.tolist())
    for _, _, width, height, objects in made.predictions.annotations():
        guesses.update(names[i] for i in objects.category_ids.tolist())
        confidence += float(objects.scores.sum())
        area += float(objects.boxes_xywh[:, 2:].prod(axis=1).sum()) / (width * height)
    assert found["images"] == 10
    assert found["truth"] == truth and found["predictions"] == guesses
    assert found["confidence"] == pytest.approx(confidence)
    assert found["area"] == pytest.approx(area)
