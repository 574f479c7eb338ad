"""One place and one schema for whatever could not be taken in."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.importing import commit_job, run_task
from pipelines.jobs import Job
from pipelines.planning import save_ingest_plan
from pipelines.quarantine import LABEL, QUARANTINE, STAGES, QuarantineRow, read_quarantine, write_quarantine
from pipelines.sources import open_source
from pipelines.storage import Store
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest

ROWS = [
    QuarantineRow(image_id="a", source="s/a", stage="decode", error_class="BadImage", error="cut", sha256="00"),
    QuarantineRow(image_id="b", source="s/b", stage="list", error_class="Refused", error="it is a link"),
]


def test_rows_are_kept_by_plan(tmp_path: Path):
    store = Store.open(tmp_path)
    for _ in range(2):  # a repeated task replaces its file
        write_quarantine(store, "p1", "000001", ROWS)
    write_quarantine(store, "p2", "000001", ROWS[:1])
    assert read_quarantine(store.uri, "p1") == ROWS
    assert read_quarantine(store.uri, "p2") == ROWS[:1]
    assert read_quarantine(store.uri, "p3") == []
    assert read_quarantine(store.uri) == [*ROWS, ROWS[0]]


def test_every_stage_of_an_ingest_is_read_back_with_its_cause(tmp_path: Path):
    images = coco_images(4)
    images["2.jpg"] = images["2.jpg"][:-20]
    options = write_coco(tmp_path / "source", "train", coco_document(4), images)
    (tmp_path / "source/train/3.jpg").unlink()
    source, uri = open_source("coco", **options), str(tmp_path / "dataset")
    job = Job(uri, "p")
    plan = save_ingest_plan(job, source, "gt")
    (tmp_path / "source/train/4.jpg").unlink()
    run_task(job, 0, source)
    assert commit_job(job, plan).ledger["images"]["quarantined"] == 3
    rows = {row.image_id: row for row in read_quarantine(uri)}
    assert {name: row.stage for name, row in rows.items()} == {"2.jpg": "decode", "3.jpg": "list", "4.jpg": "read"}
    assert set(STAGES) == {LABEL, *(row.stage for row in rows.values())}
    assert rows["2.jpg"].error_class == "BadImage" and "end marker" in rows["2.jpg"].error
    assert rows["2.jpg"].sha256 == hashlib.sha256(images["2.jpg"]).hexdigest()
    assert rows["2.jpg"].source == str(tmp_path / "source/train/2.jpg")
    assert (rows["4.jpg"].error_class, rows["4.jpg"].sha256) == ("FileNotFoundError", None)


@pytest.mark.usefixtures("in_this_process")
def test_what_a_listing_refuses_has_a_row_too(tmp_path: Path):
    (tmp_path / "urls.txt").write_text("memory://listing/b.jpg\nnot a URL\n")
    fsspec.filesystem("memory").pipe("/listing/b.jpg", next(iter(coco_images(1).values())))
    uri = str(tmp_path / "dataset")
    ingest(open_source("url_list", uri=str(tmp_path / "urls.txt")), uri)
    (row,) = read_quarantine(uri)
    assert (row.image_id, row.stage) == ("line 2", "list")
    assert row.error == "line is not an absolute URL with a scheme: not a URL"


def test_files_of_an_older_ingest_are_read(tmp_path: Path):
    old = pa.schema([(name, pa.string()) for name in ("image_id", "source", "stage", "error", "sha256")])
    rows = [
        {"image_id": "a", "source": "s/a", "stage": "load", "error": "image cannot be read: cut", "sha256": "00"},
        {"image_id": "b", "source": "s/b", "stage": "load", "error": "image file missing: s/b", "sha256": ""},
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=old), sink)
    Store.open(tmp_path).write_bytes("_quarantine/p/000000.parquet", sink.getvalue())
    first, second = read_quarantine(str(tmp_path), "p")
    assert first == replace(ROWS[0], error_class="", error="image cannot be read: cut")
    assert (second.stage, second.sha256, second.error_class) == ("read", None, "")


def test_all_files_of_a_dataset_are_one_table(tmp_path: Path):
    store = Store.open(tmp_path)
    paths = [write_quarantine(store, plan, "000000", ROWS) for plan in ("p1", "p2")]
    assert all(pq.read_schema(tmp_path / path).equals(QUARANTINE) for path in paths)
