"""A dataset version as LVIS JSON, values equal to what was ingested from LVIS."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines.exports.coco import CocoExport, Found, coco_document, coco_rows, count_unseen, named, told_unseen
from pipelines.exports.coco_names import coco_file_names, own_file_name
from pipelines.exports.names import split_names
from pipelines.exports.walk import choose_splits
from pipelines.schema import load_json
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
    taken = {f"annotations/lvis_{name}.json" for name in names.values()}  # images of all splits lie below one folder
    files, num_images, num_objects, unseen = {}, 0, 0, 0
    for split in choose_splits(opened, splits):
        found = list(coco_rows(opened, split))
        unseen += count_unseen(found)
        file_names = coco_file_names(map(named, found), by_url=True, taken=taken)
        taken |= set(file_names.values())
        document = _as_lvis(coco_document(opened, split, found, file_names), found)
        path = f"annotations/lvis_{names[split]}.json"
        store.write_bytes(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())
        files[split] = store.join(path)
        num_images += len(document["images"])
        num_objects += len(document["annotations"])
        if images:
            for row, shard, _ in found:
                store.write_bytes(file_names[row.image_id], read_image(shard, row.row))
    return CocoExport(files=files, num_images=num_images, num_objects=num_objects, losses=told_unseen(unseen))


def _as_lvis(document: dict[str, Any], found: Found) -> dict[str, Any]:
    images = zip(document["images"], found, strict=True)
    flags = zip(document["annotations"], _have_flags(found), strict=True)
    return {
        **document,
        "images": [_image(image, row.image_id, load_json(values["extra"])) for image, (row, _, values) in images],
        "annotations": [_without(a, "iscrowd", a["iscrowd"] == 0 and not has) for a, has in flags],
        "categories": [_without(c, "supercategory", not c.get("supercategory")) for c in document["categories"]],
    }


def _have_flags(found: Found) -> Iterator[bool]:
    """Of each object, whether it came with a crowd flag of its own."""
    for row, _, _ in found:
        if row.annotations is not None:
            for i in range(len(row.annotations)):
                yield bool(row.annotations.attributes) and "iscrowd" in row.annotations.attributes[i]


def _image(image: dict[str, Any], image_id: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    # An image that came with a name of its own keeps it, and where the URL does not tell it the name is all there is.
    is_ours = own_file_name(image_id, extra) is None and path_of_url(image.get("coco_url")) == image["file_name"]
    return {**{name: [] for name in _FEDERATED}, **_without(image, "file_name", is_ours)}


def _without(values: dict[str, Any], key: str, drop: bool) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key} if drop else values
