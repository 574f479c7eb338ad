"""A source that changes while it is read is noticed, and nothing of it is committed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.checks import BadImage
from pipelines.inputs import SourceChanged, check_unchanged, list_inputs
from pipelines.sources import SourceItem, open_source, read_item
from pipelines.versions import DatasetNotFound, open_dataset
from tests.making import coco_document, coco_images, encoded, write_coco
from workers.ingest import ingest


def source(folder: Path):
    return open_source("coco", **write_coco(folder, "train", coco_document(3), coco_images(3)))


def same_size(path: Path) -> None:
    """Other bytes, same length, another time."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 5_000_000_000))


CHANGES = {
    "grown": lambda folder: (folder / "train/2.jpg").write_bytes(encoded(seed=2) + b"\0"),
    "same size": lambda folder: same_size(folder / "train/2.jpg"),
    "gone": lambda folder: (folder / "train/2.jpg").unlink(),
    "new": lambda folder: (folder / "train/4.jpg").write_bytes(encoded(seed=9)),
    "annotations": lambda folder: same_size(folder / "instances_train.json"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_after_planning_is_an_error(tmp_path: Path, change):
    opened = source(tmp_path)
    uri = str(tmp_path / "d")

    def meddle(stage: str, done: int, total: int, **_) -> None:
        if (stage, done) == ("plan", total):
            change(tmp_path)

    with pytest.raises(SourceChanged, match="nothing is committed"):
        ingest(opened, uri, progress=meddle)
    with pytest.raises(DatasetNotFound):
        open_dataset(uri)
    if change is not CHANGES["annotations"]:  # a flipped bit of JSON may be anything
        assert ingest(open_source("coco", **opened.options), uri).num_images in (2, 3)


def test_the_changed_file_is_named(tmp_path: Path):
    opened = source(tmp_path)
    before = list_inputs(opened)
    check_unchanged(opened, before)
    same_size(tmp_path / "train/3.jpg")
    with pytest.raises(SourceChanged, match=r"train/3\.jpg"):
        check_unchanged(opened, before)


@pytest.mark.parametrize("place", [{}, {"offset": 0, "length": 100}], ids=["whole", "range"])
def test_an_image_that_was_cut_since_it_was_listed_is_bad(tmp_path: Path, place):
    (tmp_path / "a.jpg").write_bytes(b"x" * 50)
    with pytest.raises(BadImage, match="changed"):
        read_item(SourceItem(image_id="a", uri=str(tmp_path / "a.jpg"), size=100, **place))


def test_a_dataset_inside_its_source_is_no_change(tmp_path: Path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(seed=i))
    assert ingest(open_source("archive", uri=str(tmp_path)), str(tmp_path / "out")).num_images == 2
