"""Tasks that fail: tried again, given up, their images counted and listed; and a run that fails as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import open_predictions
from pipelines.jobs import Job
from pipelines.quarantine import read_quarantine
from tests.integration import poisonous
from tests.integration.poisonous import KILLS, RAISES, SULKS
from tests.making import encoded
from workers.label import LabelConfig, label
from workers.label_attempts import LabellingFailed

pytestmark = pytest.mark.ray


def config_for(folder: Path, widths: dict[str, int], **changes) -> LabelConfig:
    images = folder / "images"
    images.mkdir()
    for name, width in widths.items():
        (images / f"{name}.jpg").write_bytes(encoded(width, 16, seed=len(name)))
    made = poisonous.save(folder / "model", folder / "memory")
    settings = {"task_images": 1, "batch_size": 1, "workers": 1, "max_attempts": 2, "price_per_hour": 3.6}
    return LabelConfig(input=str(images), out=str(folder / "out"), **made, **settings | changes)


@pytest.mark.long
def test_a_poisonous_task_is_given_up_and_the_others_go_on(tmp_path, ray_cluster):
    # In this order: who kills its worker takes none of the other bad ones along.
    widths = {"a-raises": RAISES, "b-sulks": SULKS} | {f"good{i}": 24 + i for i in range(6)} | {"kills": KILLS}
    told: list[tuple[int, dict[str, float]]] = []
    config = config_for(tmp_path, widths, max_dead_share=0.25)
    made = label(config, lambda stage, done, total, **numbers: told.append((done, numbers)))
    predictions = open_predictions(made.reference)

    assert (made.num_images, made.num_quarantined, made.num_objects) == (9, 2, 7)
    errors = dict(predictions.errors())
    assert errors.keys() == {"kills.jpg", "a-raises.jpg"}
    assert errors["kills.jpg"].startswith("label: WorkerDied: given up after 2 attempts")
    assert "RuntimeError" in errors["a-raises.jpg"] and "41 pixels wide" in errors["a-raises.jpg"]
    looks = {width: (tmp_path / "memory" / str(width)).read_text().count("seen") for width in (KILLS, RAISES, SULKS)}
    assert looks == {KILLS: 2, RAISES: 2, SULKS: 2}

    plan_id = predictions.metadata["plan_id"]
    letters = Job(config.out, plan_id).dead_letters()
    assert [(letter["images"], letter["attempts"], letter["error_class"]) for letter in letters] == [
        (["a-raises.jpg"], 2, "RuntimeError"),
        (["kills.jpg"], 2, "WorkerDied"),
    ]
    assert {row.image_id: row.stage for row in read_quarantine(config.out, plan_id)} == dict.fromkeys(errors, "label")

    account = json.loads(Path(made.account_uri).read_text())
    assert account == made.account
    assert (account["images"], account["tasks"], account["tasks_given_up"], account["quarantined"]) == (9, 9, 2, 2)
    assert account["retries"] >= 3, "of the two given up, of the sulking one, of whom the killed worker had beside it"
    good = [file for file in (tmp_path / "images").iterdir() if file.name not in errors]
    assert account["bytes_read"] == sum(file.stat().st_size for file in good)
    assert all(seconds > 0 for seconds in account["stage_seconds"].values())
    run = account["run"]
    assert run["cost_per_million_images"] == pytest.approx(3.6 * run["seconds"] / 3600 / run["images"] * 1e6, rel=0.01)
    assert told[-1][0] == 7 and told[-1][1]["retries"] >= 2 and told[-1][1]["quarantined"] == 0

    assert label(config).found, "what was given up is not tried again unasked"


@pytest.mark.slow
def test_a_run_that_fails_as_a_whole_commits_nothing_and_can_be_resumed(tmp_path, ray_cluster):
    config = config_for(tmp_path, {"raises": RAISES, "sulks": SULKS}, max_attempts=1)
    with pytest.raises(LabellingFailed, match=r"2 of 2 tasks.*max_dead_share=0\.1.*too much for me.*same command"):
        label(config)
    assert not (tmp_path / "out/labels").exists()
    # The second time only one of them is at fault.
    made = label(config)
    assert dict(open_predictions(made.reference).status()) == {"ok": 1, "failed": 1}


def test_only_what_failed_is_tried_again(tmp_path, ray_cluster):
    widths = {"good0": 24, "good1": 25, "raises": RAISES, "sulks": SULKS}
    config = config_for(tmp_path, widths, max_attempts=1, max_dead_share=0.5, task_images=1)
    cut = tmp_path / "images/cut.jpg"
    whole = encoded(30, 16)
    cut.write_bytes(whole[:-30])
    first = label(config)
    assert dict(open_predictions(first.reference).errors()).keys() == {"raises.jpg", "sulks.jpg", "cut.jpg"}

    with pytest.raises(ValueError, match=r"no predictions of .* with these settings"):
        label(replace(config, retry="failed", score_threshold=0.4))
    again = label(replace(config, retry="failed"))
    assert (again.tasks, again.num_images, again.num_quarantined, again.num_objects) == (2, 5, 2, 3)
    rows = {row.image_id: row for row in open_predictions(again.reference).rows()}
    assert rows["sulks.jpg"].status == "ok" and "too much" in rows["raises.jpg"].error
    untouched = {row.image_id: row for row in open_predictions(first.reference).rows()}
    assert rows["good0.jpg"].coco_image_id == untouched["good0.jpg"].coco_image_id
    assert [row.image_id for row in open_predictions(again.reference).rows()] == sorted(rows)

    cut.write_bytes(whole)
    mended = label(replace(config, retry="quarantined"))
    assert (mended.tasks, mended.num_quarantined, mended.account["images"]) == (1, 1, 1)
    assert "cut.jpg" not in {row.image_id for row in read_quarantine(config.out)}
    nothing = label(replace(config, retry="quarantined"))
    assert nothing.found and nothing.tasks == 0 and nothing.reference == mended.reference
