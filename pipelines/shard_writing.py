"""Writing shards: images as they come, one row group in memory at a time; their labels; the byte index.

Files are named by their content, so whoever writes the same rows writes the same file, and a file never changes.
Settings are the measured ones: image bytes uncompressed and PLAIN, so that each image is contiguous in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.records import ImageRecord
from pipelines.schema import IMAGES, STORED_FRAME, LabelRow, images_to_arrow, labels_to_arrow
from pipelines.shard_digest import ImageEnds, find_images
from pipelines.shard_paths import image_path, index_path, shard_stem
from pipelines.shards import ShardFile
from pipelines.storage import Store

MAX_SHARD_IMAGES = 1024
MAX_SHARD_BYTES = 256 * 2**20
MAX_GROUP_ROWS = 128
MAX_GROUP_BYTES = 32 * 2**20
_IMAGE_BYTES = "image.bytes"
_INDEX = pa.schema([("image_id", pa.string()), ("sha256", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])


class ImageShardWriter:
    """Writes one shard and its index, record by record. The same records give the same bytes and name.

    Leaving the ``with`` without ``finish`` leaves no file behind.

    Args:
        store: the dataset.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open = ExitStack()
        self._file: Any = None
        self._stream: pa.NativeFile | None = None
        self._writer: pq.ParquetWriter | None = None
        self._groups = _Groups()
        self._waiting: list[ImageRecord] = []
        self._written: list[tuple[str, ImageEnds]] = []  # image id
        self._ids: set[str] = set()

    def __enter__(self) -> ImageShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def add(self, record: ImageRecord) -> int:
        """Takes the next image; its row is how many came before.

        Returns:
            Its row group.
        Raises:
            ValueError: the shard has an image of this id.
        """
        if record.image_id in self._ids:
            raise ValueError(f"image id {record.image_id!r} is given twice in one shard; ids must be unique")
        self._ids.add(record.image_id)
        group = self._groups.place(record)
        if self._waiting and group != self._groups.of_last:
            self._write_group()
        self._groups.of_last = group
        self._waiting.append(record)
        return group

    def finish(self) -> ShardFile | None:
        """Gives the shard its name; None where no image came."""
        if not self._ids:
            return None
        self._write_group()
        assert self._writer is not None and self._stream is not None
        self._writer.close()
        self._stream.close()
        with self._file.content() as content:
            digest, offsets = find_images(content, [ends for _, ends in self._written])
            size = len(content)
        stem = f"part-{digest[:32]}"
        # Index first: a shard that a table names always has one.
        self._store.write_bytes(index_path(stem), _to_parquet(self._byte_index(offsets)))
        self._file.publish(image_path(stem))
        return ShardFile(path=image_path(stem), size=size, rows=len(self._written))

    def _write_group(self) -> None:
        if self._writer is None:
            self._file = self._open.enter_context(self._store.new_file("images"))
            self._stream = self._open.enter_context(self._file.arrow())
            self._writer = pq.ParquetWriter(self._stream, IMAGES, **_write_options())
        self._writer.write_table(images_to_arrow(self._waiting), row_group_size=MAX_GROUP_ROWS)
        self._written += [(r.image_id, ImageEnds.of(r.image, r.sha256)) for r in self._waiting]
        self._waiting = []

    def _byte_index(self, offsets: list[int]) -> pa.Table:
        ids, digests, lengths = zip(*((image_id, ends.sha256, ends.length) for image_id, ends in self._written))
        return pa.table([ids, digests, offsets, lengths], schema=_INDEX)


class _Groups:
    """Row groups of records as they come: at most 128 rows or 32 MB, and never of two splits."""

    def __init__(self) -> None:
        self.of_last = 0
        self._group, self._rows, self._size, self._split = 0, 0, 0, ""

    def place(self, record: ImageRecord) -> int:
        full = self._rows == MAX_GROUP_ROWS or self._size + len(record.image) > MAX_GROUP_BYTES
        if self._rows and (full or record.split != self._split):
            self._group, self._rows, self._size = self._group + 1, 0, 0
        self._rows, self._size, self._split = self._rows + 1, self._size + len(record.image), record.split
        return self._group


def group_rows(records: Iterable[ImageRecord]) -> list[int]:
    """The row group of each record of a shard."""
    groups = _Groups()
    return [groups.place(record) for record in records]


def write_image_shard(store: Store, records: Iterable[ImageRecord]) -> ShardFile:
    """A shard of these records; see ``ImageShardWriter``.

    Args:
        store: the dataset.
        records: 1 to 1,024 images, of which no two have the same id.
    """
    with ImageShardWriter(store) as writer:
        for record in records:
            writer.add(record)
        file = writer.finish()
    if file is None:
        raise ValueError("a shard needs at least one image")
    return file


def write_label_shard(store: Store, label_set: str, image_file: str, rows: Sequence[LabelRow]) -> ShardFile:
    """Write the labels of one image shard.

    Args:
        store: the dataset.
        label_set: e.g. ``gt``.
        image_file: the image shard's path or name.
        rows: in the order of the shard; images left out are not in the label set.
    """
    content = _to_parquet(labels_to_arrow(rows))
    digest = hashlib.sha256(content).hexdigest()[:32]
    path = f"labels/{label_set}/{shard_stem(image_file)}.{digest}.parquet"
    store.write_bytes(path, content)
    splits: dict[str, int] = {}
    for row in rows:
        splits[row.split] = splits.get(row.split, 0) + 1
    return ShardFile(
        path=path,
        size=len(content),
        rows=len(rows),
        num_objects=sum(len(row.annotations) for row in rows if row.annotations is not None),
        splits=splits,
    )


def label_rows(records: Sequence[ImageRecord]) -> list[LabelRow]:
    """The label rows of a shard that is written of exactly these records."""
    return [label_row(r, row, group) for row, (r, group) in enumerate(zip(records, group_rows(records), strict=True))]


def label_row(record: ImageRecord, row: int, row_group: int) -> LabelRow:
    """What the label file says of an image that is this row of its shard."""
    return LabelRow(
        image_id=record.image_id,
        row=row,
        row_group=row_group,
        split=record.split,
        coco_image_id=record.coco_image_id,
        width=record.width,
        height=record.height,
        annotations=record.annotations,
        box_frame=None if record.exif_orientation == 1 else STORED_FRAME,
        neg=_category_ids(record, "neg_category_ids"),
        not_exhaustive=_category_ids(record, "not_exhaustive_category_ids"),
    )


def _category_ids(record: ImageRecord, name: str) -> tuple[int, ...] | None:
    found = record.extra.get(name)
    if not isinstance(found, list) or not all(type(v) is int and abs(v) < 2**63 for v in found):
        return None
    return tuple(found)


@lru_cache(maxsize=1)
def _write_options() -> dict[str, Any]:
    sink = pa.BufferOutputStream()
    pq.write_table(IMAGES.empty_table(), sink)
    schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    leaves = [schema.column(i).path for i in range(len(schema))]
    others = [leaf for leaf in leaves if leaf != _IMAGE_BYTES]
    return {
        "compression": {leaf: "none" if leaf == _IMAGE_BYTES else "zstd" for leaf in leaves},
        "use_dictionary": others,
        "column_encoding": {_IMAGE_BYTES: "PLAIN"},
        "write_statistics": others,
        "write_page_index": True,
        "write_page_checksum": True,
    }


def _to_parquet(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_index=True)
    return memoryview(sink.getvalue())
