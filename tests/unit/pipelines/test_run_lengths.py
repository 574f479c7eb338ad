"""Run lengths of others: what pycocotools writes is sound, what it would choke on is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipelines.records import Rle
from pipelines.run_lengths import fills_its_size


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_what_pycocotools_writes_fills_its_size(height: int, width: int, share: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < share
    found = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    counts = found["counts"].decode()
    assert fills_its_size(Rle(size=(height, width), counts=counts))
    assert not fills_its_size(Rle(size=(height, width + 1), counts=counts))
    changes = np.flatnonzero(np.diff(np.concatenate([[False], pixels.ravel(order="F")]).astype(int)))
    runs = tuple(np.diff(np.concatenate([[0], changes, [height * width]])).tolist())
    assert fills_its_size(Rle(size=(height, width), counts=runs))


def test_long_runs_of_large_images_are_read() -> None:
    pixels = np.zeros((5000, 7000), np.uint8, order="F")
    pixels[1000:4000, 2000:6000] = 1
    found = coco_mask.encode(pixels)
    assert fills_its_size(Rle(size=(5000, 7000), counts=found["counts"].decode()))


@pytest.mark.parametrize(
    "counts", ["garbage!!", "", "é", "0" * 3, "o" * 40, "P" * 30 + "0", (1, 2, 3), (600, -500), ()]
)
def test_what_does_not_fill_it_is_told(counts: str | tuple[int, ...]) -> None:
    assert not fills_its_size(Rle(size=(10, 10), counts=counts))
