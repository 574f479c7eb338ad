"""An ingest killed with SIGKILL at each step and run again ends in the version of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipelines import open_dataset, planning
from tests.faults.runs import content
from tests.making import coco_document, coco_images, write_coco

TASKS = 3
# Options of the source, the version, names of its shards, all that it says and holds to the byte.
Undisturbed = tuple[dict[str, str], dict[str, Any], list[str], dict[str, Any]]
# Where to die: (module, function, before or after, at which call).
POINTS = {
    "before the plan is there": ("pipelines.jobs.Job.save_plan", "before", 1),
    "after the plan": ("pipelines.jobs.Job.save_plan", "after", 1),
    "between image shard and labels": ("pipelines.importing.write_label_shard", "before", 2),
    "before a receipt": ("pipelines.jobs.Job.finish", "before", 2),
    "after a receipt": ("pipelines.jobs.Job.finish", "after", 2),
    "before the images commit": ("pipelines.importing.commit_images", "before", 1),
    "between the two commits": ("pipelines.importing.commit_labels", "before", 1),
    "after the labels commit": ("pipelines.importing.commit_labels", "after", 1),
}


def _ingest(options: dict[str, str], uri: str, point: str | None) -> dict[str, Any]:
    from pipelines.sources import open_source

    # The package gives the function under this name, import_module the module.
    ingesting = import_module("workers.ingest")
    planning.MAX_SHARD_IMAGES = 4
    ingesting._TASKS_WITHOUT_RAY = 100
    if point is not None:
        _die_at(*POINTS[point])
    return ingesting.ingest(open_source("coco", **options), uri).to_json()


def _die_at(path: str, when: str, at_call: int) -> None:
    owner_path, _, name = path.rpartition(".")
    if owner_path.endswith(".Job"):
        owner: Any = import_module("pipelines.jobs").Job
    else:
        owner = import_module(owner_path)
    real, calls = getattr(owner, name), 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if calls == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def _run(options: dict[str, str], uri: str, point: str | None) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=_ingest, args=(options, uri, point))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("source")
    images = coco_images(11)
    images["5.jpg"] = images["5.jpg"][:-20]
    options = write_coco(folder, "train", coco_document(11), images)
    with pytest.MonkeyPatch.context() as patch:  # _ingest sets them for good: it is meant for a process of its own
        patch.setattr(planning, "MAX_SHARD_IMAGES", 4)
        patch.setattr(import_module("workers.ingest"), "_TASKS_WITHOUT_RAY", 100)
        version = _ingest(options, str(folder / "undisturbed"), None)
    names = sorted(p.name for p in (folder / "undisturbed/images").glob("*.parquet"))
    return options, version, names, content(str(folder / "undisturbed"))


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(point: str, tmp_path: Path, undisturbed: Undisturbed) -> None:
    options, expected, image_files, files = undisturbed
    uri = str(tmp_path / "dataset")
    assert _run(options, uri, point) == -signal.SIGKILL
    assert _run(options, uri, None) == 0
    dataset = open_dataset(uri)
    assert dataset.version == 1, "a plan is committed once"
    assert dataset.digest == expected["digest"]
    assert dataset.metadata["plan_ledger"] == expected["ledger"]
    assert expected["ledger"]["images"]["quarantined"] == 1
    assert sorted(p.name for p in (tmp_path / "dataset/images").glob("*.parquet")) == image_files
    assert sum(1 for _ in dataset.records()) == 10
    assert content(uri) == files
    assert len(list((tmp_path / "dataset/_jobs").glob("*/done/*.json"))) == TASKS
