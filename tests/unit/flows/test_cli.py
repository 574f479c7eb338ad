"""The command line: exit codes, one JSON document, errors in a line, a start that is not slow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from flows.cli import app, console, demo
from flows.cli.options import gather
from flows.errors import describe, is_bad_input, unwrap
from tests.archived import label_archive, write_archive
from tests.making import encoded


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = app.run(arguments)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_help_starts_within_a_second_and_imports_nothing_heavy():
    code = (
        "import sys, time; from flows.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        # CPU time and not wall time: the machine may be busy with something else.
        "print(time.process_time(), *[m for m in ('torch', 'ray', 'prefect', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == [] and float(seconds) < 1.0, done.stdout + done.stderr


def test_detectors_are_listed_for_people_and_for_scripts(capfd):
    code, out, _ = run(capfd, "detectors")
    assert code == 0 and "retinanet_lite0" in out.split()
    code, out, _ = run(capfd, "detectors", "--json")
    assert "retinanet_lite0" in json.loads(out)["detectors"]


@pytest.mark.parametrize("arguments", [["train"], ["nonsense"], ["train", "d", "--out", "m", "--epochz", "1"]])
def test_wrong_usage_ends_with_2(capfd, arguments):
    code, out, err = run(capfd, *arguments)
    assert code == console.USAGE and out == "" and err


def test_a_missing_dataset_ends_with_3_in_one_line_that_names_it(capfd, tmp_path):
    code, out, err = run(capfd, "inspect", str(tmp_path / "nothing"))
    assert code == console.BAD_INPUT and out == ""
    assert err.count("\n") == 1 and err.startswith("error: no dataset at") and "nothing" in err


def test_with_json_an_error_is_the_one_document(capfd, tmp_path):
    code, out, _ = run(capfd, "inspect", str(tmp_path / "nothing"), "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == console.BAD_INPUT
    assert "no dataset at" in document["error"]


def test_with_json_wrong_usage_is_the_one_document_too(capfd):
    code, out, err = run(capfd, "train", "--json")
    assert code == json.loads(out)["exit_code"] == console.USAGE and "Missing" in err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_interrupt_ends_with_130(capfd, tmp_path, monkeypatch, options):
    def interrupted(_reference):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.versions.open_dataset", interrupted)
    code, out, err = run(capfd, "inspect", str(tmp_path), *options)
    assert code == console.INTERRUPTED == 130 and "goes on where this one stopped" in err
    assert [json.loads(line)["exit_code"] for line in out.splitlines()] == [130] * len(options)


@pytest.mark.parametrize(("options", "expected"), [([], console.OK), (["--strict"], console.INCOMPLETE)])
def test_quarantined_images_are_told_and_strict_makes_them_4(capfd, monkeypatch, options, expected):
    found = {"reference": "d@labels/p:0", "num_images": 3, "num_quarantined": 2}
    monkeypatch.setattr("flows.cli.stages.execute", lambda *_, **__: found)
    code, out, err = run(capfd, "label", "d", "--model", "m", "--json", *options)
    assert code == expected and json.loads(out) == found and "2 image(s) have no predictions" in err


def test_every_model_is_told_of_by_its_predictions(capfd, monkeypatch):
    whole = {"reference": "d@labels/p:0", "num_images": 3, "num_quarantined": 0, "account": {"quarantined": 0}}
    lacking = {**whole, "reference": "d@labels/q:0", "num_quarantined": 2, "account": {"quarantined": 1}}
    monkeypatch.setattr("flows.cli.stages.execute", lambda *_, **__: {**whole, "others": [lacking]})
    code, _, err = run(capfd, "label", "d", "--model", "m", "--model", "n", "--json", "--strict")
    assert code == console.INCOMPLETE and "d@labels/p:0: " not in err
    assert "d@labels/q:0: 1 image(s) have no predictions" in err and "d@labels/q:0: 1 member(s)" in err


@pytest.mark.parametrize(
    ("trained", "untrained", "misses"), [(0.8, 0.049, 0), (0.799, 0.0, 1), (0.9, 0.05, 1), (None, None, 1)]
)
def test_the_bars_of_the_demo(trained, untrained, misses):
    assert len(demo._misses({"metrics": {"AP50": trained}, "baseline": {"AP50": untrained}})) == misses


def test_json_of_one_call_is_not_remembered_by_the_next(capfd, tmp_path):
    run(capfd, "inspect", str(tmp_path / "nothing"), "--json")
    _, out, _ = run(capfd, "inspect", str(tmp_path / "nothing"))
    assert out == ""


def test_debug_shows_the_traceback(capfd, tmp_path):
    _, _, err = run(capfd, "inspect", str(tmp_path / "nothing"), "--debug")
    assert "Traceback" in err and "DatasetNotFound" in err


@pytest.fixture
def drawn(tmp_path, capfd) -> str:
    """A dataset of 8 + 4 drawn images."""
    uri = str(tmp_path / "drawn")
    code, out, _ = run(capfd, "ingest", "synthetic", "--dataset", uri, "--num-train", "8", "--num-val", "4", "--json")
    assert code == 0 and json.loads(out)["num_images"] == 12
    return uri


def test_an_unknown_detector_is_refused_with_near_names(capfd, drawn, tmp_path):
    arguments = ["train", drawn, "--out", str(tmp_path / "m"), "--detector", "retinanet_lite", "--backbone", "none"]
    code, _, err = run(capfd, *arguments)
    assert code == console.BAD_INPUT
    assert "retinanet_lite0" in err and "Traceback" not in err


def test_an_unknown_setting_is_refused_by_name(capfd, drawn, tmp_path):
    code, _, err = run(capfd, "train", drawn, "--out", str(tmp_path / "m"), "--set", "augment.flip=1")
    assert code == console.BAD_INPUT and "unknown setting 'augment.flip'" in err


def test_inspect_shows_counts_and_categories(capfd, drawn):
    code, out, _ = run(capfd, "inspect", drawn)
    assert code == 0
    assert "train" in out and "star" in out
    code, out, _ = run(capfd, "inspect", drawn, "--json")
    document = json.loads(out)
    assert document["num_images"] == 12 and document["label_sets"] == ["gt"]
    assert sum(c["objects"] for c in document["classes"]) == document["num_objects"]


def test_export_and_ingest_again_give_the_same_objects(capfd, drawn, tmp_path):
    out = str(tmp_path / "coco")
    assert run(capfd, "export", "coco", drawn, "--out", out, "--images")[0] == 0
    for split in ("train", "val"):
        code, _, err = run(
            capfd,
            *("ingest", "coco", f"{out}/annotations/instances_{split}.json", "--images", f"{out}/{split}"),
            *("--dataset", str(tmp_path / "again")),
        )
        assert code == 0, err
    before, after = (json.loads(run(capfd, "inspect", uri, "--json")[1]) for uri in (drawn, str(tmp_path / "again")))
    for name in ("num_images", "num_objects", "sizes", "num_with_polygons", "num_with_keypoints", "classes"):
        assert before[name] == after[name], name


def test_export_of_an_unknown_split_is_bad_input(capfd, drawn, tmp_path):
    code, _, err = run(capfd, "export", "coco", drawn, "--out", str(tmp_path / "x"), "--split", "valid")
    assert code == console.BAD_INPUT and "valid" in err


def test_predictions_of_an_archive_become_a_results_file_and_nothing_else(capfd, tmp_path):
    write_archive(tmp_path / "photos", {f"{number}.jpg": encoded(seed=number) for number in range(2)})
    reference = label_archive(str(tmp_path / "photos"), str(tmp_path / "out")).reference
    code, _, err = run(capfd, "export", "to", "label_studio", reference, "--out", str(tmp_path / "x"))
    assert code == console.BAD_INPUT and "ingest the images" in err and not (tmp_path / "x").exists()
    code, out, _ = run(capfd, "export", "coco", reference, "--out", str(tmp_path / "results.json"), "--json")
    assert code == 0 and json.loads(out)["num_images"] == 2


def test_settings_come_from_file_then_set_then_options(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("epochs: 3\nlr: 0.5\naugment: {hue: 0.1}\n")
    values = gather(str(file), ["lr=0.25", "augment.scale=[0.5, 1]", "detector=x:y"], {"epochs": 9, "seed": None})
    assert values == {"epochs": 9, "lr": 0.25, "augment": {"hue": 0.1, "scale": [0.5, 1]}, "detector": "x:y"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("c.json", "{", "is no JSON"), ("c.yaml", "a: [", "is no YAML"), ("c.yaml", "- 1", "must hold one mapping")],
)
def test_a_bad_config_file_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        gather(str(tmp_path / name), None, {})
    assert name in str(error.value)


def test_a_missing_config_file_is_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        gather(str(tmp_path / "none.json"), None, {})
    assert is_bad_input(error.value) and "none.json" in describe(error.value)


def test_a_setting_without_equals_is_refused():
    with pytest.raises(ValueError, match="KEY=VALUE"):
        gather(None, ["lr"], {})


def test_a_setting_inside_one_that_has_none_is_refused():
    with pytest.raises(ValueError, match=r"lr\.peak=1: lr is 0\.5"):
        gather(None, ["lr=0.5", "lr.peak=1"], {})


def test_rays_wrapping_is_taken_off():
    class Wrapped(Exception):
        pass

    Wrapped.__module__ = "ray.exceptions"
    error = Wrapped("a long remote traceback")
    error.cause = ValueError("boxes.xml has no size")
    assert unwrap(error) is error.cause
    assert is_bad_input(error) and describe(error) == "boxes.xml has no size"


def test_an_unexpected_error_is_a_failure_and_named_by_its_type():
    assert not is_bad_input(KeyError("x"))
    assert describe(RuntimeError("lost a worker")) == "RuntimeError: lost a worker"


def test_lines_of_progress_are_few(capsys):
    bars = console.Bars(console.Console(force_terminal=False, stderr=True))
    with bars:
        for done in range(1001):
            bars("label", done, 1000, rate=1.0)
    assert len(capsys.readouterr().err.splitlines()) <= 3
