"""Scaled and recompressed copies are found, other images are not, and the search misses no pair."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipelines.near_duplicates import find_near_duplicates, hash_image, nearest_earlier
from pipelines.purging import purge_images
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.making import commit_records, record
from workers.ingest import ingest


def picture(seed: int) -> Image.Image:
    """Soft blobs, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 255, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(6))


def saved(image: Image.Image, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, **({"format": "JPEG"} | options))
    return sink.getvalue()


def images() -> dict[str, bytes]:
    found = {f"{i:02}.jpg": saved(picture(i)) for i in range(30)}
    found |= {
        "x-small.jpg": saved(picture(3).resize((160, 120))),
        "x-poor.jpg": saved(picture(7), quality=20),
        "x-other.png": saved(picture(11), format="PNG"),
        "x-flat1.png": saved(Image.new("RGB", (50, 50), "white"), format="PNG"),
        "x-flat2.png": saved(Image.new("RGB", (60, 50), "red"), format="PNG"),
    }
    return found


def test_copies_are_found_and_others_are_not(tmp_path: Path):
    for name, image in images().items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(image)
    uri = str(tmp_path / "d")
    source = open_source("archive", uri=str(tmp_path / "in"))
    version = ingest(source, uri, near_duplicates=True)
    assert version.num_images == 35 and version.near_duplicates == {"images": 3, "across_splits": 0}
    found = find_near_duplicates(version.reference)
    assert {n.image_id: n.near for n in found} == {
        "x-small.jpg": "03.jpg",
        "x-poor.jpg": "07.jpg",
        "x-other.png": "11.jpg",
    }
    assert all(n.distance <= 6 for n in found)
    assert ingest(source, uri, near_duplicates=True).near_duplicates == version.near_duplicates
    assert ingest(source, uri).near_duplicates == {}
    assert len(list(Path(uri).glob("_hashes/*"))) == 1
    purge_images(uri, ["x-small.jpg"])
    assert len(find_near_duplicates(uri)) == 2 and len(list(Path(uri).glob("_hashes/*"))) == 1


def test_splits_are_told_and_damaged_images_have_no_looks(tmp_path: Path):
    records = [record(1), record(2), replace(record(1), image_id="copy", split="val")]
    broken = replace(record(3), image=b"no image")
    import hashlib

    broken = replace(broken, sha256=hashlib.sha256(broken.image).hexdigest())
    commit_records(tmp_path, [*records, broken], plan_id="p")
    (found,) = find_near_duplicates(open_dataset(str(tmp_path)))
    assert (found.image_id, found.near, found.distance) == ("copy", "a/1.jpg", 0)
    assert (found.split, found.near_split) == ("val", "train")
    assert hash_image(b"no image") is None
    with pytest.raises(ValueError, match="give 0"):
        find_near_duplicates(str(tmp_path), threshold=30)


@pytest.mark.parametrize("threshold", [0, 1, 6, 16])
def test_the_search_equals_comparing_all(threshold: int):
    rng = np.random.default_rng(threshold)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    flips = rng.integers(0, 64, (400, 6))
    across, down = (base[rng.integers(0, 40, 400)] for _ in range(2))
    for column in range(6):
        across = across ^ (np.uint64(1) << flips[:, column].astype(np.uint64))
    down[:] = base[0]
    expected = []
    for i in range(400):
        bits = np.bitwise_count(across[:i] ^ across[i]).astype(int)
        near = np.flatnonzero(bits <= threshold)
        if len(near):
            at = near[bits[near].argmin()]
            expected.append((i, int(at), int(bits[at])))
    assert nearest_earlier(across, down, threshold) == expected
