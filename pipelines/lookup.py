"""From an image id to its bytes without opening every label file or index: one small sorted file a version.

``_lookups/<label_set>/<digest>.bin``: a header, a fan-out table and fixed-size records sorted by the sha256 of the
image id. Looking up one id reads two neighbours of the fan-out and the few records between them. The file follows from
the version's content; it is written by the first reader, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.records import ImageRecord
from pipelines.schema import IMAGES, labels_from_arrow
from pipelines.shard_paths import index_path, shard_stem
from pipelines.shards import ShardRef, join_records, read_image_columns, read_label_columns, read_label_file
from pipelines.storage import Store

_READERS = 16
_MAGIC = b"BOXMLKP1"
_HEADER = struct.Struct("<8sQI4x")  # magic, records, bits of the fan-out
_RECORD = np.dtype(
    [
        ("key", "<u8"),
        ("rest", "S8"),
        ("shard", "<u4"),
        ("row", "<u4"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("sha256", "S32"),
    ]
)
_PAIR = struct.Struct("<2Q")
_A_BUCKET = 32  # records, about


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlace:
    """Where an image lies: its shard's number in the version, its row there, its bytes and their digest."""

    shard: int
    row: int
    offset: int
    length: int
    sha256: str


def find_image(uri: str, label_set: str, digest: str, shards: Sequence[ShardRef], image_id: str) -> ImagePlace | None:
    """Look one image up; two small range reads, where the version's lookup file is there.

    Args:
        uri, label_set, digest, shards: of the version; see ``Dataset``.
        image_id: wanted.
    """
    store = Store.open(uri)
    path = lookup_path(label_set, digest)
    try:
        return _search(store, path, _header(uri, path), image_id)
    except (FileNotFoundError, ValueError):  # none, cut, or of another make: the version tells what belongs there
        _header.cache_clear()
        store.write_bytes(path, _lookup_file(shards))
        return _search(store, path, _header(uri, path), image_id)


def _search(store: Store, path: str, header: tuple[int, int], image_id: str) -> ImagePlace | None:
    count, bits = header
    key = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).digest()
    high = int.from_bytes(key[:8], "big")
    first, last = _PAIR.unpack(store.read_range(path, _HEADER.size + 8 * (high >> (64 - bits)), _PAIR.size))
    if not first <= last <= count:
        raise ValueError(f"{path} is damaged")
    if first == last:
        return None
    start = _HEADER.size + 8 * (2**bits + 1) + first * _RECORD.itemsize
    records = np.frombuffer(store.read_range(path, start, (last - first) * _RECORD.itemsize), _RECORD)
    for record in records[records["key"] == high]:
        if record["rest"].ljust(8, b"\0") == key[8:16]:
            return ImagePlace(
                shard=int(record["shard"]),
                row=int(record["row"]),
                offset=int(record["offset"]),
                length=int(record["length"]),
                sha256=record["sha256"].ljust(32, b"\0").hex(),
            )
    return None


def lookup_path(label_set: str, digest: str) -> str:
    return f"_lookups/{label_set}/{digest}.bin"


@lru_cache(maxsize=64)
def _header(uri: str, path: str) -> tuple[int, int]:
    """Number of records, bits of the fan-out."""
    magic, count, bits = _HEADER.unpack(Store.open(uri).read_range(path, 0, _HEADER.size))
    if magic != _MAGIC:
        raise ValueError(f"{path} is no lookup file of this boxmill")
    return int(count), int(bits)


def _lookup_file(shards: Sequence[ShardRef]) -> bytes:
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(_records, range(len(shards)), shards))
    records = np.concatenate([np.zeros(0, _RECORD), *parts])
    keys = records["key"]
    order = np.argsort(keys, kind="stable")
    records, keys = records[order], keys[order]
    bits = max(1, (len(records) // _A_BUCKET).bit_length())
    edges = np.arange(1, 2**bits, dtype=np.uint64) << np.uint64(64 - bits)
    fan_out = np.concatenate([[0], np.searchsorted(keys, edges), [len(records)]]).astype("<u8")
    return _HEADER.pack(_MAGIC, len(records), bits) + fan_out.tobytes() + records.tobytes()


def _records(number: int, ref: ShardRef) -> NDArray[np.void]:
    labels = read_label_columns(ref, ["image_id", "row"])
    content = Store.open(ref.uri).read_bytes(index_path(shard_stem(ref.image_path)))
    rows = np.asarray(labels["row"], np.int64)
    index = pq.read_table(pa.BufferReader(content)).take(pa.array(rows))
    records = np.zeros(len(rows), _RECORD)
    keys = [hashlib.sha256(i.encode("utf-8", "surrogatepass")).digest() for i in labels["image_id"].to_pylist()]
    records["key"] = [int.from_bytes(key[:8], "big") for key in keys]
    records["rest"] = [key[8:16] for key in keys]
    records["shard"], records["row"] = number, rows
    records["offset"], records["length"] = np.asarray(index["offset"]), np.asarray(index["length"])
    records["sha256"] = [bytes.fromhex(digest) for digest in index["sha256"].to_pylist()]
    return records


def read_record(ref: ShardRef, row: int, image: bytes) -> ImageRecord:
    """One image whose bytes are there already, with all that is said of it.

    The shard's labels and its columns other than the bytes are read, once for all its images.
    """
    labels = read_label_file(ref.uri, ref.label_path)
    rows = labels_from_arrow(labels.filter(pc.field("row") == row))
    columns = _small_columns(ref.uri, ref.image_path)
    table = columns.slice(row, 1)
    (record,) = join_records(table, [0], rows, [image])
    return record


@lru_cache(maxsize=16)
def _small_columns(uri: str, path: str) -> pa.Table:
    ref = ShardRef(uri=uri, label_set="", image_path=path, label_path="", rows=0)
    return read_image_columns(ref, [name for name in IMAGES.names if name != "image"])
