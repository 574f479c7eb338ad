"""Small records and datasets that tests of the data layer build."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.commits import DatasetVersion, commit_images, commit_labels
from pipelines.ledger import Ledger
from pipelines.records import Annotations, Category, ImageRecord, LabelMap, Rle
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.storage import Store

LABEL_MAP = LabelMap(
    categories=(Category(category_id=0, name="ball"), Category(category_id=7, name="person", keypoints=("a", "b")))
)


def encoded(width: int = 24, height: int = 16, *, seed: int = 0, format: str = "JPEG") -> bytes:
    """A noise image as a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format)
    return sink.getvalue()


def annotations(count: int, *, seed: int = 0) -> Annotations:
    """Objects of both categories, of which the first has polygons and keypoints and the second an RLE."""
    rng = np.random.default_rng(seed)
    plain = Annotations.from_boxes(rng.random((count, 4)) * 8 + 1, np.array([0, 7] * count)[:count])
    if count < 2:
        return plain
    rest = (None,) * (count - 2)
    return replace(
        plain,
        polygons=(((1.0, 2.0, 3.5, 4.0, 5.0, 6.0), (0.0, 0.0, 1.0, 1.0, 2.0, 0.0)), None, *rest),
        rles=(None, Rle(size=(16, 24), counts=(10, 5, 369)), *rest),
        keypoints=(np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]), None, *rest),
        num_keypoints=np.array([1, -1] + [-1] * (count - 2)),
        attributes=({"note": "é"}, {}, *({} for _ in rest)),
    )


def record(number: int, *, split: str = "train", prefix: str = "a") -> ImageRecord:
    """Image ``number``; every seventh is unlabelled, others have ``number % 4`` objects."""
    image = encoded(seed=number)
    return ImageRecord(
        image_id=f"{prefix}/{number}.jpg",
        image=image,
        format="jpeg",
        width=24,
        height=16,
        sha256=hashlib.sha256(image).hexdigest(),
        source=f"/somewhere/{number}.jpg",
        split=split,
        coco_image_id=number,
        annotations=None if number % 7 == 6 else annotations(number % 4, seed=number),
        extra={"number": number},
    )


def commit_records(uri: str | Path, records: list[ImageRecord], *, plan_id: str) -> DatasetVersion:
    """One shard of records, committed."""
    store = Store.open(uri)
    image_file = write_image_shard(store, records)
    label_file = write_label_shard(store, "gt", image_file.path, label_rows(records))
    ledger = Ledger()
    ledger.imported("image", len(records))
    ledger.imported("annotation", label_file.num_objects)
    return commit_labels(
        store.uri,
        "gt",
        [label_file],
        plan_id=plan_id,
        label_map=LABEL_MAP,
        images_version=commit_images(store.uri, [image_file], plan_id=plan_id),
        ledger=ledger.sums(),
    )


def assert_same_annotations(found: Annotations | None, expected: Annotations | None) -> None:
    if expected is None or found is None:
        assert found is expected
        return
    for name in ("ids", "boxes_xywh", "category_ids", "area", "iscrowd", "num_keypoints"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert (found.scores is None) == (expected.scores is None)
    if expected.scores is not None:
        np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.polygons == expected.polygons
    assert found.rles == expected.rles
    assert [None if k is None else k.tolist() for k in found.keypoints] == [
        None if k is None else k.tolist() for k in expected.keypoints
    ]
    assert [dict(a) for a in found.attributes] == [dict(a) for a in expected.attributes]


def write_coco(folder: Path, split: str, document: dict[str, Any], images: dict[str, bytes]) -> dict[str, str]:
    """A COCO split on disk; returns the options of its source."""
    for name, content in images.items():
        target = folder / split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    path = folder / f"instances_{split}.json"
    path.write_text(json.dumps(document))
    return {"annotations": str(path), "images": str(folder / split)}


def coco_document(images: int, objects_each: int = 2, *, first_id: int = 1) -> dict[str, Any]:
    """A document of 24x16 images ``<n>.jpg`` with boxes of category 0."""
    ids = range(first_id, first_id + images)
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 24, "height": 16} for i in ids],
        "annotations": [
            {
                "id": i * 100 + k,
                "image_id": i,
                "category_id": 0,
                "bbox": [1 + k, 2, 5.5, 6],
                "area": 33,
                "iscrowd": 0,
                "segmentation": [],
            }
            for i in ids
            for k in range(objects_each)
        ],
        "categories": [{"id": 0, "name": "ball"}, {"id": 7, "name": "person"}],
    }


def coco_images(images: int, *, first_id: int = 1) -> dict[str, bytes]:
    return {f"{i}.jpg": encoded(seed=i) for i in range(first_id, first_id + images)}
