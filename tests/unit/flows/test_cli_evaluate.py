"""``boxmill evaluate``: what it prints and writes, and when it ends with 6."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli import app, console
from flows.config import EvaluateConfig
from pipelines.metrics.match_files import read_matches
from tests.evaluated import Evaluated, guessed_rows, make_evaluated, write_guesses


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Evaluated:
    return make_evaluated(tmp_path_factory.mktemp("cli") / "dataset", num_train=4, num_val=6)


def run(capfd, made: Evaluated, *arguments: str) -> tuple[int, str, str]:
    found = app.run(["evaluate", made.dataset.reference, made.predictions.reference, "--split", "val", *arguments])
    captured = capfd.readouterr()
    return found, captured.out, captured.err


def test_json_has_the_keys_it_always_had_and_new_ones(capfd, made: Evaluated):
    code, out, _ = run(capfd, made, "--json")
    found = json.loads(out)
    assert code == console.OK
    assert set(found) >= {"dataset", "predictions", "metrics", "per_class", "num_images", "report"}
    assert len(found["metrics"]) == 12
    assert found["num_images"] == 6
    assert (found["protocol"], found["iou_type"]) == ("coco", "bbox")
    assert found["missed"] == found["gates"] == found["slices"] == []


def test_a_missed_gate_ends_with_6_when_everything_is_written(capfd, made: Evaluated, tmp_path: Path):
    gates = ("--fail-under", "AP=0.01", "--fail-under", "AP50=0.999")
    files = ("--markdown", str(tmp_path / "r.md"), "--metrics", str(tmp_path / "m.json"), "--resamples", "20")
    code, out, err = run(capfd, made, *gates, *files, "--json")
    assert code == console.BELOW == 6
    found = json.loads(out)
    assert [(gate["name"], gate["passed"]) for gate in found["gates"]] == [("AP", True), ("AP50", False)]
    assert f"AP50 is {found['metrics']['AP50']:.4f}, wanted 0.999 or more" in err
    assert json.loads((tmp_path / "m.json").read_text())["analysis"]["intervals"]["resamples"] == 20
    assert "## Errors" in (tmp_path / "r.md").read_text()
    assert run(capfd, made, "--fail-under", "AP=0.01")[0] == console.OK


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--fail-under", "mAP=0.5"), "mAP is not measured here; there are AP, AP50"),
        (("--fail-under", "AP"), "no NAME=NUMBER"),
        (("--protocol", "voc07", "--iou-type", "segm"), "measures bbox, not 'segm'"),
        (("--protocol", "lvis"), "does not say which classes are known to be absent"),
        (("--by", "patient"), "has 'patient'; there are split"),
        (("--set", "nonsense=1"), "unknown setting 'nonsense'"),
    ],
)
def test_bad_input_ends_with_3_and_says_why(capfd, made: Evaluated, arguments: tuple[str, ...], told: str):
    code, out, err = run(capfd, made, *arguments)
    assert code == console.BAD_INPUT and out == ""
    assert told in " ".join(err.split())


def test_voc_has_a_number_of_its_own(capfd, made: Evaluated, tmp_path: Path):
    report = tmp_path / "r.html"
    code, out, _ = run(capfd, made, "--protocol", "voc07", "--report", str(report), "--resamples", "0", "--json")
    found = json.loads(out)
    assert code == console.OK
    assert set(found["metrics"]) == {"mAP"}
    classes = [numbers["AP"] for numbers in found["per_class"].values() if numbers["AP"] is not None]
    assert found["metrics"]["mAP"] == pytest.approx(sum(classes) / len(classes))
    page = report.read_text()
    assert 'data-stat="mAP"' in page
    assert "PASCAL VOC 2007 boxes" in page


def test_parts_comparison_and_matches(capfd, made: Evaluated, tmp_path: Path):
    rows = [row for row in guessed_rows(list(made.dataset.records()), skill=0.5, seed=9) if row.split == "val"]
    other = write_guesses(made.dataset, rows, made.dataset.label_map, label_set="worse")
    options = ("--by", "split,size,format", "--compare", other.reference, "--resamples", "40")
    code, out, _ = run(capfd, made, *options, "--matches", str(tmp_path / "matches"), "--json")
    found = json.loads(out)
    assert code == console.OK
    assert [part["by"] for part in found["slices"]] == ["size", "split", "format"]
    val = found["slices"][1]["parts"]["val"]
    assert (val["num_images"], val["AP"]) == (6, pytest.approx(found["metrics"]["AP"]))
    compared = found["comparison"]["overall"]["AP50"]
    assert compared["second"] == pytest.approx(found["metrics"]["AP50"])
    assert compared["difference"] > 0
    table = read_matches(found["matches"])
    assert table.num_images == 6
    assert table.num_detections == made.predictions.num_objects
    code, out, _ = run(capfd, made, "--by", "split", "--resamples", "0")
    assert code == console.OK
    assert "By split" in out


def test_gates_of_a_config_may_be_a_mapping():
    config = EvaluateConfig(dataset="d", predictions="p", fail_under={"AP": 0.5})
    assert EvaluateConfig(dataset="d", predictions="p", fail_under="AP=0.5") == config
    assert EvaluateConfig(**config.model_dump()) == config
