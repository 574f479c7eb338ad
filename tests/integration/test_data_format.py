"""The Python of docs/data-format.md runs as it stands there, and other readers see what we see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.schema import IMAGES, LABELS, OBJECTS
from pipelines.sources import open_source
from pipelines.versions import Dataset, open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest

PAGE = Path(__file__).resolve().parents[2] / "docs/data-format.md"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two splits, a negative image, one that is cut off, and a version that another followed."""
    folder = tmp_path_factory.mktemp("page")
    for split, first in (("train", 1), ("val", 11)):
        images = coco_images(5, first_id=first)
        document = coco_document(5, first_id=first)
        if split == "val":
            images["11.jpg"] = images["11.jpg"][:-20]
            document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 12]
        source = open_source("coco", split=split, **write_coco(folder / "source", split, document, images))
        version = ingest(source, str(folder / "data/coco"))
    return open_dataset(version.reference)


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> dict[str, Any]:
    """The variables of the page's Python blocks, run one after the other."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) >= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(dataset.uri).parents[1])
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def ours(dataset: Dataset) -> list[tuple[str, int, list[float]]]:
    """(image_id, category_id, xywh) of every object."""
    return sorted(
        (image_id, int(category_id), box.tolist())
        for image_id, _, _, _, objects in dataset.annotations()
        for category_id, box in zip(objects.category_ids, objects.boxes_xywh, strict=True)
    )


def test_pyarrow_sees_the_same(found, dataset: Dataset, ours):
    counts = {image_id: len(objects) for image_id, _, _, _, objects in dataset.annotations()}
    assert found["pyarrow_counts"] == counts and min(counts.values()) == 0
    assert sorted(found["pyarrow_boxes"]) == sorted(box for *_, box in ours)
    assert found["names"] == {c.category_id: c.name for c in dataset.label_map.categories}
    assert found["commit"]["num_images"] == dataset.num_images == 9
    assert found["image"] == dataset.read_bytes(found["first"]["image_id"])


def test_duckdb_sees_the_same(found, dataset: Dataset, ours):
    assert sorted((i, c, b) for i, _, c, b in found["duckdb_boxes"]) == ours
    splits = {image_id: split for image_id, split, _, _ in found["duckdb_boxes"]}
    records = {record.image_id: record for record in dataset.records()}
    assert all(records[image_id].split == split for image_id, split in splits.items())
    assert found["duckdb_images"] == [
        (i, r.format, r.width, r.height, len(r.image)) for i, r in sorted(records.items())
    ]
    assert found["duckdb_quarantine"] == [("decode", 1)] and found["bad"] == {"11.jpg": "decode"}


def test_polars_sees_the_same(found, dataset: Dataset, ours):
    rows = found["polars_boxes"].select("image_id", "category_id", "bbox").rows()
    assert sorted((i, c, list(b)) for i, c, b in rows) == ours
    sizes = {image_id: (width, height) for image_id, width, height in found["polars_images"].rows()}
    assert sizes == {r.image_id: (r.width, r.height) for r in dataset.records()}
    assert len(found["polars_boxes"]) == dataset.num_objects


def test_the_page_names_every_column():
    text = PAGE.read_text()
    for name in [*IMAGES.names, *LABELS.names, *(field.name for field in OBJECTS)]:
        assert f"`{name}`" in text, name
