"""One path that cannot be read does not end a task."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipelines.checks import BadImage
from pipelines.importing import _load
from pipelines.quarantine import read_quarantine
from pipelines.records import ImageRecord
from pipelines.shards import read_image
from pipelines.sources import SourceItem, open_source
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, encoded, write_coco
from workers.ingest import ingest


@pytest.mark.parametrize("name", ["folder.jpg", "good.jpg/below.jpg", "a" * 300 + ".jpg", "nul\0.jpg", "none.jpg"])
def test_names_that_no_file_has_are_quarantined(tmp_path: Path, name: str):
    (tmp_path / "good.jpg").write_bytes(encoded())
    (tmp_path / "folder.jpg").mkdir()
    items = [SourceItem(image_id=n, uri=f"{tmp_path}/{n}") for n in ("good.jpg", name)]
    source = open_source("coco", **write_coco(tmp_path / "coco", "train", coco_document(1), coco_images(1)))
    (_, good), (_, bad) = _load(source, items, deep=False)
    assert isinstance(good, ImageRecord)
    assert isinstance(bad, BadImage | FileNotFoundError | NotADirectoryError | IsADirectoryError)


@pytest.mark.usefixtures("in_this_process")
def test_a_task_whose_images_outgrow_a_shard_writes_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A list of URLs does not know sizes before the images are read."""
    images = coco_images(7)
    fsspec.filesystem("memory").pipe({f"/outgrow/{name}": content for name, content in images.items()})
    (tmp_path / "urls.txt").write_text("".join(f"memory://outgrow/{name}\n" for name in images))
    three = sum(map(len, list(images.values())[:3]))
    monkeypatch.setattr("pipelines.importing.MAX_SHARD_BYTES", three)
    version = ingest(open_source("url_list", uri=str(tmp_path / "urls.txt")), str(tmp_path / "dataset"))
    dataset = open_dataset(version.reference)
    assert [shard.rows for shard in dataset.shards] != [7] and len(dataset.shards) >= 3
    for shard in dataset.shards:
        assert sum(len(read_image(shard, row)) for row in range(shard.rows)) <= three
    assert {r.image_id.rpartition("/")[2]: r.image for r in dataset.records()} == images
    assert dataset.read_bytes("outgrow/7.jpg") == images["7.jpg"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.usefixtures("in_this_process")
def test_a_url_of_more_than_a_shard_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = coco_images(2)
    fsspec.filesystem("memory").pipe({f"/long/{name}": content for name, content in images.items()})
    (tmp_path / "urls.txt").write_text("memory://long/1.jpg\nmemory://long/2.jpg\n")
    sizes = sorted(len(image) for image in images.values())
    assert sizes[0] < sizes[1]
    monkeypatch.setattr("pipelines.sources.url_list.MAX_SHARD_BYTES", sizes[0])
    version = ingest(open_source("url_list", uri=str(tmp_path / "urls.txt")), str(tmp_path / "dataset"))
    (row,) = read_quarantine(str(tmp_path / "dataset"))
    assert version.num_images == 1 and f"more than the {sizes[0]} of a shard" in row.error
