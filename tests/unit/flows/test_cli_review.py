"""``route`` and ``relabel`` of what came back, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli import app, console
from pipelines.versions import open_dataset
from tests.evaluated import make_evaluated
from tests.unit.flows.test_datasets import document, run


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return make_evaluated(tmp_path / "d", num_train=2, num_val=10).dataset.uri


def test_route_review_and_relabel(capfd, uri, tmp_path):
    routed = document(
        capfd, "route", uri, "guesses", "--accept", "0.8", "--accept", "star=0.95", "--reject", "0.5", "--audit", "0.1"
    )
    images = {one: version["num_images"] if version else 0 for one, version in routed["sets"].items()}
    assert sum(images.values()) == routed["num_images"] == 10 and images["review"] > 1
    review = routed["sets"]["review"]["reference"]
    told = open_dataset(review).metadata["provenance"]["routed"]
    assert told["rules"]["accept_class"] == {"star": 0.95} and told["rules"]["audit"] == 0.1
    assert document(capfd, "route", f"{uri}@labels/guesses", "--set", "accept=0.8", "--set", "reject=0.5",
                    "--set", "accept_class.star=0.95", "--set", "audit=0.1")["found"]  # fmt: skip
    document(capfd, "export", "to", "label_studio", review, "--out", str(tmp_path / "out"), "--no-images")
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": task.pop("predictions")[0]["result"]}]
    (tmp_path / "done.json").write_text(json.dumps(tasks[1:]))
    done = ["relabel", review, str(tmp_path / "done.json"), "--from", "label_studio", "--label-set", "corrected"]
    version = document(capfd, *done)
    assert version["num_images"] == images["review"] - 1
    assert version["review"]["missing_images"] == [tasks[0]["data"]["image_id"]]
    code, out, err = run(capfd, *done)
    assert code == 0 and "it was there already" in out
    assert f"1 images that were sent out did not come back: {tasks[0]['data']['image_id']}" in err
    taken = document(capfd, "relabel", uri, version["reference"], "--from", "labels")
    assert taken["reference"] == f"{uri}@labels/gt:2" and taken["num_images"] == 12


def test_what_people_see(capfd, uri):
    code, out, _ = run(capfd, "route", uri, "guesses", "--budget", "1", "--name", "few")
    assert code == 0 and "few-review:1" in out and "over the review budget" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--accept", "high"], "write SCORE or CLASS=SCORE"),
        (["--accept", "0.2"], "the reject threshold 0.3 is above"),
        (["--accept", "stra=0.9"], "did you mean 'star'"),
        (["--set", "acept=0.9"], "unknown setting 'acept'"),
    ],
)
def test_refusals(capfd, uri, arguments, told):
    code, _, err = run(capfd, "route", uri, "guesses", *arguments)
    assert code == console.BAD_INPUT and told in err


def test_truth_is_not_routed(capfd, uri):
    assert app.run(["route", uri, "gt"]) == console.BAD_INPUT
    assert "not predictions" in capfd.readouterr().err
