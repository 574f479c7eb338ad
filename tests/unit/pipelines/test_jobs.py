from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.jobs import Job, Receipt, files_of, make_plan_id
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.planning import cut_tasks, items_from_arrow, items_to_arrow
from pipelines.shards import ShardFile
from pipelines.sources import SourceItem
from tests.making import annotations, assert_same_annotations

SCHEMA = pa.schema([("n", pa.int64())])


def _receipt(task_id: int, name: str) -> Receipt:
    file = ShardFile(path=f"labels/gt/{name}.parquet", size=1, rows=2, num_objects=3, splits={"train": 2})
    return Receipt(task_id=task_id, files=(file,), ledger={"a": 1}, extra={"b": [2]})


def test_a_task_reads_its_own_rows(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "p")
    assert not job.has_plan()
    tables = (pa.table({"n": [i] * (i + 1)}, schema=SCHEMA) for i in range(3))
    plan = job.save_plan(tables, SCHEMA, {"k": "é"})
    assert (plan.num_tasks, plan.metadata) == (3, {"k": "é"})
    again = pickle.loads(pickle.dumps(job))
    assert again.plan() == plan
    assert again.read_task(2)["n"].to_pylist() == [2, 2, 2]
    assert again.read_column("n") == [0, 1, 1, 2, 2, 2]


def test_many_small_tasks_share_row_groups_and_are_read_one_by_one(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "p")
    sizes = [3, 0, 700, 400, 1, 2000, 0, 5, 1024, 0]
    tables = [pa.table({"n": [task] * size}, schema=SCHEMA) for task, size in enumerate(sizes)]
    plan = job.save_plan(iter(tables), SCHEMA, {})
    assert plan.num_tasks == len(sizes) and job.task_rows() == sizes
    for task, table in enumerate(tables):
        assert job.read_task(task).equals(table), task
    footer = pq.read_metadata(tmp_path / "_jobs" / "p" / "plan.parquet")
    # 3 + 0 + 700 | 400 + 1 | 2000 + 0 | 5 | 1024 + 0: whole tasks, at most 1,024 rows unless one has more.
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [703, 401, 2000, 5, 1024]


def test_a_plan_of_one_row_group_a_task_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """As plans were written before tasks shared row groups: a run that began then goes on."""
    path = tmp_path / "_jobs" / "p" / "plan.parquet"
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for task, size in enumerate([2, 1, 3]):
            writer.write_table(pa.table({"n": [task] * size}, schema=SCHEMA), row_group_size=size)
        writer.add_key_value_metadata({"boxmill": '{"k": 1}'})
    job = Job(str(tmp_path), "p")
    assert job.plan().num_tasks == 3 and job.task_rows() == [2, 1, 3] and job.plan().metadata == {"k": 1}
    assert [job.read_task(task)["n"].to_pylist() for task in range(3)] == [[0, 0], [1], [2, 2, 2]]


def test_bundles_save_reading_receipts_and_nothing_depends_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(str(tmp_path), "p")
    receipts = [_receipt(task, f"file{task}") for task in range(8)]
    for receipt in receipts[:7]:
        job.finish(receipt.task_id, receipt)
    read: list[int] = []
    receipt_of = Job.receipt
    monkeypatch.setattr(Job, "receipt", lambda self, task: (read.append(task), receipt_of(self, task))[1])
    assert job.receipts() == receipts[:7] and read == list(range(7))

    # A task twice, and one (7) that has no receipt: a bundle alone makes nothing done.
    job.bundle(receipts[4:6])
    job.bundle([receipts[7], receipts[5], receipts[1]])
    read.clear()
    assert job.receipts() == receipts[:7] and read == [0, 2, 3, 6]
    assert job.missing(8) == [7]

    damaged, _ = sorted((tmp_path / "_jobs" / "p" / "bundles").iterdir())
    damaged.write_bytes(damaged.read_bytes().replace(b"file", b"else"))
    assert job.receipts() == receipts[:7]
    damaged.unlink()
    assert job.receipts() == receipts[:7]


