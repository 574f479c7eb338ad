"""Opening a dataset version.

A dataset reference is ``URI@labels/<set>:<version>``; ``URI@labels/<set>`` is the newest version of a label set and
a plain ``URI`` the newest truth (``gt``).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import delta
from pipelines.commits import DatasetVersion, commit_images, commit_labels, find_version
from pipelines.lookup import ImagePlace, find_image, read_record
from pipelines.records import Annotations, ImageRecord, LabelMap
from pipelines.references import (
    DEFAULT_LABEL_SET,
    CategoryMismatch,
    DatasetNotFound,
    DuplicateImages,
    EmptyDataset,
    NewerSchema,
    Reference,
    check_schema,
    format_reference,
    parse_reference,
)
from pipelines.shard_paths import image_path, shard_stem
from pipelines.shards import (
    RowGroupRef,
    ShardRef,
    read_label_columns,
    read_labels,
    read_shard,
    shard_row_groups,
    verify_image,
)
from pipelines.storage import Store, redact

__all__ = [
    "DEFAULT_LABEL_SET",
    "CategoryMismatch",
    "Dataset",
    "DatasetNotFound",
    "DatasetVersion",
    "DuplicateImages",
    "EmptyDataset",
    "NewerSchema",
    "Reference",
    "commit_images",
    "commit_labels",
    "find_version",
    "format_reference",
    "list_label_sets",
    "open_dataset",
    "parse_reference",
]
_READERS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One version of a dataset, opened. Cheap to open and to pickle: no data file is read until asked for.

    Attributes:
        uri, label_set, version: what was opened.
        metadata: the label commit's JSON: kind, categories, images_version, plan_id, ledger, provenance, ...
        shards: every image shard that the label set names, with its label file, sorted by label file name.
    """

    uri: str
    label_set: str
    version: int
    metadata: Mapping[str, Any]
    shards: tuple[ShardRef, ...]

    @property
    def reference(self) -> str:
        return format_reference(self.uri, self.label_set, self.version)

    @property
    def digest(self) -> str:
        return str(self.metadata["digest"])

    @cached_property
    def label_map(self) -> LabelMap:
        return LabelMap.from_json(self.metadata["categories"])

    @property
    def num_images(self) -> int:
        return int(self.metadata["num_images"])

    @property
    def num_objects(self) -> int:
        return int(self.metadata["num_objects"])

    @property
    def splits(self) -> dict[str, int]:
        """Images by split."""
        return dict(self.metadata["splits"])

    @property
    def has_images(self) -> bool:
        """Whether the images are in this dataset; an archive's, of which these are predictions, lie elsewhere."""
        return int(self.metadata["images_version"]) >= 0

    def row_groups(self) -> tuple[RowGroupRef, ...]:
        """All row groups in shard order. Reads every label file (small), no image file."""
        with ThreadPoolExecutor(_READERS) as pool:
            return tuple(group for groups in pool.map(shard_row_groups, self.shards) for group in groups)

    def index(self, splits: Collection[str] | None = None) -> pa.Table:
        """One row an image: shard, row_group, row (int32), image_id, split, num_objects. Reads label files only."""
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(_index_of_shard, range(len(self.shards)), self.shards))
        table = pa.concat_tables(parts) if parts else _INDEX.empty_table()
        return table if splits is None else table.filter(pc.field("split").isin(list(splits)))

    def records(self, splits: Collection[str] | None = None) -> Iterator[ImageRecord]:
        """Every image with bytes and annotations, in shard order."""
        for shard in self.shards:
            yield from read_shard(shard, splits)

    def annotations(self, splits: Collection[str] | None = None) -> Iterator[tuple[str, int, int, int, Annotations]]:
        """(image_id, coco_image_id, width, height, annotations) without touching image files.

        Images that nobody has looked at are left out; an image without objects comes with empty annotations.
        """
        for shard in self.shards:
            for row in read_labels(shard):
                if row.annotations is not None and (splits is None or row.split in splits):
                    yield row.image_id, row.coco_image_id, row.width, row.height, row.annotations

    def read_bytes(self, image_id: str) -> bytes:
        """One image as it was ingested: a lookup of two small range reads, then one range read.

        Raises:
            KeyError: the version has no such image.
            CorruptShard: the stored bytes differ from their digest.
        """
        return self._find(image_id)[1]

    def read(self, image_id: str) -> ImageRecord:
        """One image with its annotations: as ``read_bytes``; what is small of its shard is read once and kept."""
        place, image = self._find(image_id)
        return read_record(self.shards[place.shard], place.row, image)

    def _find(self, image_id: str) -> tuple[ImagePlace, bytes]:
        place = find_image(self.uri, self.label_set, self.digest, self.shards, image_id)
        if place is None:
            raise KeyError(f"{redact(self.reference)} has no image {image_id!r}")
        shard = self.shards[place.shard]
        image = Store.open(self.uri).read_range(shard.image_path, place.offset, place.length)
        verify_image(image, place.sha256, image_id, shard)
        return place, image

    def history(self) -> list[delta.Commit]:
        """The commits of this label set up to this version, newest first."""
        return list(delta.history(Store.open(self.uri).sub("labels", self.label_set), self.version))


