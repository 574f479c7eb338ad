"""A small dataset with every kind of object, and reading a source back without a commit."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.commits import DatasetVersion, commit_images, commit_labels
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.records import Annotations, Category, ImageRecord, LabelMap
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.sources import SourceItem, open_source
from pipelines.sources.drawn import Drawn, encode_mask, gather
from pipelines.storage import Store

LABELS = LabelMap(
    categories=(
        Category(category_id=3, name="ball & <bat>"),
        Category(category_id=90, name="person", keypoints=("nose", "left_eye", "right_eye")),
    )
)
WIDTH, HEIGHT = 40, 24


def picture(seed: int, orientation: int = 1, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def blob(seed: int) -> np.ndarray:
    """A (HEIGHT, WIDTH) bitmap of two overlapping rectangles."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for _ in range(2):
        y, x = rng.integers(0, HEIGHT - 8), rng.integers(0, WIDTH - 8)
        mask[y : y + 7, x : x + 5] = True
    return mask


def box_object(seed: int, category_id: int = 3, **more: Any) -> Drawn:
    x, y, w, h = (np.random.default_rng(seed).random(4) * [20, 10, 15, 10] + [1, 1, 3, 3]).tolist()
    return Drawn(category_id=category_id, box_xywh=(x, y, w, h), **more)


def polygon_object(seed: int) -> Drawn:
    x, y, w, h = box_object(seed).box_xywh
    return Drawn(category_id=3, box_xywh=(x, y, w, h), polygons=((x, y, x + w, y, x + w, y + h, x, y + h / 2),))


def mask_object(seed: int) -> Drawn:
    from pipelines.sources.drawn import box_of_mask

    mask = blob(seed)
    return Drawn(category_id=3, box_xywh=box_of_mask(mask), area=float(mask.sum()), rle=encode_mask(mask))


def pose_object(seed: int) -> Drawn:
    x, y, w, h = box_object(seed).box_xywh
    points = np.array([[x, y, 2], [x + w, y + h, 2], [0, 0, 0]], np.float64)
    return Drawn(category_id=90, box_xywh=(x, y, w, h), keypoints=points)


def record(
    image_id: str,
    objects: list[Drawn] | None,
    *,
    seed: int = 0,
    orientation: int = 1,
    split: str = "train",
    scores: bool = False,
) -> ImageRecord:
    image = picture(seed, orientation)
    annotations: Annotations | None = None if objects is None else gather(objects)
    if annotations is not None and scores:
        annotations = replace(annotations, scores=np.linspace(0.9, 0.1, len(annotations)))
    return ImageRecord(
        image_id=image_id,
        image=image,
        format="jpeg",
        width=WIDTH,
        height=HEIGHT,
        exif_orientation=orientation,
        sha256=hashlib.sha256(image).hexdigest(),
        source=f"/somewhere/{image_id}",
        split=split,
        coco_image_id=seed,
        annotations=annotations,
    )


def commit(uri: str | Path, records: list[ImageRecord], label_map: LabelMap = LABELS, **more: Any) -> DatasetVersion:
    """One shard of records as a version."""
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
        plan_id="p",
        label_map=label_map,
        images_version=commit_images(store.uri, [image_file], plan_id="p"),
        ledger=ledger.sums(),
        **more,
    )


def read_source(kind: str, **options: Any) -> tuple[LabelMap, dict[str, ImageRecord], list[LedgerEntry]]:
    """Everything a source offers, through its own options as a worker would open it."""
    opened = open_source(kind, **options)
    source = open_source(kind, **dict(opened.options))
    assert dict(source.options) == dict(opened.options)
    found = list(opened.scan())
    records = {item.image_id: source.load(item) for item in found if isinstance(item, SourceItem)}
    return opened.label_map, records, [entry for entry in found if isinstance(entry, LedgerEntry)]


def names_of(annotations: Annotations, label_map: LabelMap) -> list[str]:
    """Category names of the objects."""
    return [label_map.names[i] for i in label_map.to_labels(annotations.category_ids)]
