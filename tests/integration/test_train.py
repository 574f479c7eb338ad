"""Two workers train on real Ray: the model, its digest, resuming, and what goes wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from detectors import load
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.integration.training import make_dataset, tiny_config
from workers.models import fetch_model
from workers.train import prepare, train
from workers.train_loop import NonFiniteLoss

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(str(tmp_path_factory.mktemp("train") / "scenes"))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory, ray_cluster):
    """An undisturbed run of three epochs, and what it told on its way."""
    config = tiny_config(dataset, str(tmp_path_factory.mktemp("train") / "model"), epochs=3)
    told = []
    model = train(config, lambda *stage, **numbers: told.append((stage, numbers)))
    return config, model, told


def test_a_model_comes_out_that_loads_with_its_digest_and_its_past(trained, dataset):
    config, model, told = trained
    loaded = load(Path(model.uri))
    assert loaded.digest == model.digest
    assert loaded.categories == open_dataset(dataset).label_map.to_json()
    assert loaded.provenance["dataset"]["reference"] == dataset
    assert loaded.provenance["config"]["lr"] == config.lr
    assert loaded.detector.preprocessing.size == 128
    assert [entry["epoch"] for entry in model.history] == [1, 2, 3]
    first, second, third = (entry["loss"] for entry in model.history)
    assert first > second > third and third < 0.93 * first  # nine steps from random weights
    assert all(math.isfinite(entry["AP50"]) for entry in model.history)
    assert model.metrics["AP"] == model.history[-1]["AP"]
    assert model.seconds == pytest.approx(sum(entry["seconds"] for entry in model.history), abs=0.01)
    (last_stage, last_numbers) = told[-1]
    assert last_stage == ("train", 9, 9) and {"epoch", "loss", "lr", "AP", "AP50"} <= last_numbers.keys()


def test_the_same_call_returns_the_same_model_at_once(trained):
    config, model, _ = trained
    told = []
    started = time.monotonic()
    again = train(replace(config, cpus_per_worker=2), lambda *stage, **_: told.append(stage))
    assert again == model and not told
    assert time.monotonic() - started < 5


def test_another_run_does_not_overwrite_a_model(trained):
    config, model, _ = trained
    with pytest.raises(ValueError, match="holds a model of another training run"):
        train(replace(config, lr=1e-4))
    assert load(Path(model.uri)).digest == model.digest


def test_killed_after_an_epoch_the_same_command_goes_on_and_ends_with_the_same_weights(trained, dataset, tmp_path):
    config, undisturbed, _ = trained
    out = tmp_path / "model"
    command = [sys.executable, "-m", "tests.integration.training", dataset.partition("@")[0], str(out), '{"epochs": 3}']
    environment = {**os.environ, "RAY_ADDRESS": ""}
    environment.pop("RAY_ADDRESS")
    first = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        run = wait_for_snapshot(out / "_train", first)
        os.kill(first.pid, signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    # The driver's Ray dies with it; a checkpoint is there, a model is not.
    assert not (out / "model.json").exists()
    kept = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
    checkpoint = kept["latest_checkpoint_result"]["checkpoint_dir_name"]
    done = int(checkpoint.removeprefix("epoch_"))
    assert 1 <= done < 3

    told = []
    model = train(replace(config, out=str(out)), lambda stage, done, total, **numbers: told.append((done, numbers)))
    assert [path.name for path in (out / "_train").iterdir()] == [run.name]
    assert [entry["epoch"] for entry in model.history] == [1, 2, 3]
    assert model.history[0]["loss"] == pytest.approx(undisturbed.history[0]["loss"], rel=1e-4)
    first_step = min(step for step, numbers in told if "epoch" in numbers)
    assert first_step > 3 * done, "the finished epochs are not done again"
    assert weights_digest(model.uri) == weights_digest(undisturbed.uri)


@pytest.mark.long
def test_a_loss_that_is_no_number_stops_both_workers_and_names_the_batch(dataset, tmp_path, ray_cluster):
    config = tiny_config(dataset, str(tmp_path / "model"), lr=1e18, warmup_steps=0, clip_norm=None, ema=0)
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step [23] of 3: .*rank [01]: .* on images train") as caught:
        train(config)
    named = str(caught.value).partition(" on images ")[2].partition(". Look")[0]
    assert len(named.split(", ")) >= 4
    assert not (tmp_path / "model" / "model.json").exists()


@pytest.mark.long
def test_fine_tuning_starts_from_the_given_weights(trained, dataset, tmp_path):
    _, model, _ = trained
    config = tiny_config(
        dataset, str(tmp_path / "tuned"), init_from=model.uri, epochs=1, workers=1, lr=1e-9, val_split=None, ema=0
    )
    tuned = train(config)
    before, after = (load(Path(uri)).detector.state_dict() for uri in (model.uri, tuned.uri))
    assert max((before[name].float() - after[name].float()).abs().max() for name in before) < 1e-6
    assert tuned.metrics == {} and "AP" not in tuned.history[0]


@pytest.mark.long
def test_a_model_can_be_trained_and_fetched_on_s3(s3_server, tmp_path):
    dataset = s3_server.uri("train/scenes")
    out = s3_server.uri("train/model")
    # Its Ray must be started where the keys are: workers inherit the environment of their node.
    command = [sys.executable, "-m", "tests.integration.training", dataset, out, '{"epochs": 1}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    names = [stat.path for stat in Store.open(out).list_files()]
    assert {"model.json", "model.safetensors"} <= set(names)
    assert any(name.endswith("epoch_0001/checkpoint.pt") for name in names)
    assert load(fetch_model(out)).digest == told["digest"]
    assert s3_server.secret_key not in Store.open(out).read_bytes("model.json").decode()


def test_a_run_is_named_by_what_decides_its_result(dataset, tmp_path):
    def name(**changes):
        return prepare(tiny_config(dataset, str(tmp_path / "m"), **changes), open_dataset(dataset)).run_name

    assert name() == name(cache_mb=1, keep_checkpoints=3, use_gpu=False)
    assert name() == prepare(tiny_config(dataset, str(tmp_path / "elsewhere")), open_dataset(dataset)).run_name
    assert len({name(), name(seed=1), name(lr=1e-4), name(workers=1), name(image_size=160)}) == 5


def wait_for_snapshot(storage: Path, process: subprocess.Popen) -> Path:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        found = list(storage.glob("*/checkpoint_manager_snapshot.json"))
        if found and json.loads(found[0].read_text() or "{}").get("latest_checkpoint_result"):
            return found[0].parent
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint was written; the process ended with {process.poll()}")


def weights_digest(uri: str) -> str:
    return json.loads((Path(uri) / "model.json").read_text())["files"]["model.safetensors"]
