"""The whole path as a flow on Prefect's ephemeral server and embedded Ray, small; and again, to resume."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows.prefect_home import has_prefect_api, prefect_home
from pipelines.versions import open_dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
BOXMILL = Path(sys.executable).parent / "boxmill"
SETTINGS = {
    "ingest": {"source": "synthetic", "options": {"num_train": 8, "num_val": 4, "size": [128, 128]}},
    "train": {"epochs": 1, "image_size": 128, "workers": 1, "val_every": 1},
    "label": {"workers": 1},
}


def boxmill(*arguments: str, cwd: Path, home: Path) -> dict:
    """The JSON result of a command, in a fresh user's environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
    done = subprocess.run(
        [os.fspath(BOXMILL), *arguments, "--json"],
        cwd=cwd,
        env=environment | {"HOME": os.fspath(home)},
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """Folder of the run, home of the user, result."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    result = boxmill("lifecycle", "--out", "one", "--config", "config.json", cwd=folder, home=home)
    return folder, home, result


def test_every_stage_has_left_what_it_promises(run):
    folder, _, result = run
    out = folder / "one"
    truth = open_dataset(result["dataset"]["reference"])
    assert (truth.num_images, truth.digest) == (12, result["dataset"]["digest"])
    predictions = open_dataset(result["predictions"]["reference"])
    assert predictions.num_images == 4 and predictions.digest == result["predictions"]["digest"]
    assert set(result["metrics"]) == set(result["baseline"]) and result["metrics"]["AP"] is not None
    assert json.loads((out / "metrics.json").read_text())["stats"] == result["metrics"]
    found = json.loads(Path(result["export"]).read_text())
    assert len(found) == predictions.num_objects
    assert "<svg" in Path(result["report"]).read_text()
    assert json.loads((Path(result["model"]["uri"]) / "model.json").read_text())["digest"] == result["model"]["digest"]


def test_prefect_keeps_runs_and_artifacts_in_the_folder_of_the_run_and_nothing_in_the_home(run):
    folder, home, result = run
    with sqlite3.connect(folder / "one" / "prefect" / "prefect.db") as database:
        states = dict(database.execute("select name, state_type from task_run").fetchall())
        artifacts = dict(database.execute("select key, data from artifact where key not null"))
        flows = [row[0] for row in database.execute("select state_type from flow_run")]
    assert flows == ["COMPLETED"]
    assert {name.rsplit("-", 1)[0] for name in states} >= {
        "ingest",
        "untrained",
        "train",
        "label",
        "evaluate",
        "export",
    }
    assert set(states.values()) == {"COMPLETED"}
    assert set(artifacts) >= {"metrics", "metrics-untrained", "metrics-precision-recall", "report", "lifecycle"}
    assert "data:image/svg+xml;base64," in artifacts["metrics-precision-recall"]
    assert result["report"] in artifacts["report"]
    assert not (home / ".prefect").exists() and not (home / ".ray").exists()


def test_the_same_call_again_does_nothing_anew(run):
    folder, home, first = run
    model = Path(first["model"]["uri"]) / "model.safetensors"
    written = model.stat().st_mtime_ns
    again = boxmill("lifecycle", "--out", "one", "--config", "config.json", cwd=folder, home=home)
    assert again["model"] == first["model"] and model.stat().st_mtime_ns == written
    assert again["dataset"]["reference"] == first["dataset"]["reference"]
    assert again["predictions"]["reference"] == first["predictions"]["reference"]
    assert again["metrics"] == first["metrics"]


def test_two_homes_at_once_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    with prefect_home(os.fspath(tmp_path / "out")) as first:
        assert first == tmp_path / "out" / "prefect" and os.environ["PREFECT_HOME"] == os.fspath(first)
        # A second process would not see our PREFECT_HOME.
        monkeypatch.delenv("PREFECT_HOME")
        with prefect_home(os.fspath(tmp_path / "out")) as second:
            assert second is not None and second != first and second.is_dir()
        monkeypatch.setenv("PREFECT_HOME", os.fspath(first))
        assert not second.exists()
    assert "PREFECT_HOME" not in os.environ


def test_a_configured_prefect_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    assert not has_prefect_api()
    profiles = tmp_path / ".prefect" / "profiles.toml"
    profiles.parent.mkdir()
    profiles.write_text('active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://prefect.example/api"\n')
    assert has_prefect_api()
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert not has_prefect_api()
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    assert has_prefect_api()
    with prefect_home("out") as home:
        assert home is None and "PREFECT_HOME" not in os.environ
