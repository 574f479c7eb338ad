"""Shards: one Parquet file of image bytes, one small file of labels that belongs to it, one index of byte offsets.

``shard_writing`` writes them. Files are named by their content, so a file never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.byte_ranges import read_stored_images
from pipelines.records import ImageRecord
from pipelines.schema import (
    IMAGES,
    LabelRow,
    labels_from_arrow,
    load_json,
)
from pipelines.shard_paths import index_path, shard_stem
from pipelines.storage import Store, redact


class CorruptShard(ValueError):
    """Stored bytes differ from their digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A written file, as a commit needs to know it.

    Attributes:
        path: relative to the dataset, e.g. ``images/part-<hash>.parquet``.
        size: bytes.
        rows: images.
        num_objects: annotations (0 for image files).
        splits: images by split (empty for image files).
    """

    path: str
    size: int
    rows: int
    num_objects: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"splits": dict(self.splits)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShardFile:
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """One image shard with its label file: what a worker needs to read both. Small and picklable.

    Attributes:
        uri: the dataset.
        label_set: e.g. ``gt``.
        image_path, label_path: relative to the dataset.
        rows: images of the shard that are in the label set.
        split: of all of them; None: several, or not known before the labels are read.
    """

    uri: str
    label_set: str
    image_path: str
    label_path: str
    rows: int
    split: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroupRef:
    """One row group of a shard, the unit of reading in training.

    Attributes:
        shard: where it is.
        row_group: its number in the image file.
        rows: its images that are in the label set.
        splits: those by split.
    """

    shard: ShardRef
    row_group: int
    rows: int
    splits: Mapping[str, int]


_READERS = 4  # files that are fetched at once
_FACTS = [f.name for f in IMAGES if f.name != "image"]


# Reading. Files are named by content, so what was read of one stays true: caches never go stale.


@lru_cache(maxsize=1024)
def _footer(uri: str, path: str) -> pq.FileMetaData:
    with Store.open(uri).open_arrow(path) as stream:
        return pq.read_metadata(stream)


@lru_cache(maxsize=16)
def read_label_file(uri: str, path: str) -> pa.Table:
    """A whole label file. Raises CorruptShard where it differs from the digest in its name."""
    return pq.read_table(pa.BufferReader(_label_bytes(uri, path)))


def _label_bytes(uri: str, path: str) -> bytes:
    content = Store.open(uri).read_bytes(path)
    if hashlib.sha256(content).hexdigest()[:32] != path.split(".")[-2]:
        raise CorruptShard(
            f"{path} in {redact(uri)}: its bytes differ from the digest in its name; restore the file from a copy, "
            "or make the label set anew"
        )
    return content


@lru_cache(maxsize=64)
def _index_table(uri: str, stem: str) -> dict[str, list[Any]]:
    content = Store.open(uri).read_bytes(index_path(stem))
    try:
        return dict(pq.read_table(pa.BufferReader(content)).to_pydict())
    except (OSError, pa.ArrowException) as error:
        raise CorruptShard(
            f"{index_path(stem)} in {redact(uri)} cannot be read, restore it from a copy: {error}"
        ) from None


def read_labels(ref: ShardRef) -> list[LabelRow]:
    """All label rows of a shard, in its order."""
    return labels_from_arrow(read_label_file(ref.uri, ref.label_path))


def read_label_columns(ref: ShardRef, columns: Sequence[str]) -> pa.Table:
    """Some columns of a shard's labels; ``objects.id`` reads one leaf of the struct."""
    content = _label_bytes(ref.uri, ref.label_path)
    # Some kilobytes of a file that is in memory: other threads cost more than they help.
    return pq.ParquetFile(pa.BufferReader(content)).read(columns=list(columns), use_threads=False)


