"""After a purge neither plans nor ledgers nor the quarantine say anything of an image."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import planning
from pipelines.jobs import Job
from pipelines.ledger_listing import read_ledger
from pipelines.purging import purge_images
from pipelines.quarantine import QuarantineRow, read_quarantine, write_quarantine
from pipelines.sources import open_source
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest

SECRET = "secret-name.jpg"


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two tasks of one image, the first of a secret one with an annotation that is mended and one that is dropped."""
    monkeypatch.setattr(planning, "MAX_SHARD_IMAGES", 1)
    images = coco_images(2)
    document = coco_document(2, 3)
    images[SECRET] = images.pop("1.jpg")
    document["images"][0]["file_name"] = SECRET
    document["annotations"][0]["bbox"] = [20, 2, 15, 6]
    document["annotations"][1]["bbox"] = [1, 2, -1, 6]
    source = open_source("coco", **write_coco(tmp_path / "source", "train", document, images))
    uri = str(tmp_path / "dataset")
    ingest(source, uri)
    row = {"source": "s", "stage": "list", "error_class": "", "error": ""}
    rows = [QuarantineRow(image_id=name, **row) for name in (SECRET, "else.jpg")]
    write_quarantine(Store.open(uri), "another", "listed", rows)
    return uri


def tells(uri: str) -> list[str]:
    """Files outside the tables that name the image."""
    found = []
    for folder in ("_jobs", "_quarantine"):
        for path in sorted((Path(uri) / folder).rglob("*.*")):
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                text = json.dumps(table.to_pylist(), default=str) + str(table.schema.metadata)
            else:
                text = path.read_text()
            found += [path.name] if SECRET in text else []
    return found


def test_nothing_is_told_of_a_purged_image(uri: str):
    before = open_dataset(uri)
    sums = read_ledger(before.reference).to_json()
    assert tells(uri) == ["000000.json", "plan.parquet", "listed.parquet"]
    purge_images(uri, [SECRET])
    assert tells(uri) == []
    after = read_ledger(uri)
    assert {e.image_id for e in after.entries()} == set()
    assert (after.images, after.annotations, after.reasons) == (sums["images"], sums["annotations"], sums["reasons"])
    job = Job(uri, before.metadata["plan_id"])
    assert (job.plan().num_tasks, job.task_rows(), job.missing()) == (2, [0, 1], [])
    assert job.read_task(0).num_rows == 0 and job.read_task(1)["image_id"].to_pylist() == ["2.jpg"]
    assert [row.image_id for row in read_quarantine(uri, "another")] == ["else.jpg"]


def test_the_same_ingest_still_finds_its_version(uri: str, tmp_path: Path):
    purge_images(uri, [SECRET])
    options = {"annotations": str(tmp_path / "source/instances_train.json"), "images": str(tmp_path / "source/train")}
    again = ingest(open_source("coco", **options), uri)
    assert again.found and again.num_images == 1 and tells(uri) == []


def test_a_purge_killed_before_its_commit_can_be_called_again(uri: str, monkeypatch: pytest.MonkeyPatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.purging._commit", die)
        with pytest.raises(KeyboardInterrupt):
            purge_images(uri, [SECRET])
    assert open_dataset(uri).num_images == 2
    purge_images(uri, [SECRET])
    assert open_dataset(uri).num_images == 1 and tells(uri) == []


def test_an_unfinished_plan_is_left_alone(uri: str):
    job = Job(uri, open_dataset(uri).metadata["plan_id"])
    (Path(uri) / "_jobs" / job.plan_id / "done/000001.json").unlink()
    purge_images(uri, [SECRET])
    assert Job(uri, job.plan_id).task_rows() == [1, 1]
