"""``boxmill anchors``: what it prints can be given to ``train`` as it is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from detectors.models.yolo_v3 import COCO_ANCHORS, YOLO_V3S, YoloV3Options
from flows.cli import app, console
from flows.cli.options import gather
from tests.evaluated import synthetic_records, write_dataset


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("anchors") / "drawn"
    return write_dataset(folder, *synthetic_records(12, 4)).uri


def test_the_setting_is_one_of_train(capfd: pytest.CaptureFixture[str], drawn: str, tmp_path: Path) -> None:
    out = tmp_path / "anchors.json"
    assert app.run(["anchors", drawn, "--image-size", "224", "--json", "--out", str(out)]) == console.OK
    found = json.loads(capfd.readouterr().out)
    assert found["image_size"] == 224 and found["splits"] == ["train"] and found["num_boxes"] > 12
    assert 0.5 < found["default_fit"]["mean_iou"] < found["fit"]["mean_iou"] <= 1
    assert found["default_anchors"] == list(COCO_ANCHORS)
    options = gather(None, [found["setting"]], {})["detector_options"]
    assert YoloV3Options(anchors=tuple(options["anchors"])).anchors == tuple(found["anchors"])
    assert gather(str(out), None, {}) == {"image_size": 224, "detector_options": options}

    assert app.run(["anchors", drawn, "--image-size", "224"]) == console.OK
    shown = capfd.readouterr().out
    assert "COCO's" in shown
    words = shlex.split(shown.splitlines()[-1])
    assert words == ["--image-size", "224", "--set", found["setting"]]


def test_splits_and_number_can_be_chosen(capfd: pytest.CaptureFixture[str], drawn: str) -> None:
    counts = []
    for arguments in (["--split", "val"], ["--split", "train"], ["--all-splits"]):
        assert app.run(["anchors", drawn, "--num", "6", "--json", *arguments]) == console.OK
        found = json.loads(capfd.readouterr().out)
        assert len(found["anchors"]) == 2 * len(found["fit"]["boxes"]) == len(YOLO_V3S["yolo_v3_tiny"].anchors)
        assert sum(found["fit"]["boxes"]) == found["num_boxes"]
        counts.append(found["num_boxes"])
    assert counts[0] + counts[1] == counts[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "dev"], "has no split"),
        (["--num", "100000"], "100000 anchors cannot be found"),
        (["--split", "val", "--all-splits"], "contradict each other"),
    ],
)
def test_bad_input_is_told(capfd: pytest.CaptureFixture[str], drawn: str, arguments: list[str], said: str) -> None:
    assert app.run(["anchors", drawn, *arguments]) == console.BAD_INPUT
    assert said in capfd.readouterr().err