def open_label_files(refs: Sequence[ShardRef]) -> list[pq.ParquetFile]:
    """The labels of many shards, to be decoded one after the other: so memory is used again, not taken anew.

    Raises:
        CorruptShard: a file differs from the digest in its name.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        contents = pool.map(lambda ref: _label_bytes(ref.uri, ref.label_path), refs)
        return [pq.ParquetFile(pa.BufferReader(content)) for content in contents]


def read_row_group(
    ref: RowGroupRef, splits: Collection[str] | None = None, *, verify: bool = True
) -> list[ImageRecord]:
    """The images of a row group joined with their labels, in the shard's order.

    Args:
        ref: which row group.
        splits: keep only these; None keeps all. Bytes are not read where none remain.
        verify: compare each image with its sha256.
    Raises:
        CorruptShard: stored bytes differ from their digest.
    """
    labels = read_label_file(ref.shard.uri, ref.shard.label_path)
    labels = labels.filter(pc.field("row_group") == ref.row_group)
    if splits is not None:
        labels = labels.filter(pc.field("split").isin(list(splits)))
    if labels.num_rows == 0:
        return []
    rows = labels_from_arrow(labels)
    store = Store.open(ref.shard.uri)
    # Their bytes by the byte index: through the Parquet reader each is copied three times, into new memory.
    stored = read_stored_images(store, ref.shard.image_path, [row.row for row in rows])
    for row, image in zip(rows, stored, strict=True):
        if image.error is not None:
            raise CorruptShard(f"{image.error} (image {row.image_id!r})")
    images, first = _read_facts(ref.shard, _FACTS, ref.row_group)
    records = join_records(images, [row.row - first for row in rows], rows, [s.image for s in stored])
    if verify:
        for record in records:
            verify_image(record.image, record.sha256, record.image_id, ref.shard)
    return records


def read_shard(ref: ShardRef, splits: Collection[str] | None = None) -> Iterable[ImageRecord]:
    """All images of a shard, row group by row group."""
    for group in shard_row_groups(ref):
        yield from read_row_group(group, splits)


def shard_row_groups(ref: ShardRef) -> list[RowGroupRef]:
    """The row groups of a shard of which at least one image is in the label set. Reads the label file only."""
    table = read_label_columns(ref, ["row_group", "split"])
    counted: dict[int, dict[str, int]] = {}
    for group, split in zip(table["row_group"].to_pylist(), table["split"].to_pylist(), strict=True):
        splits = counted.setdefault(group, {})
        splits[split] = splits.get(split, 0) + 1
    return [
        RowGroupRef(shard=ref, row_group=group, rows=sum(splits.values()), splits=splits)
        for group, splits in sorted(counted.items())
    ]


def read_image(ref: ShardRef, row: int) -> bytes:
    """One image by its row in the shard: one range read once the shard's index is known.

    Raises:
        CorruptShard: the stored bytes differ from their digest, or the file ends before them.
        FileNotFoundError: the shard or its index is not there.
    """
    index = _index_table(ref.uri, shard_stem(ref.image_path))
    if not 0 <= row < len(index["image_id"]):
        raise ValueError(f"row {row} is not in {ref.image_path}, which has {len(index['image_id'])} images")
    try:
        image = Store.open(ref.uri).read_range(ref.image_path, index["offset"][row], index["length"][row])
    except ValueError as error:
        raise CorruptShard(f"{error} (image {index['image_id'][row]!r})") from None
    verify_image(image, index["sha256"][row], index["image_id"][row], ref)
    return image


def read_image_columns(ref: ShardRef, columns: Sequence[str]) -> pa.Table:
    """Columns of an image shard other than the bytes. Raises CorruptShard where a page differs from its checksum."""
    return _read_facts(ref, list(columns), None)[0]


def _read_facts(ref: ShardRef, columns: list[str], row_group: int | None) -> tuple[pa.Table, int]:
    """Columns of one row group, or of all, and the row of the shard that they begin with."""
    try:
        footer = _footer(ref.uri, ref.image_path)
        with Store.open(ref.uri).open_arrow(ref.image_path) as stream:
            # Images have a sha256 each; of what is said about them only the checksums of pages tell a flipped bit.
            file = pq.ParquetFile(stream, metadata=footer, pre_buffer=True, page_checksum_verification=True)
            if row_group is None:
                return file.read(columns=columns).select(columns), 0
            first = sum(footer.row_group(i).num_rows for i in range(row_group))
            return file.read_row_group(row_group, columns=columns).select(columns), first
    except (OSError, KeyError, UnicodeDecodeError, pa.ArrowException) as error:
        # Arrow's own errors have no number; those of a disk or a server have one, or are of a kind of their own.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        raise CorruptShard(
            f"{ref.image_path} in {redact(ref.uri)}: the file is not as it was written ({str(error).strip()}); restore "
            "it from a copy, or ingest the source again into a new dataset"
        ) from error


def verify_image(image: bytes, sha256: str, image_id: str, ref: ShardRef) -> None:
    """Raises CorruptShard."""
    if hashlib.sha256(image).hexdigest() != sha256:
        raise CorruptShard(
            f"{ref.image_path} in {redact(ref.uri)}: the stored bytes of {image_id!r} differ from their sha256; "
            "restore the file from a copy, or ingest the source again into a new dataset"
        )


def join_records(
    images: pa.Table, places: Sequence[int], rows: Sequence[LabelRow], contents: Sequence[bytes]
) -> list[ImageRecord]:
    """Rows of an images table, by their places in it, with their labels and bytes.

    Args:
        images: the columns of ``IMAGES``; that of the bytes is not looked at.
        places: in the table, one a row.
        rows: labels.
        contents: encoded images, one a row.
    Raises:
        CorruptShard: labels and images are not of the same images.
    """
    plain = {name: images.column(name).to_pylist() for name in _FACTS}
    records = []
    for place, row, image in zip(places, rows, contents, strict=True):
        values = {name: column[place] for name, column in plain.items()}
        if values["image_id"] != row.image_id:
            raise CorruptShard(
                f"labels: those of {row.image_id!r} name a row of their shard that is {values['image_id']!r}; "
                "restore the files from a copy (`boxmill verify` tells which is damaged)"
            )
        values["extra"] = load_json(values["extra"])
        for name in ("license", "url", "group_id"):
            values[name] = values[name] or ""
        records.append(ImageRecord(image=image, annotations=row.annotations, split=row.split, **values))
    return records
