"""A dataset version as Hugging Face object detection: Parquet with bytes, boxes and class names.

``datasets.load_dataset("parquet", ...)`` and the Hub's viewer understand the schema's metadata.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.exports.names import split_names
from pipelines.exports.walk import (
    ExportImage,
    ExportReport,
    Losses,
    choose_splits,
    count_losses,
    open_export,
    walk,
)
from pipelines.records import LabelMap
from pipelines.sources.frames import stored_to_upright, upright_size
from pipelines.storage import Store
from pipelines.versions import Dataset

_ROW_GROUP_IMAGES = 100  # what the Hub's viewer likes
_ROW_GROUP_BYTES = 32 * 2**20
_FILE_BYTES = 400 * 2**20

_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_id", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        (
            "objects",
            pa.struct(
                [
                    ("id", pa.list_(pa.int64())),
                    ("area", pa.list_(pa.float64())),
                    ("bbox", pa.list_(pa.list_(pa.float64(), 4))),
                    ("category", pa.list_(pa.int64())),
                    ("iscrowd", pa.list_(pa.bool_())),
                ]
            ),
        ),
    ]
)


def export_hf_parquet(
    dataset: str | Dataset, out_uri: str, splits: Collection[str] | None = None, images: bool = True
) -> ExportReport:
    """Write a dataset version as ``data/<split>-00000-of-0000N.parquet``.

    Boxes are xywh in pixels of the upright picture, which is what ``datasets`` decodes, and so are width and height;
    categories are the labels 0..C-1 with their names in the metadata. Images that nobody has looked at have null
    objects.

    Args:
        dataset: a reference, or an opened dataset.
        out_uri: a folder on any store.
        splits: only these; None for all.
        images: False leaves the bytes null and the paths alone.
    Raises:
        EmptyDataset: no image is in these splits.
    """
    opened = open_export(dataset)
    store = Store.open(out_uri)
    losses = Losses()
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _features(opened.label_map)}})})
    files: dict[str, str] = {}
    num_images = num_objects = 0
    names = split_names(opened.splits, unnamed="train")
    for split in choose_splits(opened, splits):
        name = names[split]
        with tempfile.TemporaryDirectory(prefix="boxmill-export-") as folder:
            tables = _tables(walk(opened, [split]), opened.label_map, schema, images, losses)
            written, rows, objects = _write(tables, schema, Path(folder))
            for number, path in enumerate(written):
                target = f"data/{name}-{number:05d}-of-{len(written):05d}.parquet"
                store.upload(path, target)
                files[name if len(written) == 1 else f"{name}-{number:05d}"] = store.join(target)
        num_images += rows
        num_objects += objects
    return ExportReport(
        files=files,
        num_images=num_images,
        num_objects=num_objects,
        losses=losses.counts,
        examples=losses.examples,
        never_carried=("category ids", "licenses and URLs"),
    )


def _write(tables: Iterator[pa.Table], schema: pa.Schema, folder: Path) -> tuple[list[Path], int, int]:
    """Files of about 400 MB; with the number of images and of objects."""
    written: list[Path] = []
    writer: pq.ParquetWriter | None = None
    rows = objects = size = 0
    try:
        for table in tables:
            if writer is None or size + table.nbytes > _FILE_BYTES:
                if writer is not None:
                    writer.close()
                written.append(folder / f"{len(written)}.parquet")
                writer, size = pq.ParquetWriter(written[-1], schema, compression="snappy"), 0
            writer.write_table(table)
            rows += table.num_rows
            objects += sum(len(o["id"]) for o in table["objects"].to_pylist() if o is not None)
            size += table.nbytes
    finally:
        if writer is not None:
            writer.close()
    return written, rows, objects


def _tables(
    found: Iterator[ExportImage], label_map: LabelMap, schema: pa.Schema, images: bool, losses: Losses
) -> Iterator[pa.Table]:
    """One table a row group."""
    rows: list[dict[str, Any]] = []
    size = 0
    for image in found:
        row = _row(image, label_map, images, losses)
        held = len(row["image"]["bytes"] or b"")
        if rows and (len(rows) == _ROW_GROUP_IMAGES or size + held > _ROW_GROUP_BYTES):
            yield pa.Table.from_pylist(rows, schema=schema)
            rows, size = [], 0
        rows.append(row)
        size += held
    if rows:
        yield pa.Table.from_pylist(rows, schema=schema)


def _row(image: ExportImage, label_map: LabelMap, images: bool, losses: Losses) -> dict[str, Any]:
    found = image.annotations
    objects = None
    width, height = upright_size(image.width, image.height, image.orientation)
    if found is None:
        losses.add("image that nobody has looked at has null objects", image.image_id)
    else:
        count_losses(image, losses, ("crowd",))
        boxes = replace(found, rles=(None,) * len(found))  # masks are not written: turning them would be in vain
        boxes = stored_to_upright(boxes, image.orientation, (image.width, image.height))
        objects = {
            "id": found.ids.tolist(),
            "area": found.area.tolist(),
            "bbox": boxes.boxes_xywh.tolist(),
            "category": label_map.to_labels(found.category_ids).tolist(),
            "iscrowd": found.iscrowd.tolist(),
        }
    return {
        "image": {"bytes": image.read() if images else None, "path": image.name},
        "image_id": image.coco_image_id,
        "width": width,
        "height": height,
        "objects": objects,
    }


def _features(label_map: LabelMap) -> dict[str, Any]:
    def value(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "_type": "Value"}

    def many(feature: dict[str, Any], **length: int) -> dict[str, Any]:
        return {"feature": feature, **length, "_type": "Sequence"}

    return {
        "image": {"_type": "Image"},
        "image_id": value("int64"),
        "width": value("int32"),
        "height": value("int32"),
        "objects": {
            "id": many(value("int64")),
            "area": many(value("float64")),
            "bbox": many(many(value("float64"), length=4)),
            "category": many({"names": list(label_map.names), "_type": "ClassLabel"}),
            "iscrowd": many(value("bool")),
        },
    }
