"""Which images of an input show the same picture: by their bytes, or by hashes of their looks.

Made for millions of images: arrays of numbers in memory, about 180 bytes an image at the peak, no names and no pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise, product

import numpy as np
import pyarrow as pa

from pipelines.near_duplicates import Hashes
from pipelines.records import BoolArray, IntArray

MOST_BITS = 10
LOOKS = pa.schema(
    [
        ("sha256", pa.string()),  # null: the bytes could not be read
        ("across", pa.uint64()),  # null: not to be decoded; these three as of ``hash_image``
        ("down", pa.uint64()),
        ("flat", pa.bool_()),
        ("width", pa.int32()),  # as stored
        ("height", pa.int32()),
        ("format", pa.string()),
        ("exif_orientation", pa.int32()),
        ("image_offset", pa.int64()),  # of the bytes in an archive's file
        ("image_length", pa.int64()),
    ]
)
"""What is known of an image before it is labelled, one row an image."""

_FAR = 1000
# Odd numbers without a pattern: three parts of a key become one, and what collides is told apart afterwards.
_MIX = tuple(np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Looks:
    """Images in the input's order, as numbers.

    Attributes:
        digest: (N, 2) uint64, the first half of the sha256.
        size: (N,) int64, equal for images of equal stored width, height and orientation.
        across, down: (N,) uint64 hashes.
        flat: (N,) bool, of one colour: such images look like each other, whatever they show.
        known: (N,) bool, the image can be decoded.
    """

    digest: Hashes
    size: IntArray
    across: Hashes
    down: Hashes
    flat: BoolArray
    known: BoolArray

    def __len__(self) -> int:
        return len(self.known)


def looks_from_arrow(table: pa.Table) -> Looks:
    """Rows of ``LOOKS`` as numbers."""
    known = np.asarray(table["across"].is_valid()) & np.asarray(table["sha256"].is_valid())
    digests = b"".join(bytes.fromhex((text or "0" * 64)[:32]) for text in table["sha256"].to_pylist())

    def column(name: str, kind: type) -> np.ndarray:
        return np.asarray(table[name].fill_null(False if kind is np.bool_ else 0)).astype(kind)

    width, height, turn = (column(name, np.int64) for name in ("width", "height", "exif_orientation"))
    return Looks(
        digest=np.frombuffer(digests, np.uint64).reshape(-1, 2),
        size=(width << 36) | (height << 8) | turn,
        across=column("across", np.uint64),
        down=column("down", np.uint64),
        flat=column("flat", np.bool_),
        known=known,
    )


def concatenate(parts: Sequence[Looks]) -> Looks:
    """One after the other."""
    return Looks(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Looks)})


def originals(looks: Looks, bits: int) -> IntArray:
    """Of each image the earlier one that shows the same picture.

    An image of the same bytes as an earlier one goes with it. So does one of the same stored size and orientation
    whose two hashes differ by at most ``bits`` each: with the nearest one, or with whom that one goes, as long as it
    is like that one too. So whoever goes with another image is like that very one, never by way of a chain. Images of
    one colour go with their own bytes alone, and what cannot be decoded with nobody.

    Args:
        looks: of all images.
        bits: of 64, 0 to ``MOST_BITS``.
    Returns:
        (N,) int64 places: of an image's original, its own where it has none. An original has none itself.
    Raises:
        ValueError: bits out of range.
    """
    if not 0 <= bits <= MOST_BITS:
        raise ValueError(f"bits={bits}: give 0 (equal hashes) to {MOST_BITS}; images that are alike differ in up to 8")
    found = np.arange(len(looks))
    known = np.flatnonzero(looks.known)
    found[known] = known[_first_of_equal(looks.digest[known, 0], looks.digest[known, 1])]
    left = known[(found[known] == known) & ~looks.flat[known]]
    size, across, down = looks.size[left], looks.across[left], looks.down[left]
    found[left] = left[_first_of_equal(size, across, down)]
    alone = found[left] == left
    left, size, across, down = left[alone], size[alone], across[alone], down[alone]
    if bits and len(left):
        found[left] = left[_settled(_nearest_earlier(size, across, down, bits), across, down, bits)]
    # Same bytes, then same hashes, then near ones: at most three steps to who is like nobody.
    for _ in range(2):
        found = found[found]
    return found


def _first_of_equal(*columns: np.ndarray) -> IntArray:
    """(N,) the first place at which all columns are as they are here."""
    count = len(columns[0])
    order = np.lexsort(columns)  # a stable sort: of equal ones places ascend
    begins = np.ones(count, np.bool_)
    if count:
        begins[1:] = np.any([c[order[1:]] != c[order[:-1]] for c in columns], axis=0)
    first = np.empty(count, np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(count), 0))]
    return first


def _nearest_earlier(size: IntArray, across: Hashes, down: Hashes, bits: int) -> IntArray:
    """(N,) the nearest earlier image of the same size within ``bits``, -1 where there is none.

    Two hashes that differ in up to T bits agree in one of T + 1 bands of bits at least. So only those are compared
    that agree in a band of either hash: all pairs of a key, neighbours first, as long as there are any.
    """
    count = len(size)
    near, least = np.full(count, -1, np.int64), np.full(count, _FAR, np.int64)
    bands = list(pairwise(np.linspace(0, 64, bits + 2).astype(int).tolist()))
    for one, other in product(bands, bands):
        key = (size.astype(np.uint64) * _MIX[0]) ^ (_band(across, one) * _MIX[1]) ^ (_band(down, other) * _MIX[2])
        order = np.argsort(key, kind="stable")
        key = key[order]
        lag, here = 1, np.flatnonzero(key[1:] == key[:-1])
        while len(here):
            _take_nearer(order[here], order[here + lag], size, across, down, bits, near, least)
            lag += 1
            here = here[here + lag < count]
            here = here[key[here] == key[here + lag]]
    return near


def _band(hashes: Hashes, band: tuple[int, int]) -> Hashes:
    low, high = band
    return (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def _take_nearer(
    earlier: IntArray,
    later: IntArray,
    size: IntArray,
    across: Hashes,
    down: Hashes,
    bits: int,
    near: IntArray,
    least: IntArray,
) -> None:
    """Note the pairs that are alike and nearer than what is noted; no place is twice in ``later``."""
    one = np.bitwise_count(across[earlier] ^ across[later]).astype(np.int64)
    two = np.bitwise_count(down[earlier] ^ down[later]).astype(np.int64)
    total = one + two
    alike = (one <= bits) & (two <= bits) & (size[earlier] == size[later])
    alike &= (total < least[later]) | ((total == least[later]) & (earlier < near[later]))
    near[later[alike]] = earlier[alike]
    least[later[alike]] = total[alike]


def _settled(near: IntArray, across: Hashes, down: Hashes, bits: int) -> IntArray:
    """(N,) with whom each one goes: with its nearest, or with whom that one goes if it is like that one too."""
    found = np.arange(len(near))
    for place in np.flatnonzero(near >= 0).tolist():
        nearest = int(near[place])
        goes = int(found[nearest])
        if goes == nearest or all(
            (int(hashes[goes]) ^ int(hashes[place])).bit_count() <= bits for hashes in (across, down)
        ):
            found[place] = goes
    return found
