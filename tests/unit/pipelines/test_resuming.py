"""Files that only receipts name: vacuum takes the receipts first, and no commit names what is gone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import maintenance
from pipelines.importing import StrictIngestError, run_task
from pipelines.jobs import Job, Receipt
from pipelines.maintenance import vacuum, verify_newest
from pipelines.predictions import write_predictions
from pipelines.resuming import FilesLost, check_files, resume
from pipelines.shard_paths import shard_stem
from pipelines.shard_writing import label_rows
from pipelines.sources import Source, open_source
from pipelines.storage import Store
from pipelines.versions import list_label_sets, open_dataset
from tests.making import coco_document, coco_images, commit_records, record, write_coco
from workers.ingest import ingest

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A dataset of something else, so that there is a label set to vacuum."""
    commit_records(tmp_path / "d", [record(i) for i in range(3)], plan_id="one")
    return str(tmp_path / "d")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Images of which one box has to be mended."""
    document = coco_document(3)
    document["annotations"][0]["bbox"] = [20, 2, 15, 6]
    return open_source("coco", **write_coco(tmp_path / "source", "train", document, coco_images(3)))


def refuse(source: Source, uri: str, **settings: str) -> None:
    with pytest.raises(StrictIngestError):
        ingest(source, uri, label_set="new", strict=True, **settings)


def age(uri: str, hours: float = 3) -> None:
    then = time.time() - hours * 3600
    for path in Path(uri).rglob("*"):
        os.utime(path, (then, then))


def receipts(uri: str) -> list[Path]:
    return sorted(Path(uri).glob("_jobs/*/done/*.json"))


@pytest.mark.parametrize("dedupe", ["keep", "report", "drop"])
def test_what_a_refused_ingest_left_goes_with_its_receipts_and_the_ingest_is_done_anew(
    uri: str, source: Source, dedupe: str
):
    refuse(source, uri, dedupe=dedupe)
    age(uri)
    told = vacuum(uri, grace_hours=2, dry_run=True)
    assert len(told.paths) == 3 and len(told.plans) == 1 and len(receipts(uri)) == 1
    assert vacuum(uri, grace_hours=2).paths == told.paths
    assert receipts(uri) == []
    version = ingest(source, uri, label_set="new", dedupe=dedupe)
    assert version.num_images == 3 and len(list(open_dataset(version.reference).records())) == 3
    assert verify_newest(uri) == []


def test_a_plan_in_which_something_happened_lately_keeps_its_files(uri: str, source: Source):
    refuse(source, uri)
    age(uri)
    job = Job(uri, receipts(uri)[0].parents[1].name)
    assert resume(job, 1) == []
    assert vacuum(uri, grace_hours=2).paths == () and len(receipts(uri)) == 1
    ingest(source, uri, label_set="new")
    assert verify_newest(uri) == []


def test_a_plan_that_is_taken_up_while_vacuum_looks_keeps_its_files(
    uri: str, source: Source, monkeypatch: pytest.MonkeyPatch
):
    refuse(source, uri)
    age(uri)
    job = Job(uri, receipts(uri)[0].parents[1].name)
    take_back = Job.take_back
    monkeypatch.setattr(Job, "take_back", lambda self, tasks: (resume(self, 1), take_back(self, tasks))[1])
    assert vacuum(uri, grace_hours=2).paths == ()
    assert job.has_plan() and job.missing() == [0]
    assert len(list(Path(uri).glob("images/part-*"))) == 2


def test_receipts_of_a_committed_plan_stay_for_its_ledger(tmp_path: Path, source: Source):
    images = coco_images(3)
    images["3.jpg"] = images["1.jpg"]
    doubled = open_source("coco", **write_coco(tmp_path / "doubled", "train", coco_document(3), images))
    uri = str(tmp_path / "e")
    ingest(doubled, uri, dedupe="drop")
    age(uri)
    found = vacuum(uri, grace_hours=2)
    assert [path.split("/")[0] for path in found.paths] == ["labels"] and found.plans == ()
    assert len(receipts(uri)) == 1 and verify_newest(uri) == []


def test_nothing_is_committed_where_files_are_gone_and_the_next_call_does_their_tasks(uri: str, source: Source):
    refuse(source, uri)
    for folder in ("images", "images/_index", "labels/new"):
        named = {shard.image_path for shard in open_dataset(uri).shards}
        next(p for p in Path(uri, folder).glob("part-*") if f"images/{p.name}" not in named).unlink()
        with pytest.raises(FilesLost, match=r"are gone, e\.g\. .*part-.*does these 1 tasks anew"):
            ingest(source, uri, label_set="new", dedupe="keep")
        assert list_label_sets(uri) == ["gt"] and receipts(uri) == []
        refuse(source, uri)
    assert ingest(source, uri, label_set="new").num_images == 3 and verify_newest(uri) == []


def test_a_bundle_does_not_bring_a_receipt_back(tmp_path: Path):
    job = Job(str(tmp_path), "p")
    job.save_rows(pa.table({"n": [1, 2]}), {})
    old = [Receipt(task_id=task, extra={"old": True}) for task in range(2)]
    for receipt in old:
        job.finish(receipt.task_id, receipt)
    job.bundle(old)
    job.take_back([1])
    assert job.missing() == [1] and job.receipts() == old[:1]
    job.finish(1, Receipt(task_id=1))
    assert job.receipts() == [old[0], Receipt(task_id=1)]
    with pytest.raises(FilesLost, match="1 receipts of plan p are gone"):
        job.take_back([0])
        check_files(job, [], 2)


def test_predictions_of_an_abandoned_plan_go_with_its_receipts_and_bundles(uri: str):
    """As ``workers.label`` keeps them: label files beside committed images, receipts also in bundles."""
    store, job = Store.open(uri), Job(uri, "labelling")
    job.save_rows(pa.table({"n": [1]}), {})
    shard = open_dataset(uri).shards[0]
    rows = label_rows(list(open_dataset(uri).records()))
    file = write_predictions(store, "pred", shard_stem(shard.image_path), rows)
    receipt = Receipt(task_id=0, files=(file,))
    job.finish(0, receipt)
    job.bundle([receipt])
    check_files(job, [file], 1)
    age(uri)
    assert vacuum(uri, grace_hours=2).paths == (file.path,)
    assert not job.has_plan() and job.receipts() == [] and store.list_files("_jobs/labelling") == []


def test_files_that_are_written_again_while_vacuum_looks_stay(
    uri: str, source: Source, monkeypatch: pytest.MonkeyPatch
):
    """Orphans of a worker that was killed before its receipt, and an ingest that gives the same files again."""
    refuse(source, uri)
    for receipt in receipts(uri):
        receipt.unlink()
    age(uri)
    named_files, calls = maintenance._named_files, []

    def ingest_after_listing(store: Store) -> list[str]:
        found = list(named_files(store))
        if not calls:
            calls.append(1)
            ingest(source, uri, label_set="new")
        return found

    monkeypatch.setattr(maintenance, "_named_files", ingest_after_listing)
    assert vacuum(uri, grace_hours=2).paths == ()
    assert calls and verify_newest(uri) == []


def test_files_that_a_task_writes_again_directly_before_their_deletion_stay(
    uri: str, source: Source, monkeypatch: pytest.MonkeyPatch
):
    """Nothing names them yet when vacuum looks for the last time: their age alone tells."""
    refuse(source, uri)
    (receipt,) = receipts(uri)
    receipt.unlink()
    age(uri)
    named_files, calls = maintenance._named_files, []

    def task_after_the_second_look(store: Store) -> list[str]:
        found = list(named_files(store))
        calls.append(1)
        if len(calls) == 2:
            run_task(Job(uri, receipt.parents[1].name), 0, source)
        return found

    monkeypatch.setattr(maintenance, "_named_files", task_after_the_second_look)
    assert vacuum(uri, grace_hours=2).paths == () and len(calls) == 2
    monkeypatch.undo()
    assert ingest(source, uri, label_set="new").num_images == 3 and verify_newest(uri) == []
