"""A dataset version as COCO JSON: one ``instances_<split>.json`` a split, values equal to what was ingested."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.exports.coco_ids import given_id, unique_ids
from pipelines.exports.coco_names import NamedImage, coco_file_names
from pipelines.exports.names import split_names
from pipelines.schema import LabelRow, load_json
from pipelines.shards import ShardRef, read_image, read_image_columns, read_labels
from pipelines.sources.coco_objects import annotations_to_json, categories_to_json
from pipelines.storage import Store
from pipelines.versions import Dataset, EmptyDataset, open_dataset

_IMAGE_COLUMNS = ("image_id", "url", "format", "license", "extra")
Found = Sequence[tuple[LabelRow, ShardRef, dict[str, Any]]]
"""Label rows with the shard and the columns of their images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoExport:
    """What was written: URI and counts of each split's file.

    Attributes:
        files: split -> URI of its JSON file.
        num_images, num_objects: of all files.
        losses: what COCO cannot say, counted.
    """

    files: dict[str, str]
    num_images: int
    num_objects: int
    losses: dict[str, int] = field(default_factory=dict)


def export_coco(
    dataset: str | Dataset, out_uri: str, splits: Collection[str] | None = None, images: bool = False
) -> CocoExport:
    """Write a dataset version as COCO JSON.

    Ids are the source's wherever they are unique in a file; otherwise (VOC numbers objects from 1 in every image)
    they are numbered from 1. Images that nobody has looked at are written without annotations. A ``file_name`` is the
    source's own, or else the image's id, where that is a path; otherwise a safe one.

    Args:
        dataset: a reference, or an opened dataset.
        out_uri: a folder; gets ``annotations/instances_<split>.json``, and images below ``<split>/``.
        splits: only these; None for all.
        images: also write the image files.
    Raises:
        EmptyDataset: no image is in these splits.
    """
    opened = open_dataset(dataset) if isinstance(dataset, str) else dataset
    store = Store.open(out_uri)
    wanted = [s for s in sorted(opened.splits) if splits is None or s in splits]
    unknown = sorted(set(splits or ()) - set(opened.splits))
    if unknown or not wanted:
        raise EmptyDataset(f"{opened.reference} has no split {unknown}; it has {sorted(opened.splits)}")
    names = split_names(opened.splits, without=("annotations",))
    files, num_images, num_objects, unseen = {}, 0, 0, 0
    for split in wanted:
        found = list(coco_rows(opened, split))
        unseen += count_unseen(found)
        file_names = coco_file_names(map(named, found))
        document = coco_document(opened, split, found, file_names)
        path = f"annotations/instances_{names[split]}.json"
        store.write_bytes(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())
        files[split] = store.join(path)
        num_images += len(document["images"])
        num_objects += len(document["annotations"])
        if images:
            for row, shard, _ in found:
                store.write_bytes(f"{names[split]}/{file_names[row.image_id]}", read_image(shard, row.row))
    return CocoExport(files=files, num_images=num_images, num_objects=num_objects, losses=told_unseen(unseen))


def count_unseen(found: Found) -> int:
    """Images that nobody has looked at: to whoever reads COCO they are without objects."""
    return sum(row.annotations is None for row, _, _ in found)


def told_unseen(count: int) -> dict[str, int]:
    return {"image that nobody has looked at": count} if count else {}


def coco_rows(dataset: Dataset, split: str) -> Iterator[tuple[LabelRow, ShardRef, dict[str, Any]]]:
    """Label rows of a split with their image's own columns, image bytes untouched."""
    for shard in dataset.shards:
        rows = [row for row in read_labels(shard) if row.split == split]
        if not rows:
            continue
        columns = read_image_columns(shard, _IMAGE_COLUMNS).to_pydict()
        for row in rows:
            yield row, shard, {name: values[row.row] for name, values in columns.items()}


def named(found: tuple[LabelRow, ShardRef, dict[str, Any]]) -> NamedImage:
    """What the image of a row could be called by."""
    row, _, values = found
    return NamedImage(
        image_id=row.image_id,
        url=values["url"] or "",
        format=values["format"],
        extra=load_json(values["extra"]),
    )


def coco_document(dataset: Dataset, split: str, found: Found, file_names: Mapping[str, str]) -> dict[str, Any]:
    """One split as a COCO document, of all its rows; ``file_names`` are by image id."""
    ids_by_image = unique_ids({row.image_id: given_id(row.coco_image_id, v["extra"]) for row, _, v in found})
    ids = [ids_by_image[row.image_id] for row, _, _ in found]
    about = _about(dataset, split)
    annotations: list[dict[str, Any]] = []
    for image_id, (row, _, _) in zip(ids, found, strict=True):
        if row.annotations is not None:
            annotations += annotations_to_json(row.annotations, image_id)
    if len({a["id"] for a in annotations}) < len(annotations):
        annotations = [{**a, "id": number} for number, a in enumerate(annotations, start=1)]
    return {
        "info": {"description": f"exported by boxmill from {dataset.reference}"},
        "licenses": [],
        **about,
        "images": [
            _image_to_json(image_id, file_names[row.image_id], row, values)
            for image_id, (row, _, values) in zip(ids, found, strict=True)
        ],
        "annotations": annotations,
        "categories": categories_to_json(dataset.label_map, about.get("categories", ())),
    }


def _about(dataset: Dataset, split: str) -> dict[str, Any]:
    """``info``, ``licenses`` and odd categories of the newest COCO ingest that had this split."""
    for commit in dataset.history():
        found = commit.metadata.get("provenance", {})
        if found.get("source") in ("coco", "lvis") and split in found["about"]:
            return dict(found["about"][split])
    return {}


def _image_to_json(image_id: int, file_name: str, row: LabelRow, values: dict[str, Any]) -> dict[str, Any]:
    extra = load_json(values["extra"])
    known = {"id": image_id, "width": row.width, "height": row.height, "file_name": file_name}
    if "coco_url" not in extra and values["url"]:
        known["coco_url"] = values["url"]
    return {**extra, **known}