def test_the_first_receipt_wins(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "p")
    assert job.missing(3) == [0, 1, 2]
    assert job.finish(1, _receipt(1, "first"))
    assert not job.finish(1, _receipt(1, "second"))
    # Not even equal content makes a second winner on a local disk.
    assert not job.finish(1, _receipt(1, "first"))
    assert job.receipt(1) == _receipt(1, "first")
    assert job.missing(3) == [0, 2]
    assert job.finish(0, _receipt(0, "zero"))
    assert [f.path for f in files_of(job.receipts(), "labels/gt")] == [
        "labels/gt/zero.parquet",
        "labels/gt/first.parquet",
    ]
    assert files_of(job.receipts(), "images") == []


def test_plan_ids_tell_parts_apart() -> None:
    one = make_plan_id(a=1, b={"x": 1, "y": 2})
    assert one == make_plan_id(b={"y": 2, "x": 1}, a=1)
    assert one != make_plan_id(a=1, b={"x": 1, "y": 3})


def test_items_survive_the_plan() -> None:
    items = [
        SourceItem(
            image_id="a",
            uri="s3://b/a",
            offset=5,
            length=7,
            size=7,
            split="val",
            coco_image_id=9,
            annotations=annotations(3),
            declared_size=(4, 5),
            clip_tolerance=0.0,
            payload={"p": [1]},
            license="by",
            url="u",
            group_id="g",
            extra={"e": None},
        ),
        SourceItem(image_id="b", uri="b"),
    ]
    found = items_from_arrow(items_to_arrow(items))
    for one, other in zip(found, items, strict=True):
        for name in SourceItem.__slots__:
            if name == "annotations":
                assert_same_annotations(one.annotations, other.annotations)
            else:
                assert getattr(one, name) == getattr(other, name), name


def test_tasks_are_cut_by_images_and_by_bytes() -> None:
    small = [SourceItem(image_id=str(i), uri="", size=10) for i in range(2050)]
    assert [len(t) for t in cut_tasks(small)] == [1024, 1024, 2]
    big = [SourceItem(image_id=str(i), uri="", size=100 * 2**20) for i in range(5)]
    assert [len(t) for t in cut_tasks(big)] == [2, 2, 1]
    huge = [SourceItem(image_id=str(i), uri="", size=2**30) for i in range(2)]
    assert [len(t) for t in cut_tasks(huge)] == [1, 1]


def test_dead_letters_are_listed_by_task_and_forget_what_is_purged(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "p")
    schema = pa.schema([("image_id", pa.string())])
    job.save_plan((pa.table({"image_id": [name]}, schema=schema) for name in "ab"), schema, {})
    for task, images in ((1, ["b", "c"]), (0, ["a"])):
        job.write_dead_letter(task, {"task": task, "images": images, "error": "gone"})
        job.finish(task, replace(_receipt(task, "x"), ledger=Ledger().to_json()))
    assert [letter["task"] for letter in job.dead_letters()] == [0, 1]
    job.forget({"b"})
    assert [letter["images"] for letter in job.dead_letters()] == [["a"], ["c"]]


def test_a_plan_of_parts_forgets_what_its_receipts_and_their_bundles_tell(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "p")
    job.save_rows(pa.table({"label_path": ["labels/gt/one", "labels/gt/two"]}), {})
    assert (job.plan().num_tasks, job.task_rows(), job.read_task(1)["label_path"].to_pylist()) == (
        2,
        [1, 1],
        ["labels/gt/two"],
    )
    ledger = Ledger()
    ledger.add(LedgerEntry(subject="image", fate="quarantined", reason="r", image_id="secret"))
    receipts = [replace(_receipt(task, "x"), ledger=ledger.to_json()) for task in range(2)]
    for receipt in receipts:
        job.finish(receipt.task_id, receipt)
    job.bundle(receipts)
    assert _files_with(tmp_path, b"secret") == 3
    job.forget({"other"})
    job.forget({"secret"})
    assert _files_with(tmp_path, b"secret") == 0
    assert [receipt.ledger["images"]["quarantined"] for receipt in job.receipts()] == [1, 1]


def _files_with(folder: Path, text: bytes) -> int:
    return sum(text in path.read_bytes() for path in folder.rglob("*.*") if path.is_file())
