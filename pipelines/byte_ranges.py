"""Images of a shard by their byte ranges: only the bytes that are wanted, in few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.records import IntArray
from pipelines.shard_paths import index_path, shard_stem
from pipelines.storage import Store, redact

MAX_GAP = 64 * 1024
"""Bytes between two images that are read along rather than asking twice."""
MAX_REQUEST = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image as its shard holds it, not yet compared with the digest it was stored under.

    Attributes:
        image: its bytes; empty where the shard ends before them.
        sha256: of the bytes that were stored.
        error: why there are no bytes, or None.
    """

    image: bytes
    sha256: str
    error: str | None = None


class MissingShard(ValueError):
    """A file of image bytes, or its index, is not there."""


def read_stored_images(store: Store, image_file: str, rows: Sequence[int]) -> list[StoredImage]:
    """Some images of a shard.

    Args:
        store: the dataset.
        image_file: the shard's path.
        rows: places in the shard, ascending.
    Returns:
        One an entry of ``rows``; the caller verifies the digests, so that one damaged image does not hide the rest.
    Raises:
        MissingShard: the shard or its index is not there: lost, or purged since the version was opened.
        ValueError: the index cannot be read.
    """
    index = _byte_index(store.uri, index_path(shard_stem(image_file)))
    offsets, lengths = index.offsets[list(rows)], index.lengths[list(rows)]
    found: list[StoredImage] = []
    for first, last in requests(offsets, lengths):
        for image, error in _read(store, image_file, offsets[first:last], lengths[first:last]):
            found.append(StoredImage(image=image, sha256=index.sha256[rows[len(found)]], error=error))
    return found


def _read(
    store: Store, image_file: str, offsets: IntArray, lengths: IntArray
) -> list[tuple[bytes, None] | tuple[bytes, str]]:
    """Neighbouring images in one request; where the file was cut one by one, so that the cut does not hide the rest."""
    start, end = int(offsets[0]), int(offsets[-1] + lengths[-1])
    try:
        if store.is_local:  # asking is free there, and each image is copied once
            return [(image, None) for image in store.read_ranges(image_file, offsets.tolist(), lengths.tolist())]
        content = store.read_range(image_file, start, end - start)
    except FileNotFoundError:
        raise _missing(store.uri, image_file) from None
    except ValueError as error:
        if len(offsets) == 1:
            return [(b"", str(error))]
        singles = (_read(store, image_file, offsets[i : i + 1], lengths[i : i + 1]) for i in range(len(offsets)))
        return [one for single in singles for one in single]
    places = zip((offsets - start).tolist(), lengths.tolist(), strict=True)
    return [(content[at : at + length], None) for at, length in places]


def _missing(uri: str, path: str) -> MissingShard:
    return MissingShard(
        f"{path} is missing in {redact(uri)}. If images were purged meanwhile, start again with the newest version; if "
        "the file was lost, restore it from a copy (`boxmill verify` lists what is missing)"
    )


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
    try:
        table: pa.Table = pq.read_table(pa.BufferReader(Store.open(uri).read_bytes(path)))
    except FileNotFoundError:
        raise _missing(uri, path) from None
    except pa.ArrowException as error:
        raise ValueError(f"{path} in {redact(uri)} cannot be read, restore it from a copy: {error}") from None
    return _ByteIndex(
        offsets=np.asarray(table["offset"], np.int64),
        lengths=np.asarray(table["length"], np.int64),
        sha256=table["sha256"].to_pylist(),
    )