_INDEX = pa.schema(
    [
        ("shard", pa.int32()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("num_objects", pa.int32()),
    ]
)


def _index_of_shard(number: int, ref: ShardRef) -> pa.Table:
    table = read_label_columns(ref, ["image_id", "row", "row_group", "split", "objects.id"])
    ids = pc.struct_field(table["objects"], "id")
    values = {
        "shard": pa.array([number] * table.num_rows, pa.int32()),
        "num_objects": pc.fill_null(pc.list_value_length(ids), 0),
    }
    return pa.table([values[f.name] if f.name in values else table[f.name] for f in _INDEX], schema=_INDEX)


def open_dataset(reference: str | Reference) -> Dataset:
    """Open a dataset version.

    Args:
        reference: ``URI``, ``URI@labels/<set>`` or ``URI@labels/<set>:<version>``; any fsspec scheme.
    Raises:
        DatasetNotFound: no such dataset, label set or version; the message names near ones.
        EmptyDataset: the version has no images.
        NewerSchema: written by a later boxmill.
    """
    wanted = parse_reference(reference) if isinstance(reference, str) else reference
    store = Store.open(wanted.uri)
    try:
        snapshot = delta.open_snapshot(store.sub("labels", wanted.label_set), wanted.version)
    except delta.TableNotFound:
        raise DatasetNotFound(_not_found(store, wanted.label_set)) from None
    except delta.VersionNotFound as error:
        raise DatasetNotFound(str(error)) from None
    check_schema(snapshot.metadata, redact(str(wanted)))
    if not snapshot.files:
        raise EmptyDataset(f"{redact(str(wanted))} has no images in version {snapshot.version}")
    shards = tuple(
        ShardRef(
            uri=store.uri,
            label_set=wanted.label_set,
            image_path=image_path(shard_stem(file.path)),
            label_path=f"labels/{wanted.label_set}/{file.path}",
            rows=file.rows,
            split=file.split,
        )
        for file in snapshot.files
    )
    return Dataset(
        uri=store.uri,
        label_set=wanted.label_set,
        version=snapshot.version,
        metadata=snapshot.metadata,
        shards=shards,
    )


def list_label_sets(uri: str) -> list[str]:
    """Names of all label sets of a dataset."""
    store = Store.open(uri)
    return [name for name in store.children("labels") if delta.exists(store.sub("labels", name))]


def _not_found(store: Store, label_set: str) -> str:
    where = redact(store.uri)
    sets = list_label_sets(store.uri)
    if sets:
        return f"{where} has no label set {label_set!r}; it has {', '.join(sets)}"
    parent, _, name = store.uri.rpartition("/")
    siblings = Store.open(parent or "/").children() if parent and not parent.endswith(":/") else []
    near = difflib.get_close_matches(name, [s for s in siblings if s != name], n=1, cutoff=0.6)
    hint = f"; did you mean {redact(parent)}/{near[0]}?" if near else "; make one with `boxmill ingest`"
    return f"no dataset at {where}{hint}"
