"""One image of a dataset by its id, with everything that is said of it as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

from pipelines.records import Annotations, ImageRecord, LabelMap
from pipelines.storage import redact
from pipelines.versions import Dataset

_NEAR = 3


def read_one(dataset: Dataset, image_id: str) -> ImageRecord:
    """As ``Dataset.read``, for an id that somebody typed.

    Raises:
        ValueError: the version has no such image (with ids that end or begin alike), or its images lie elsewhere.
        CorruptShard: the stored bytes differ from their digest.
    """
    if not dataset.has_images:
        raise ValueError(
            f"{redact(dataset.reference)} holds predictions of images that lie where they were labelled, not here"
        )
    try:
        return dataset.read(image_id)
    except KeyError:
        near = _near(image_id, dataset.index()["image_id"].to_pylist())
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"{redact(dataset.reference)} has no image {image_id!r}{hint}") from None


def _near(image_id: str, ids: list[str]) -> list[str]:
    """Ids of the same file name, with or without its folders and suffix."""

    def stem(name: str) -> str:
        return name.rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()

    wanted = stem(image_id)
    same = sorted(i for i in ids if stem(i) == wanted)
    return (same or sorted(i for i in ids if wanted and wanted in stem(i)))[:_NEAR]


def describe_image(record: ImageRecord, label_map: LabelMap) -> dict[str, Any]:
    """Everything but the bytes, JSON-ready; ``objects`` is None where nobody has looked at the image."""
    return {
        "image_id": record.image_id,
        "coco_image_id": record.coco_image_id,
        "split": record.split,
        "group_id": record.group_id,
        "format": record.format,
        "width": record.width,
        "height": record.height,
        "exif_orientation": record.exif_orientation,
        "bytes": len(record.image),
        "sha256": record.sha256,
        "source": record.source,
        "url": record.url,
        "license": record.license,
        "extra": dict(record.extra),
        "objects": None if record.annotations is None else _objects(record.annotations, label_map),
    }


def _objects(found: Annotations, label_map: LabelMap) -> list[dict[str, Any]]:
    names = {category.category_id: category.name for category in label_map.categories}
    objects = []
    for i in range(len(found)):
        rle, points, area = found.rles[i], found.keypoints[i], float(found.area[i])
        objects.append(
            {
                "id": int(found.ids[i]),
                "category": names[int(found.category_ids[i])],
                "category_id": int(found.category_ids[i]),
                "bbox_xywh": [float(value) for value in found.boxes_xywh[i]],
                "area": None if math.isnan(area) else area,
                "iscrowd": bool(found.iscrowd[i]),
                "polygons": found.polygons[i],
                "rle": None if rle is None else {"size": rle.size, "counts": rle.counts},
                "keypoints": None if points is None else points.tolist(),
                "score": None if found.scores is None else float(found.scores[i]),
                "attributes": dict(found.attributes[i]),
            }
        )
    return objects
