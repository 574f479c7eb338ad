"""What every export does alike: walk over the images, give them safe names, count what the format cannot carry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipelines.exports.names import safe_names, with_suffix
from pipelines.records import Annotations
from pipelines.schema import load_json
from pipelines.shards import ShardRef, read_image, read_image_columns, read_labels
from pipelines.storage import Store
from pipelines.versions import Dataset, EmptyDataset, open_dataset

_COLUMNS = ("format", "exif_orientation", "url", "extra")
_WRITERS = 8
_WINDOW = 256
_EXAMPLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written, and what could not be.

    Attributes:
        files: split or name -> URI of its main file.
        num_images, num_objects: written.
        losses: what the format cannot carry -> how many objects or images it concerns.
        examples: for each loss, image ids (and object ids) of the first ones.
        never_carried: what the format has no place for at all.
    """

    files: dict[str, str]
    num_images: int
    num_objects: int
    losses: dict[str, int]
    examples: dict[str, list[str]]
    never_carried: tuple[str, ...] = ()


@dataclass(slots=True)
class Losses:
    """Counts what an export leaves out or changes."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, image_id: str, object_id: int | None = None) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(image_id if object_id is None else f"{image_id}#{object_id}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportImage:
    """One image on its way out.

    Attributes:
        name: safe relative path for its file.
        annotations: None where nobody has looked at it; otherwise see ``Dataset``.
        orientation: EXIF.
        routed: why a routing sent it where it is, and its uncertainty; empty where none did.
    """

    name: str
    image_id: str
    coco_image_id: int
    split: str
    width: int
    height: int
    orientation: int
    format: str
    url: str
    extra: Mapping[str, Any]
    annotations: Annotations | None
    shard: ShardRef
    row: int
    routed: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The encoded image as it was ingested."""
        return read_image(self.shard, self.row)


def open_export(dataset: str | Dataset) -> Dataset:
    """The dataset of a reference, or the opened one."""
    return open_dataset(dataset) if isinstance(dataset, str) else dataset


def choose_splits(dataset: Dataset, splits: Collection[str] | None) -> list[str]:
    """The wanted splits, sorted.

    Raises:
        EmptyDataset: there is no such split.
    """
    wanted = [s for s in sorted(dataset.splits) if splits is None or s in splits]
    unknown = sorted(set(splits or ()) - set(dataset.splits))
    if unknown or not wanted:
        raise EmptyDataset(f"{dataset.reference} has no split {unknown}; it has {sorted(dataset.splits)}")
    return wanted


def walk(
    dataset: Dataset,
    splits: Collection[str] | None = None,
    *,
    by_split: bool = False,
    flat: bool = False,
    by_stem: bool = False,
    without: Collection[str] = (),
) -> Iterator[ExportImage]:
    """Every image of the splits in shard order; bytes are read when asked for.

    Args:
        dataset: opened.
        splits: only these; None for all.
        by_split: names are unique in their split, and hold no folder called like a split.
        flat, by_stem, without: see ``safe_names``.
    """
    wanted = frozenset(choose_splits(dataset, splits))
    index = dataset.index(wanted)
    groups: dict[str, list[str]] = {}
    for image_id, split in zip(index["image_id"].to_pylist(), index["split"].to_pylist(), strict=True):
        groups.setdefault(split if by_split else "", []).append(image_id)
    left_out = {*without, *wanted} if by_split else without
    names: dict[str, str] = {}
    for ids in groups.values():
        names |= safe_names(ids, flat=flat, by_stem=by_stem, without=left_out)
    for shard in dataset.shards:
        rows = [row for row in read_labels(shard) if row.split in wanted]
        columns = read_image_columns(shard, _COLUMNS).to_pydict() if rows else {}
        for row in rows:
            yield ExportImage(
                name=with_suffix(names[row.image_id], columns["format"][row.row]),
                image_id=row.image_id,
                coco_image_id=row.coco_image_id,
                split=row.split,
                width=row.width,
                height=row.height,
                orientation=columns["exif_orientation"][row.row] or 1,
                format=columns["format"][row.row],
                url=columns["url"][row.row] or "",
                extra=load_json(columns["extra"][row.row]),
                annotations=row.annotations,
                shard=shard,
                row=row.row,
                routed=row.extra.get("route", {}),
            )


def write_files(store: Store, files: Iterator[tuple[str, Callable[[], bytes]]]) -> None:
    """Write many files at once; their contents are made by the writers, a window at a time."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        while window := list(islice(files, _WINDOW)):
            for _ in pool.map(lambda file: store.write_bytes(file[0], file[1]()), window):
                pass


def count_losses(image: ExportImage, losses: Losses, carries: Collection[str]) -> None:
    """Count what the objects of an image have and the format does not carry.

    Args:
        image: with annotations.
        losses: gets the counts.
        carries: of ``crowd``, ``polygons``, ``rle``, ``keypoints``, ``score``, ``attributes``.
    """
    found = image.annotations
    assert found is not None
    for i in range(len(found)):
        has = {
            "crowd flag": "crowd" not in carries and bool(found.iscrowd[i]),
            "polygons": "polygons" not in carries and found.polygons[i] is not None,
            "RLE mask": "rle" not in carries and found.rles[i] is not None,
            "keypoints": "keypoints" not in carries and found.keypoints[i] is not None,
            "score": "score" not in carries and found.scores is not None,
            "attributes": "attributes" not in carries and bool(found.attributes and found.attributes[i]),
        }
        for what, lost in has.items():
            if lost:
                losses.add(what, image.image_id, int(found.ids[i]))
