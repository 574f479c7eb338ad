"""Which part of the dataset each image belongs to, by a column of its tables or a key of what its source said."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pipelines.shards import read_image_columns, read_label_columns
from pipelines.versions import Dataset

SIZE = "size"  # of the objects, not of images
MOST_GROUPS = 200
_OF_LABELS = ("split", "width", "height")
_OF_IMAGES = ("source", "license", "format", "group_id", "exif_orientation")
COLUMNS = (*_OF_LABELS, *_OF_IMAGES)


def image_groups(dataset: Dataset, column: str, image_ids: Collection[str]) -> dict[str, str | None]:
    """The value of a column by image id, None where an image has none.

    Args:
        dataset: whose images are grouped.
        column: one of ``COLUMNS``, or a key of the images' ``extra``, such as ``patient``.
        image_ids: the images that matter.
    Raises:
        ValueError: not one image has the column, or it has more than 200 values.
    """
    wanted = set(image_ids)
    found: dict[str, str | None] = {}
    keys: set[str] = set()
    for shard in dataset.shards:
        stored = [column] if column in COLUMNS else ["extra"]
        of_images = column in _OF_IMAGES or (column not in _OF_LABELS and dataset.has_images)
        read = read_image_columns if of_images and dataset.has_images else read_label_columns
        table = read(shard, ["image_id", *stored])
        for image_id, value in zip(table["image_id"].to_pylist(), table[stored[0]].to_pylist(), strict=True):
            if image_id not in wanted:
                continue
            if stored == ["extra"]:
                extra: dict[str, Any] = json.loads(value) if value else {}
                keys |= extra.keys()
                value = extra.get(column)
            found[image_id] = None if value in (None, "") else str(value)
    values = {value for value in found.values() if value is not None}
    if wanted and not values:
        known = ", ".join((*COLUMNS, SIZE, *sorted(keys)))
        raise ValueError(f"not one measured image of {dataset.reference} has {column!r}; there are {known}")
    if len(values) > MOST_GROUPS:
        raise ValueError(f"{column!r} has {len(values):,} values; {MOST_GROUPS} can be told apart in a report")
    return found
