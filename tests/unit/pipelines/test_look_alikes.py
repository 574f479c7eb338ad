"""Who shows the same picture as whom: as comparing all pairs finds it, and never by way of a chain."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from pipelines.look_alikes import LOOKS, MOST_BITS, Looks, concatenate, looks_from_arrow, originals


def row(sha: object = None, across: int | None = 0, down: int | None = 0, **changes) -> dict:
    digest = hashlib.sha256(repr(sha).encode()).hexdigest()
    facts = {"sha256": digest, "across": across, "down": down, "flat": False, "width": 40, "height": 30}
    return facts | {"format": "jpeg", "exif_orientation": 1} | changes


def looks(*rows: dict) -> Looks:
    numbered = [
        {**r, "sha256": row(i)["sha256"]} if r.get("sha256") == row()["sha256"] else r for i, r in enumerate(rows)
    ]
    return looks_from_arrow(pa.Table.from_pylist(numbered, schema=LOOKS))


def test_the_first_of_equal_bytes_or_hashes_goes_with_nobody_and_the_others_with_it():
    found = looks(row("a", 1 << 60), row("b", 0), row("a", 1 << 60), row("c", 0), row("b", 0))
    assert originals(found, 0).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    "other",
    [{"width": 41}, {"height": 31}, {"exif_orientation": 6}, {"flat": True}, {"across": 0b1111111}],
    ids=lambda change: next(iter(change)),
)
def test_only_images_of_one_size_and_orientation_that_are_not_flat_go_together(other):
    assert originals(looks(row(), row()), 6).tolist() == [0, 0]
    assert originals(looks(row(), row(**other)), 6).tolist() == [0, 1]


def test_flat_images_of_the_same_bytes_go_together_and_unknown_ones_never():
    flat = row("white", flat=True)
    assert originals(looks(flat, flat, row("red", flat=True)), 6).tolist() == [0, 0, 2]
    unreadable = {}
    undecodable = row("broken", None, None)
    assert originals(looks(unreadable, undecodable, undecodable, unreadable), 6).tolist() == [0, 1, 2, 3]


def test_nobody_goes_with_another_by_way_of_a_chain():
    # Each two neighbours differ in 4 bits, so that the third differs from the first in 8.
    chain = [row(across=0), row(across=0b1111), row(across=0b11111111), row(across=0b111111111111)]
    assert originals(looks(*chain), 6).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("bits", [0, 1, 3, 6, MOST_BITS])
def test_random_hashes_as_all_pairs_compared(bits):
    rng = np.random.default_rng(bits)
    count = 300
    hashes = rng.integers(0, 2**63, (40, 2), dtype=np.uint64)[rng.integers(0, 40, count)]
    for _ in range(9):  # some bits of each are turned over
        hashes ^= np.where(
            rng.random((count, 2)) < 0.5, np.uint64(1) << rng.integers(0, 64, (count, 2), dtype=np.uint64), 0
        ).astype(np.uint64)
    size = rng.integers(0, 2, count)
    found = originals(
        Looks(
            digest=rng.integers(0, 2**63, (count, 2), dtype=np.uint64),
            size=size,
            across=hashes[:, 0],
            down=hashes[:, 1],
            flat=np.zeros(count, np.bool_),
            known=np.ones(count, np.bool_),
        ),
        bits,
    )
    assert found.tolist() == slowly(size, hashes, bits)
    if bits >= 6:
        assert (found != np.arange(count)).sum() > 20


def slowly(size: np.ndarray, hashes: np.ndarray, bits: int) -> list[int]:
    def apart(one: int, other: int) -> int | None:
        across, down = ((int(a) ^ int(b)).bit_count() for a, b in zip(hashes[one], hashes[other]))
        return across + down if size[one] == size[other] and max(across, down) <= bits else None

    found: list[int] = []
    for later in range(len(size)):
        near = min(((d, earlier) for earlier in range(later) if (d := apart(earlier, later)) is not None), default=None)
        goes = later if near is None else found[near[1]]
        found.append(goes if apart(goes, later) is not None else later)
    return found


def test_parts_are_put_together_in_order():
    one, other = looks(row("a"), row("b", 1 << 60)), looks(row("b", 1 << 60))
    assert originals(concatenate([one, other]), 0).tolist() == [0, 1, 1]


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="bits=11"):
        originals(looks(row()), 11)
