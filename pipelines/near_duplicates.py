"""Images that look alike: difference hashes of 8x8 cells, across and down, compared by Hamming distance.

Scaled, recompressed and slightly changed copies are found; cropped, turned and mirrored ones are not.
Source: Krawetz, "Kind of Like That" (2013), for the difference hash.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipelines.byte_ranges import read_stored_images
from pipelines.checks import FORMATS
from pipelines.shard_paths import shard_stem
from pipelines.shards import ShardRef, read_image_columns, read_label_columns
from pipelines.storage import Store
from pipelines.versions import Dataset, open_dataset

THRESHOLD = 6
"""Bits of 64 that may differ, in either hash."""
_HASHES = pa.schema([("row", pa.int32()), ("across", pa.uint64()), ("down", pa.uint64()), ("flat", pa.bool_())])
_SIDE = 8
_FLAT = 4.0  # grey levels between the darkest and the brightest cell: noise decides over such a hash
_READERS = 4
_WINDOW = 64  # images in memory at a time
_BLOCK = 4096

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """An image that looks like an earlier one.

    Attributes:
        image_id: of the later one.
        near: id of the nearest earlier image.
        distance: bits of 128 in which their hashes differ; 0 for equal pixels, and often for scaled ones.
        split, near_split: where they are.
    """

    image_id: str
    near: str
    distance: int
    split: str
    near_split: str

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def find_near_duplicates(
    dataset: str | Dataset, *, threshold: int = THRESHOLD, progress: Any = None
) -> list[NearDuplicate]:
    """Every image with the nearest earlier one that looks like it, in the dataset's order.

    Decodes every image once (at reduced size where it is a JPEG); hashes are kept under ``_hashes`` and read from
    there the next time. Images of one colour look like all others and are left out.

    Args:
        dataset: reference, or opened.
        threshold: bits of 64 that may differ in each of the two hashes, 0 to 16.
        progress: called as ``progress(done, total)`` with images.
    Raises:
        ValueError: a threshold out of range.
    """
    if not 0 <= threshold <= 16:
        raise ValueError(f"threshold={threshold}: give 0 (equal hashes) to 16; images that are alike differ in up to 8")
    opened = open_dataset(dataset) if isinstance(dataset, str) else dataset
    ids: list[str] = []
    splits: list[str] = []
    hashes: list[pa.Table] = []
    for shard in opened.shards:
        labels = read_label_columns(shard, ["row", "image_id", "split"])
        table = shard_hashes(shard)
        there = {row: place for place, row in enumerate(table["row"].to_pylist())}
        places = [there.get(row) for row in labels["row"].to_pylist()]
        known = [i for i, place in enumerate(places) if place is not None]
        hashes.append(table.take(pa.array([places[i] for i in known], pa.int64())))
        ids += [labels["image_id"][i].as_py() for i in known]
        splits += [labels["split"][i].as_py() for i in known]
        if progress is not None:
            progress(len(ids), opened.num_images)
    table = pa.concat_tables(hashes)
    distinct = np.flatnonzero(~np.asarray(table["flat"]))
    across, down = (np.asarray(table[name])[distinct] for name in ("across", "down"))
    return [
        NearDuplicate(
            image_id=ids[distinct[later]],
            near=ids[distinct[earlier]],
            distance=distance,
            split=splits[distinct[later]],
            near_split=splits[distinct[earlier]],
        )
        for later, earlier, distance in nearest_earlier(across, down, threshold)
    ]


def nearest_earlier(across: Hashes, down: Hashes, threshold: int) -> list[tuple[int, int, int]]:
    """(later, earlier, distance) of each hash that has an earlier one near it.

    Two hashes that differ in up to T bits agree in at least one of T + 1 bands of bits: only those are compared.

    Args:
        across, down: (N,) uint64.
        threshold: bits that may differ in each.
    """
    count = len(across)
    best = np.full(count, 999, np.int64)
    found = np.full(count, -1, np.int64)
    edges = np.linspace(0, 64, threshold + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (across >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")  # in a band's group places ascend
        cuts = np.flatnonzero(np.diff(band[order])) + 1
        for group in np.split(order, cuts):
            _compare(group, across, down, threshold, best, found)
    return [(int(i), int(found[i]), int(best[i])) for i in np.flatnonzero(found >= 0)]


def _compare(
    group: NDArray[np.int64], across: Hashes, down: Hashes, threshold: int, best: NDArray, found: NDArray
) -> None:
    for start in range(1, len(group), _BLOCK):
        later = group[start : start + _BLOCK]
        for first in range(0, start + len(later) - 1, _BLOCK):
            earlier = group[first : min(first + _BLOCK, start + len(later))]
            one = np.bitwise_count(across[later, None] ^ across[None, earlier]).astype(np.int64)
            two = np.bitwise_count(down[later, None] ^ down[None, earlier]).astype(np.int64)
            far = (one > threshold) | (two > threshold) | (earlier[None, :] >= later[:, None])
            total = np.where(far, 999, one + two)
            at = total.argmin(axis=1)
            distance = total[np.arange(len(later)), at]
            better = (distance < best[later]) | (
                (distance == best[later]) & (distance < 999) & (earlier[at] < found[later])
            )
            best[later[better]] = distance[better]
            found[later[better]] = earlier[at[better]]


def hashes_path(stem: str) -> str:
    return f"_hashes/{stem}.parquet"


def shard_hashes(shard: ShardRef) -> pa.Table:
    """row, across, down, flat of every image of a shard that can be decoded; made once."""
    store = Store.open(shard.uri)
    path = hashes_path(shard_stem(shard.image_path))
    try:
        return pq.read_table(pa.BufferReader(store.read_bytes(path)), schema=_HASHES)
    except (FileNotFoundError, OSError, pa.ArrowException):  # none, or cut: it is made anew
        pass
    # Of all its images: another label set may have those that this one leaves out.
    rows = list(range(read_image_columns(shard, ["width"]).num_rows))
    values: list[tuple[int, int, int, bool]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(rows), _WINDOW):
            window = rows[start : start + _WINDOW]
            stored = read_stored_images(store, shard.image_path, window)
            for row, hashed in zip(window, pool.map(lambda s: hash_image(s.image), stored), strict=True):
                if hashed is not None:
                    values.append((row, *hashed))
    columns = list(zip(*values, strict=True)) or [()] * len(_HASHES)
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _HASHES, strict=True)], schema=_HASHES
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.write_bytes(path, memoryview(sink.getvalue()))
    return table


def hash_image(image: bytes) -> tuple[int, int, bool] | None:
    """(across, down, flat) of an encoded image in its stored frame; None where it cannot be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
                opened.draft("L", (8 * _SIDE, 8 * _SIDE))
                small = opened.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    except Exception:  # a damaged image has no looks; ingest's deep check is there to find it
        return None
    cells = np.asarray(small, np.int64)
    across = cells[:_SIDE, 1:] > cells[:_SIDE, :-1]
    down = cells[1:, :_SIDE] > cells[:-1, :_SIDE]
    return _bits(across), _bits(down), float(cells.max() - cells.min()) < _FLAT


def _bits(values: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(values.reshape(-1)).tobytes(), "big")


def count_near_duplicates(found: Sequence[NearDuplicate]) -> dict[str, int]:
    """Totals; empty where there are none."""
    across = sum(n.split != n.near_split for n in found)
    return {"images": len(found), "across_splits": across} if found else {}
