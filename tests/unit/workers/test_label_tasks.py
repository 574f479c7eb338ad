"""How a dataset is cut into tasks without reading it, and that a worker finds in its label file what was planned."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.commits import commit_labels
from pipelines.jobs import Job, Receipt
from pipelines.ledger import Ledger
from pipelines.predictions import write_predictions
from pipelines.records import Annotations, Category, LabelMap
from pipelines.revisions import remove_images
from pipelines.schema import LabelRow
from pipelines.shards import CorruptShard, ShardRef, read_label_columns, read_label_file
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.label_jobs import job_with
from workers import label_receipts, label_tasks
from workers.label_attempts import FailedTask, give_up
from workers.label_config import LabelConfig
from workers.label_job import LabelJob
from workers.label_listing import LabelInput, open_input
from workers.label_plan import LabelPlan, ModelFacts, make_plan
from workers.label_tasks import TASK, planned_images, read_task, save_tasks

SIZES = (5, 1, 8, 3)
LABEL_MAP = LabelMap(categories=(Category(category_id=1, name="thing"),))
MODEL = ModelFacts(
    uri="model", digest="a" * 64, categories=({"id": 1, "name": "thing"},), spec={}, preprocessing={"size": 320}
)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Shards of which every third image is of ``val``; rows have gaps, and a file's are not in order."""
    store, numbers = Store.open(str(tmp_path)), iter(range(100))
    files = []
    for shard, size in enumerate(SIZES):
        rows = [row(next(numbers), place) for place in range(size)]
        files.append(write_predictions(store, "gt", f"part-{shard}", rows[::-1]))
    ledger = Ledger()
    ledger.imported("image", sum(SIZES))
    commit_labels(str(tmp_path), "gt", files, plan_id="p", label_map=LABEL_MAP, images_version=0, ledger=ledger.sums())
    return str(tmp_path)


def row(number: int, place: int) -> LabelRow:
    return LabelRow(
        image_id=f"{number}.jpg",
        row=2 * place,
        row_group=place // 4,
        split="val" if number % 3 == 0 else "train",
        coco_image_id=number + 1,
        width=640,
        height=480,
        annotations=Annotations.from_boxes(np.zeros((0, 4)), np.zeros(0, np.int64)),
    )


def planned(uri: str, **settings: object) -> tuple[Job, LabelJob, LabelInput, LabelPlan]:
    config = LabelConfig(input=uri, model="model", out="pred", task_images=3, **settings)
    source = open_input(config)
    plan = make_plan(config, source, MODEL)
    splits = plan.settings["splits"]
    label_job = job_with(
        root=uri,
        label_set="pred",
        plan_id=plan.plan_id,
        input_kind="dataset",
        input_uri=uri,
        splits=None if splits is None else tuple(splits),
        model_uri="model",
        model_digest="a" * 64,
        categories=MODEL.categories,
        thresholds=(0.5,),
    )
    return Job(plan.root, plan.plan_id), label_job, source, plan


@pytest.mark.parametrize("splits", [None, ("val",), ("train",), ("train", "val")])
def test_every_image_is_in_one_task_in_the_order_of_its_shard(uri: str, splits: tuple[str, ...] | None) -> None:
    job, label_job, source, plan = planned(uri, splits=splits)
    made = save_tasks(job, source, plan, {"k": 1})
    tasks = [read_task(label_job, job, task) for task in range(made.num_tasks)]
    assert made.metadata == {"k": 1}
    assert planned_images(job) == [task.num_rows for task in tasks] and max(planned_images(job)) <= 3
    assert all(task.schema == TASK and task.num_rows for task in tasks)
    expected = []
    for shard in open_dataset(uri).shards:
        table = read_label_columns(shard, ["image_id", "row", "row_group", "split", "coco_image_id"]).sort_by("row")
        wanted = [r | {"image_path": shard.image_path} for r in table.to_pylist() if not splits or r["split"] in splits]
        expected += wanted
    found = [r for task in tasks for r in task.to_pylist()]
    assert [{name: r[name] for name in expected[0]} for r in found] == expected
    assert len(expected) == source.num_images and {(r["width"], r["height"]) for r in found} == {(640, 480)}


