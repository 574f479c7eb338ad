"""A dataset version as LVIS JSON, values equal to what was ingested from LVIS."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pipelines.exports.coco import CocoExport, coco_document, coco_file_name, coco_rows
from pipelines.exports.names import split_names
from pipelines.exports.walk import choose_splits
from pipelines.shards import read_image
from pipelines.sources.coco_kinds import path_of_url
from pipelines.storage import Store
from pipelines.versions import Dataset, open_dataset

_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def export_lvis(
    dataset: str | Dataset, out_uri: str, splits: Collection[str] | None = None, images: bool = False
) -> CocoExport:
    """Write a dataset version as LVIS JSON: ``annotations/lvis_<split>.json``, and images below the folder itself.

    LVIS has no ``file_name``, no crowds and no supercategories; images without federated labels get empty lists.

    Args:
        dataset, out_uri, splits, images: as for ``export_coco``.
    Raises:
        EmptyDataset: no image is in these splits.
    """
    opened = open_dataset(dataset) if isinstance(dataset, str) else dataset
    store = Store.open(out_uri)
    names = split_names(opened.splits)
    files, num_images, num_objects = {}, 0, 0
    for split in choose_splits(opened, splits):
        found = list(coco_rows(opened, split))
        document = _as_lvis(coco_document(opened, split, found))
        path = f"annotations/lvis_{names[split]}.json"
        store.write_bytes(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())
        files[split] = store.join(path)
        num_images += len(document["images"])
        num_objects += len(document["annotations"])
        if images:
            for image, (row, shard, values) in zip(document["images"], found, strict=True):
                name = path_of_url(image.get("coco_url")) or coco_file_name(row, values)
                store.write_bytes(name, read_image(shard, row.row))
    return CocoExport(files=files, num_images=num_images, num_objects=num_objects)


def _as_lvis(document: dict[str, Any]) -> dict[str, Any]:
    return {
        **document,
        "images": [_image(image) for image in document["images"]],
        "annotations": [_without(a, "iscrowd", a["iscrowd"] == 0) for a in document["annotations"]],
        "categories": [_without(c, "supercategory", not c["supercategory"]) for c in document["categories"]],
    }


def _image(image: dict[str, Any]) -> dict[str, Any]:
    # An image that came with a name of its own keeps it, and where there is no URL the name is all there is.
    known = path_of_url(image.get("coco_url"))
    is_ours = known is not None and image["file_name"].endswith(known)
    return {**{name: [] for name in _FEDERATED}, **_without(image, "file_name", is_ours)}


def _without(values: dict[str, Any], key: str, drop: bool) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key} if drop else values
