"""The integer ids that COCO files call images by: the same in an export and in a results file."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pipelines.schema import load_json
from pipelines.shards import read_image_columns
from pipelines.storage import redact
from pipelines.versions import Dataset


def unique_ids(given: Mapping[str, int]) -> dict[str, int]:
    """The ids given to the images of one split, or 1, 2, ... by image_id where they are no ids.

    Two sources without ids that were ingested into one label set both counted from 1.
    """
    if len(set(given.values())) == len(given) and min(given.values(), default=0) >= 0:
        return dict(given)
    return {image_id: number for number, image_id in enumerate(sorted(given), start=1)}


def given_id(coco_image_id: int, extra: str | None) -> int:
    """The source's own id, which is kept apart where two splits of it numbered their images alike.

    A source that is not COCO may have a column of that name, which is an id only where it is a whole number.

    Args:
        coco_image_id: of the dataset, where it is unique.
        extra: the image's, JSON.
    """
    found = load_json(extra).get("id")
    return found if type(found) is int else coco_image_id


def coco_image_ids(dataset: Dataset, splits: Collection[str] | None = None) -> dict[str, int]:
    """image_id -> the id that ``export_coco`` gives the image; one read of each image shard's small columns.

    Raises:
        ValueError: images of several of these splits have one id, as their sources had.
    """
    index = dataset.index(splits).sort_by([("shard", "ascending"), ("row", "ascending")])
    given: dict[str, dict[str, int]] = {}
    shard, ids = -1, {}
    columns = (index[name].to_pylist() for name in ("shard", "row", "image_id", "split"))
    for number, row, image_id, split in zip(*columns, strict=True):
        if number != shard:
            shard = number
            table = read_image_columns(dataset.shards[shard], ("coco_image_id", "extra")).to_pydict()
            ids = dict(enumerate(map(given_id, table["coco_image_id"], table["extra"])))
        given.setdefault(split, {})[image_id] = ids[row]
    unique: dict[str, int] = {}
    taken: dict[int, str] = {}
    for split in sorted(given):
        for image_id, number in unique_ids(given[split]).items():
            if number in taken:
                raise ValueError(
                    f"images {taken[number]!r} and {image_id!r} of {redact(dataset.reference)} both have the "
                    f"id {number} in COCO files, as their splits are numbered apart; write one split at a time, "
                    f"such as {split!r}"
                )
            taken[number] = image_id
            unique[image_id] = number
    return unique