def test_planning_reads_no_label_file(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(ref: ShardRef, columns: object) -> None:
        raise AssertionError(f"{ref.label_path} was read")

    monkeypatch.setattr(label_tasks, "read_label_columns", read)
    job, label_job, source, plan = planned(uri)
    made = save_tasks(job, source, plan, {})
    assert (made.num_tasks, planned_images(job)) == (2 + 1 + 3 + 1, [3, 2, 1, 3, 3, 2, 3])
    with pytest.raises(AssertionError, match="was read"):
        read_task(label_job, job, 0)


def test_of_some_splits_only_shards_that_mix_them_are_read(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(ref: ShardRef, columns: list[str]) -> object:
        read.append(ref.rows)
        return read_label_columns(ref, columns)

    monkeypatch.setattr(label_tasks, "read_label_columns", counted)
    # The second shard has image 5 alone, of train; image 0, 3 and so on are of val.
    assert [shard.split for shard in open_dataset(uri).shards] == [None, "train", None, None]
    job, _, source, plan = planned(uri, splits=("val",))
    save_tasks(job, source, plan, {})
    assert read == [5, 8, 3] and planned_images(job) == [2, 3, 1]

    # Shards rewritten without their images of val are of one split then.
    version = remove_images(uri, [f"{number}.jpg" for number in range(0, 17, 3)])
    assert [shard.split for shard in open_dataset(version.reference).shards] == ["train"] * 4


def test_a_plan_that_lists_its_images_is_read_as_it_was_meant(uri: str) -> None:
    """As plans were written before, and as those of images that lie elsewhere are: a run that began then goes on."""
    job, label_job, source, plan = planned(uri)
    parts = save_tasks(job, source, plan, {})
    tables = [read_task(label_job, job, task) for task in range(parts.num_tasks)]
    listed = Job(uri, "before")
    listed.save_plan(iter(tables), TASK, {})
    assert planned_images(listed) == planned_images(job)
    assert all(read_task(label_job, listed, task).equals(table) for task, table in enumerate(tables))


def test_a_commit_that_says_other_counts_is_refused(uri: str) -> None:
    job, _, source, plan = planned(uri)
    with pytest.raises(ValueError, match=r"says 18 images, of its label files 17; find out with `boxmill verify"):
        save_tasks(job, replace(source, num_images=18), plan, {})
    assert not job.has_plan()


def test_a_label_file_that_was_changed_since_is_named(uri: str) -> None:
    job, label_job, source, plan = planned(uri)
    save_tasks(job, source, plan, {})
    path = source.dataset.shards[0].label_path
    Store.open(uri).write_bytes(path, b"else")
    with pytest.raises(CorruptShard, match=path):
        read_task(label_job, job, 0)
    with pytest.raises(CorruptShard, match=r"lacks rows of task 2: planned were 1 from 0, there are 0"):
        read_task(replace(label_job, splits=("nowhere",)), job, 2)


def test_a_task_that_is_given_up_names_the_images_of_its_label_file(uri: str) -> None:
    job, label_job, source, plan = planned(uri)
    save_tasks(job, source, plan, {})
    give_up(label_job, job, FailedTask(task=1, attempts=5, error_class="WorkerDied", error="gone"))
    images = read_task(label_job, job, 1)["image_id"].to_pylist()
    assert [letter["images"] for letter in job.dead_letters()] == [images] and len(images) == 2
    (receipt,) = job.receipts()
    assert (receipt.task_id, receipt.files[0].rows, receipt.extra["failed"], receipt.extra["dead"]) == (1, 2, 2, True)
    written = read_label_file(uri, receipt.files[0].path)
    assert written["image_id"].to_pylist() == images and set(written["status"].to_pylist()) == {"failed"}


def test_receipts_are_bundled_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_receipts, "BUNDLED", 3)
    job, bundles = Job(str(tmp_path), "p"), tmp_path / "_jobs" / "p" / "bundles"
    waiting = label_receipts.ReceiptBundle(job)
    receipts = [Receipt(task_id=task, ledger={"n": task}) for task in range(7)]
    for receipt in receipts:
        job.finish(receipt.task_id, receipt)
        waiting.add(json.dumps(receipt.to_json()))
        waiting.add("")  # of an attempt that failed
    assert [len(json.loads(path.read_text())) for path in bundles.iterdir()] == [3, 3]
    assert job.receipts() == receipts

    def refuse(self: Job, receipts: object) -> None:
        raise OSError("503")

    monkeypatch.setattr(Job, "bundle", refuse)
    for receipt in receipts:
        waiting.add(json.dumps(receipt.to_json()))
    assert len(list(bundles.iterdir())) == 2


def test_whoever_plans_and_commits_does_without_torch_and_ray() -> None:
    """They take most of a gigabyte, which is then there for the receipts of a million images."""
    code = "import sys, workers.label; print(sorted({'torch', 'ray', 'torchvision', 'timm'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
