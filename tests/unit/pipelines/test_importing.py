"""One path that cannot be read does not end a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.checks import BadImage
from pipelines.importing import _load
from pipelines.records import ImageRecord
from pipelines.sources import SourceItem, open_source
from tests.making import coco_document, coco_images, encoded, write_coco


@pytest.mark.parametrize("name", ["folder.jpg", "good.jpg/below.jpg", "a" * 300 + ".jpg", "nul\0.jpg", "none.jpg"])
def test_names_that_no_file_has_are_quarantined(tmp_path: Path, name: str):
    (tmp_path / "good.jpg").write_bytes(encoded())
    (tmp_path / "folder.jpg").mkdir()
    items = [SourceItem(image_id=n, uri=f"{tmp_path}/{n}") for n in ("good.jpg", name)]
    source = open_source("coco", **write_coco(tmp_path / "coco", "train", coco_document(1), coco_images(1)))
    (_, good), (_, bad) = _load(source, items, deep=False)
    assert isinstance(good, ImageRecord)
    assert isinstance(bad, BadImage | FileNotFoundError | NotADirectoryError | IsADirectoryError)
