"""Labelling against an S3 server that checks keys: a dataset, and a tar that stays in its bucket."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pytest

from pipelines import open_dataset, open_predictions
from pipelines.quarantine import read_quarantine
from tests.conftest import S3Server
from tests.integration.labelling import THRESHOLD, make_model, rows_by_image
from tests.integration.test_label_resume import command
from tests.integration.training import make_dataset
from workers.label import LabelConfig
from workers.models import put_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray


@pytest.mark.long
def test_a_dataset_and_a_tar_in_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(s3_server.uri("label/scenes"), num_train=9, num_val=3))
    make_model(tmp_path / "model", dataset.label_map)
    put_model(tmp_path / "model", s3_server.uri("label/model"))
    images = {record.image_id: record.image for record in dataset.records()}
    images["cut.jpg"] = images["val/000000.jpg"][:-300]
    write_tar(s3_server.uri("label/images.tar"), images)

    common = {"model": s3_server.uri("label/model"), "score_threshold": THRESHOLD, "workers": 1, "task_images": 5}
    configs = [
        LabelConfig(input=dataset.reference, coco_results=s3_server.uri("label/results.json"), **common),
        LabelConfig(input=s3_server.uri("label/images.tar"), out=s3_server.uri("label/out"), **common),
    ]
    lines = run(configs, tmp_path)
    in_dataset, in_tar = (json.loads(line) for line in lines if "reference" in line)

    assert (in_dataset["num_images"], in_dataset["num_quarantined"]) == (12, 0)
    assert (in_tar["num_images"], in_tar["num_quarantined"]) == (13, 1)
    ours = {row[0]: row[6] for row in rows_by_image(in_dataset["reference"])}
    theirs = {row[0]: row[6] for row in rows_by_image(in_tar["reference"])}
    assert theirs == {**ours, "cut.jpg": None}
    with fsspec.open(in_dataset["coco_results_uri"]) as file:
        assert len(json.load(file)) == in_dataset["num_objects"] > 0

    predictions = open_predictions(s3_server.uri("label/out"))
    assert predictions.reference == in_tar["reference"]
    (bad,) = read_quarantine(predictions.uri, predictions.metadata["plan_id"])
    assert bad.image_id == "cut.jpg" and bad.source == s3_server.uri("label/images.tar") + "!/cut.jpg"
    assert {r.image_id: r.image for r in predictions.records()} == {k: v for k, v in images.items() if k != "cut.jpg"}

    # Secrets are in the environment alone.
    assert s3_server.secret_key not in json.dumps(dict(predictions.metadata)) + "".join(lines)
    again = json.loads(run(configs[1:], tmp_path)[-1])
    assert again["found"] and again["reference"] == in_tar["reference"]


def run(configs: list[LabelConfig], tmp_path: Path) -> list[str]:
    """In a process of its own: an embedded Ray's workers take the keys from its environment."""
    finished = subprocess.run(
        [*command(configs[0])[:3], *(json.dumps(c.to_json()) for c in configs)],
        cwd=ROOT,
        env={**os.environ, "BOXMILL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout.strip().splitlines()


def write_tar(uri: str, images: dict[str, bytes]) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with fsspec.open(uri, "wb") as file:
        file.write(sink.getvalue())
