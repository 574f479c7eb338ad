"""How tasks of a plan that labels pictures once are cut, and what is known of an image before it is labelled."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.jobs import Job, Receipt
from pipelines.shards import ShardFile
from workers.label_duplicates import packed
from workers.label_looks import attempted, looks_of
from workers.label_readers import Failure, RawImage


def part(shard: str | None, *rows: int) -> pa.Table:
    return pa.table({"image_path": pa.array([shard] * len(rows), pa.string()), "row": pa.array(rows, pa.int32())})


@pytest.mark.parametrize("shard", [None, "images/a.parquet"])
def test_what_is_left_of_tasks_is_put_together_up_to_the_limit(shard):
    tables = [part(shard, 0), part(shard), part(shard, 2, 3), part(shard, 5, 6, 7, 8, 9, 10, 11)]
    assert [table["row"].to_pylist() for table in packed(tables, 4)] == [[0, 2, 3, 5], [6, 7, 8, 9], [10, 11]]
    assert [table.num_rows for table in packed([part(shard, *range(8))], 4)] == [4, 4]
    assert list(packed([part(shard)], 4)) == []


def test_no_task_has_images_of_two_shards():
    tables = [part("a", 0, 1, 2), part("b", 0), part("b", 4)]
    found = [(t["image_path"].to_pylist(), t["row"].to_pylist()) for t in packed(tables, 2)]
    assert found == [(["a", "a"], [0, 1]), (["a"], [2]), (["b", "b"], [0, 4])]


def encoded(size: tuple[int, int] = (40, 30), **options) -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(sink, **({"format": "PNG"} | options))
    return sink.getvalue()


def test_of_an_image_its_looks_and_its_place_are_known():
    looks = looks_of(RawImage(place=3, image=encoded(), offset=512, length=99))
    assert (looks["width"], looks["height"], looks["format"], looks["exif_orientation"]) == (40, 30, "png", 1)
    assert (looks["image_offset"], looks["image_length"], looks["flat"]) == (512, 99, False)
    assert looks["down"] == 2**64 - 1 and looks["across"] == 0  # brighter from cell to cell, and only downwards


@pytest.mark.parametrize(
    "raw",
    [
        RawImage(place=0, failure=Failure(stage="read", error_class="BadImage", error="gone")),
        RawImage(place=0, image=b""),
        RawImage(place=0, image=encoded(format="JPEG")[:-30]),
    ],
    ids=["unread", "empty", "cut"],
)
def test_of_what_cannot_be_read_nothing_is_known(raw):
    assert looks_of(raw) == {}


def test_a_task_of_copying_that_another_run_gave_up_is_done(tmp_path, monkeypatch):
    job = Job(str(tmp_path), "p")
    file = ShardFile(path="labels/x/f.parquet", size=1, rows=3)
    # As ``label_attempts.give_up`` leaves it.
    job.finish(5, Receipt(task_id=5, files=(file,), extra={"failed": 3, "attempts": 5, "dead": True}))
    monkeypatch.setattr("ray.get", lambda value: value)
    begun = SimpleNamespace(remote=lambda task: 1)
    told = attempted(job, SimpleNamespace(begun=begun), 5, 5, lambda attempt: pytest.fail("it was done"))
    assert (told["images"], told["failed"], told["attempts"], told["error"]) == (3, 3, 5, "")
