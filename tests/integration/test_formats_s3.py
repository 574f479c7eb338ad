"""Formats out to a bucket and in from it."""

from __future__ import annotations

import pytest

from pipelines.exports import find_export
from pipelines.sources import open_source
from tests.scenes import box_object, commit, record
from workers.ingest import ingest

_READERS = {
    "yolo": lambda out: {"uri": out},
    "voc": lambda out: {"root": out},
    "hf_parquet": lambda out: {"uri": out},
    "label_studio": lambda out: {"annotations": f"{out}/tasks.json"},
    "cvat": lambda out: {"annotations": f"{out}/annotations.xml"},
}


@pytest.mark.parametrize("kind", sorted(_READERS))
def test_a_bucket_serves_as_a_folder(s3_server, tmp_path, kind):
    scene = [record(f"x/{i}.jpg", [box_object(i), box_object(i + 9, 90)], seed=i) for i in range(3)]
    version = commit(tmp_path / "d", scene)
    out = s3_server.uri(f"formats/{kind}/out")
    report = find_export(kind)(version.reference, out)
    assert all(uri.startswith("s3://") for uri in report.files.values())
    back = ingest(open_source(kind, **_READERS[kind](out)), s3_server.uri(f"formats/{kind}/back"))
    assert back.num_images == back.ledger["images"]["imported"] == 3
    assert back.num_objects == back.ledger["annotations"]["imported"] == 6


def test_signed_or_not_a_list_may_name_buckets(s3_server, tmp_path):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.pipe_file(s3_server.uri("formats/list/a.jpg"), record("a", []).image)
    (tmp_path / "list.txt").write_text(
        s3_server.uri("formats/list/a.jpg") + "\n" + s3_server.uri("formats/list/no.jpg")
    )
    version = ingest(open_source("url_list", uri=str(tmp_path / "list.txt")), str(tmp_path / "out"))
    assert version.ledger["images"]["imported"] == 1 and version.ledger["images"]["quarantined"] == 1
