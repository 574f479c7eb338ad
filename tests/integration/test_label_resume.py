"""Labelling that is killed half-way, twice at the same time, or run again: every image once, the same predictions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pipelines import delta, open_dataset, open_predictions
from pipelines.jobs import Job
from pipelines.quarantine import read_quarantine
from pipelines.storage import Store
from tests.conftest import running
from tests.faults import paced
from tests.faults.paced import Pace
from tests.integration.labelling import THRESHOLD, make_model, rows_by_image
from tests.integration.training import make_dataset
from workers.label import LabelConfig, PredictionSetRef, label
from workers.loader import RowGroupReader, list_row_groups

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray
IMAGES, TASKS = 48, 24


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("label")
    make_dataset(str(folder / "scenes"), num_train=40, num_val=8)
    return folder / "scenes"


@pytest.fixture(scope="module")
def model(scenes, tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("label") / "model", open_dataset(str(scenes)).label_map)


@pytest.fixture(scope="module")
def undisturbed(scenes, model, tmp_path_factory, ray_cluster) -> PredictionSetRef:
    return label(config_for(copied(scenes, tmp_path_factory.mktemp("undisturbed")), model))


def copied(scenes: Path, folder: Path) -> Path:
    """The same dataset elsewhere: the plan is the same, and nothing of it is done there yet."""
    return Path(shutil.copytree(scenes, folder / "scenes"))


def config_for(dataset: Path, model: str, **changes) -> LabelConfig:
    return LabelConfig(
        **{"input": str(dataset), "model": model, "score_threshold": THRESHOLD, "task_images": 2} | changes
    )


def receipts(dataset: Path) -> dict[str, float]:
    """Receipts of labelling and when each was put down."""
    return {
        path.name: path.stat().st_mtime
        for path in dataset.glob("_jobs/*/done/*.json")
        if "pred-" in json.loads(path.read_text())["files"][0]["path"]
    }


def assert_equal_to_undisturbed(made: PredictionSetRef, undisturbed: PredictionSetRef, dataset: Path) -> None:
    expected = Counter(record.image_id for record in open_dataset(str(dataset)).records())
    assert Counter(row[0] for row in rows_by_image(made.reference)) == expected
    assert set(expected.values()) == {1} and len(expected) == IMAGES
    assert rows_by_image(made.reference) == rows_by_image(undisturbed.reference)
    # Files are named by their content, and the digest is over their names.
    assert made.digest == undisturbed.digest


def test_the_undisturbed_run_finds_something_in_every_image(undisturbed):
    rows = rows_by_image(undisturbed.reference)
    assert len(rows) == IMAGES and all(row[3] == "ok" and len(row[6][0]) > 0 for row in rows)
    assert (undisturbed.tasks, undisturbed.resumed, undisturbed.found) == (TASKS, 0, False)
    assert undisturbed.num_objects == sum(len(row[6][0]) for row in rows)


def test_a_killed_worker_is_replaced(scenes, tmp_path, ray_cluster):
    pace, steady = Pace(tmp_path / "pace"), 0.5  # seconds a batch: some tasks are left when a worker dies
    pace.set(0.0)
    paced.save(tmp_path / "model", open_dataset(str(scenes)).label_map, pace)
    there = copied(scenes, tmp_path / "undisturbed")
    undisturbed = label(config_for(there, str(tmp_path / "model")))

    dataset = copied(scenes, tmp_path / "disturbed")
    killed: list[tuple[float, int]] = []

    # Receipts and not the progress that is told say when: that comes late where the whole run takes a moment.
    def kill_once() -> None:
        while len(receipts(dataset)) < 2 or not (workers := _labelling_workers()):
            time.sleep(0.01)
        done, when = len(receipts(dataset)), time.time()
        os.kill(workers[-1], signal.SIGKILL)  # the youngest: those of the run before may still be on their way out
        killed.append((when, done))
        pace.set(0.0)

    pace.set(steady)
    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    made = label(config_for(dataset, str(tmp_path / "model")))
    killer.join(timeout=10)
    assert not killer.is_alive(), "nothing was killed"
    (when, done), times = killed[0], receipts(dataset).values()
    assert 0 < done < TASKS and min(times) < when < max(times)
    assert not made.found
    assert_equal_to_undisturbed(made, undisturbed, dataset)


def test_a_killed_driver_is_resumed(scenes, model, undisturbed, tmp_path):
    dataset = copied(scenes, tmp_path)
    log = tmp_path / "killed.log"
    with (
        log.open("wb") as output,
        running(command(config_for(dataset, model)), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as driver,
    ):
        _wait_until(lambda: len(receipts(dataset)) >= TASKS // 3, driver, log)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        when = time.time()
        _wait_until_gone(dataset)
    before = receipts(dataset)
    assert TASKS // 3 <= len(before) < TASKS, "the kill fell between two receipts"
    assert not Store.open(str(dataset)).sub("labels").children(f"pred-{_digest(model)}/_delta_log")

    made = label(config_for(dataset, model))
    assert made.resumed == len(before) and not made.found
    after = receipts(dataset)
    assert before.items() <= after.items(), "what was done stays as it was"
    assert max(before.values()) <= when + 1 < min(after[name] for name in after.keys() - before.keys()) + 1
    assert_equal_to_undisturbed(made, undisturbed, dataset)


def test_two_runs_at_once_make_one_version(scenes, model, undisturbed, tmp_path):
    dataset = copied(scenes, tmp_path)
    log = tmp_path / "other.log"
    with (
        log.open("wb") as output,
        running(command(config_for(dataset, model)), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as other,
    ):
        _wait_until(lambda: len(receipts(dataset)) >= 1, other, log)
        ours = label(config_for(dataset, model))
        assert other.wait(timeout=120) == 0, log.read_text()[-3000:]
    theirs = json.loads(log.read_text().strip().splitlines()[-1])
    assert sorted([ours.found, theirs["found"]]) == [False, True]
    assert (ours.reference, ours.digest) == (theirs["reference"], theirs["digest"])
    table = Store.open(str(dataset)).sub("labels", f"pred-{_digest(model)}")
    assert len(list(delta.history(table))) == 1
    assert_equal_to_undisturbed(ours, undisturbed, dataset)


@pytest.mark.long
def test_again_finds_the_version_and_another_model_is_another_plan(scenes, model, tmp_path, ray_cluster):
    dataset = copied(scenes, tmp_path)
    config = config_for(dataset, model, splits=("val",), task_images=8)
    first = label(config)
    again = label(config)
    assert again.found and again.reference == first.reference and again.seconds < 5

    other_model = make_model(tmp_path / "other", open_dataset(str(dataset)).label_map, seed=1)
    other = label(config_for(dataset, other_model, splits=("val",), task_images=8))
    assert not other.found and other.reference != first.reference
    assert rows_by_image(other.reference) != rows_by_image(first.reference)
    assert len(list((dataset / "_jobs").iterdir())) == 1 + 2  # ingest, and one for each model

    # The rest of the images joins the set that is there.
    both = label(config_for(dataset, model, splits=("train",)))
    assert (both.num_images, both.found) == (IMAGES, False)
    assert dict(open_dataset(both.reference).splits) == {"train": 40, "val": 8}


def test_other_settings_under_the_same_name_are_refused_before_any_work(scenes, undisturbed, model):
    dataset = undisturbed.reference.split("@")[0]
    with pytest.raises(ValueError, match=r"already has predictions of 48 of these images.*out="):
        label(config_for(Path(dataset), model, score_threshold=0.5))


@pytest.mark.long
def test_a_changed_batch_size_finds_the_same_objects(scenes, model, undisturbed, tmp_path, ray_cluster):
    """Batches have no padding that depends on their neighbours: only rounding may differ."""
    dataset = copied(scenes, tmp_path)
    other = label(config_for(dataset, model, batch_size=3, task_images=16, splits=("val",)))
    ours = {row[0]: row for row in rows_by_image(undisturbed.reference)}
    for row in rows_by_image(other.reference):
        boxes, ids, scores, _ = row[6]
        expected_boxes, expected_ids, expected_scores, _ = ours[row[0]][6]
        assert scores == pytest.approx(expected_scores, abs=1e-6)
        assert len(ids) == len(expected_ids)
        close = sum(a == pytest.approx(b, abs=1e-3) for a, b in zip(boxes, expected_boxes))
        assert close >= 0.9 * len(boxes)  # boxes of nearly equal scores may change places


def test_a_prediction_set_can_be_trained_on(undisturbed):
    """Several label files belong to one image shard; the training reader meets every image once."""
    dataset = open_dataset(undisturbed.reference)
    assert len(dataset.shards) == TASKS > len({shard.image_path for shard in dataset.shards})
    groups = list_row_groups(dataset, "train")
    reader = RowGroupReader(groups, max_bytes=10**9)
    records = [reader.record(g, place) for g, group in enumerate(groups) for place in range(len(group.image_ids))]
    assert Counter(r.image_id for r in records) == Counter(dataset.index(["train"])["image_id"].to_pylist())
    assert all(len(r.annotations) > 0 for r in records)


def test_a_flipped_bit_in_a_shard_fails_one_image(scenes, model, tmp_path, ray_cluster):
    dataset = copied(scenes, tmp_path)
    record = next(open_dataset(str(dataset)).records(["val"]))
    shard = next(path for path in dataset.glob("images/*.parquet") if record.image in path.read_bytes())
    raw = bytearray(shard.read_bytes())
    raw[raw.index(record.image) + len(record.image) // 2] ^= 1
    shard.write_bytes(raw)

    made = label(config_for(dataset, model, splits=("val",), task_images=8))
    assert (made.num_images, made.num_quarantined) == (8, 1)
    ((image_id, error),) = open_predictions(made.reference).errors()
    assert image_id == record.image_id and "CorruptShard" in error
    (bad,) = read_quarantine(str(dataset), open_predictions(made.reference).metadata["plan_id"])
    assert (bad.image_id, bad.stage) == (record.image_id, "read") and bad.sha256 != record.sha256
    assert len(list_row_groups(open_dataset(made.reference), "val")[0].image_ids) < 8, "nothing is learnt from it"


def test_a_job_folder_tells_the_plan(undisturbed):
    dataset = undisturbed.reference.split("@")[0]
    version = open_dataset(undisturbed.reference)
    job = Job(dataset, version.metadata["plan_id"])
    assert job.missing() == [] and sum(job.read_column("count")) == IMAGES
    provenance = version.metadata["provenance"]
    assert provenance["model"]["digest"].startswith(undisturbed.reference.split("pred-")[1][:8])
    assert provenance["settings"]["score_threshold"] == THRESHOLD


def test_a_finished_run_is_found_without_its_job_folder(undisturbed, model, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(undisturbed.reference.split("@")[0], dataset)
    shutil.rmtree(dataset / "_jobs")
    found = label(config_for(dataset, model))
    assert (found.found, found.digest, found.num_images) == (True, undisturbed.digest, IMAGES)
    assert (found.tasks, found.resumed) == (0, 0)


def command(config: LabelConfig) -> list[str]:
    return [sys.executable, "-m", "tests.integration.labelling", json.dumps(config.to_json())]


def _digest(model: str) -> str:
    return json.loads((Path(model) / "model.json").read_text())["digest"][:8]


def _labelling_workers() -> list[int]:
    """Process ids of the actors that label for this process, the youngest last; Ray writes the class into a title."""
    processes: dict[int, tuple[int, int]] = {}  # parent, and when it began: process ids start over
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = path.joinpath("stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        processes[int(path.name)] = int(fields[1]), int(fields[19])
    ours, found = {os.getpid()}, []
    for pid in sorted(processes, key=lambda pid: processes[pid][1]):
        if processes[pid][0] in ours:
            ours.add(pid)
            try:
                title = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if "MapWorker(Map(LabelShard))" in title:
                found.append(pid)
    return found


def _wait_until(condition, process: subprocess.Popen, log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {log.read_text()[-3000:]}"
        assert time.monotonic() < end, f"nothing happened: {log.read_text()[-3000:]}"
        time.sleep(0.01)


def _wait_until_gone(dataset: Path, seconds: float = 60.0) -> None:
    """Workers that outlive their driver may still finish a task: wait until none writes any more."""
    end = time.monotonic() + seconds
    last, since = len(receipts(dataset)), time.monotonic()
    while time.monotonic() - since < 3.0:
        assert time.monotonic() < end, "workers of the killed driver go on and on"
        time.sleep(0.1)
        if len(receipts(dataset)) != last:
            last, since = len(receipts(dataset)), time.monotonic()
