"""Images of a shard by their byte ranges: only the bytes that are wanted, in few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.records import IntArray
from pipelines.shards import index_path, shard_stem
from pipelines.storage import Store

MAX_GAP = 64 * 1024
"""Bytes between two images that are read along rather than asking twice."""
MAX_REQUEST = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image as its shard holds it, not yet compared with the digest it was stored under."""

    image: bytes
    sha256: str


def read_stored_images(store: Store, image_file: str, rows: Sequence[int]) -> list[StoredImage]:
    """Some images of a shard.

    Args:
        store: the dataset.
        image_file: the shard's path.
        rows: places in the shard, ascending.
    Returns:
        One an entry of ``rows``; the caller verifies the digests, so that one damaged image does not hide the rest.
    Raises:
        ValueError: the file was cut.
    """
    index = _byte_index(store.uri, index_path(shard_stem(image_file)))
    offsets, lengths = index.offsets[list(rows)], index.lengths[list(rows)]
    found = []
    for first, last in requests(offsets, lengths):
        start = int(offsets[first])
        content = store.read_range(image_file, start, int(offsets[last - 1] + lengths[last - 1]) - start)
        for i in range(first, last):
            at = int(offsets[i]) - start
            found.append(StoredImage(image=content[at : at + int(lengths[i])], sha256=index.sha256[rows[i]]))
    return found


def requests(offsets: IntArray, lengths: IntArray) -> list[tuple[int, int]]:
    """Cuts ascending byte ranges into runs (first, last + 1) that one request each should read."""
    runs = []
    first = 0
    for i in range(1, len(offsets) + 1):
        if i < len(offsets):
            end = offsets[i - 1] + lengths[i - 1]
            together = offsets[i] - end <= MAX_GAP and offsets[i] + lengths[i] - offsets[first] <= MAX_REQUEST
            if together:
                continue
        runs.append((first, i))
        first = i
    return runs if len(offsets) else []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ByteIndex:
    offsets: IntArray
    lengths: IntArray
    sha256: list[str]


@lru_cache(maxsize=8)
def _byte_index(uri: str, path: str) -> _ByteIndex:
    table: pa.Table = pq.read_table(pa.BufferReader(Store.open(uri).read_bytes(path)))
    return _ByteIndex(
        offsets=np.asarray(table["offset"], np.int64),
        lengths=np.asarray(table["length"], np.int64),
        sha256=table["sha256"].to_pylist(),
    )
