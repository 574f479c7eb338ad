"""One path that cannot be read does not end a task."""

from __future__ import annotations

from pathlib import Path

from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.making import encoded
from workers.ingest import ingest


def test_names_that_no_file_has_are_quarantined(tmp_path: Path):
    good = tmp_path / "good.jpg"
    good.write_bytes(encoded())
    (tmp_path / "folder.jpg").mkdir()
    names = ["good.jpg", "folder.jpg", "good.jpg/below.jpg", "a" * 300 + ".jpg", "none.jpg"]
    urls = tmp_path / "urls.txt"
    urls.write_text("".join(f"file://{tmp_path}/{name}\n" for name in names))

    made = ingest(open_source("url_list", uri=str(urls)), str(tmp_path / "data"))

    assert open_dataset(made.reference).num_images == 1
    assert made.ledger["image"]["imported"] == 1
    assert made.ledger["image"]["quarantined"] == 4
