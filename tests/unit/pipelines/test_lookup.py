"""One image by its id: few requests however many shards there are, then one range read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipelines import lookup, shards
from pipelines.revisions import remove_images
from pipelines.shards import CorruptShard
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.making import assert_same_annotations, commit_records, record

SHARDS = 12


@pytest.fixture
def uri(tmp_path: Path) -> str:
    for shard in range(SHARDS):
        commit_records(tmp_path, [record(i, prefix=f"s{shard}") for i in range(20)], plan_id=f"p{shard}")
    return str(tmp_path)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request for data, as it goes to the file system."""
    made: list[str] = []

    def watched(name: str):
        real = getattr(Store, name)

        def ask(self: Store, path: str, *rest):
            made.append(f"{name} {path.split('/')[0]}")
            return real(self, path, *rest)

        monkeypatch.setattr(Store, name, ask)

    for name in ("read_bytes", "read_range", "open_arrow", "open_read"):
        watched(name)
    return made


def forget() -> None:
    lookup._header.cache_clear()
    for cached in (shards.read_label_file, lookup._small_columns, shards._footer):
        cached.cache_clear()


def test_every_image_is_found_whole(uri: str):
    dataset = open_dataset(uri)
    for expected in dataset.records():
        found = pickle.loads(pickle.dumps(dataset)).read(expected.image_id)
        for name in expected.__slots__:
            if name != "annotations":
                assert getattr(found, name) == getattr(expected, name), name
        assert_same_annotations(found.annotations, expected.annotations)
        assert dataset.read_bytes(expected.image_id) == expected.image
    for missing in ("", "s0/20.jpg", "s99/1.jpg"):
        with pytest.raises(KeyError, match="has no image"):
            dataset.read(missing)


def test_requests_are_few_and_do_not_grow_with_the_shards(uri: str, requests: list[str]):
    open_dataset(uri).read_bytes("s3/4.jpg")  # the first reader of a version writes its lookup file
    forget()
    dataset = open_dataset(uri)
    requests.clear()
    assert dataset.read_bytes("s7/5.jpg") == record(5).image
    assert requests == ["read_range _lookups"] * 3 + ["read_range images"]
    requests.clear()
    dataset.read_bytes("s2/9.jpg")
    assert requests == ["read_range _lookups"] * 2 + ["read_range images"]
    requests.clear()
    dataset.read("s7/5.jpg")
    assert sorted(requests) == sorted(
        [*["read_range _lookups"] * 2, "read_range images", "read_bytes labels", *["open_arrow images"] * 2]
    )
    requests.clear()
    dataset.read("s7/6.jpg")  # of the same shard
    assert requests == ["read_range _lookups"] * 2 + ["read_range images"]


def test_another_version_has_another_lookup_and_a_damaged_one_is_mended(uri: str):
    dataset = open_dataset(uri)
    dataset.read_bytes("s7/5.jpg")
    version = remove_images(uri, ["s7/5.jpg"])
    with pytest.raises(KeyError):
        open_dataset(version.reference).read_bytes("s7/5.jpg")
    assert dataset.read_bytes("s7/5.jpg") == record(5).image
    (path,) = Path(uri).glob(f"_lookups/gt/{dataset.digest}.bin")
    whole = path.read_bytes()
    for damage in (whole[:100], b"", b"\xff" * len(whole)):
        path.write_bytes(damage)
        forget()
        assert dataset.read_bytes("s7/5.jpg") == record(5).image
        assert path.read_bytes() == whole
    path.unlink()
    assert dataset.read_bytes("s7/5.jpg") == record(5).image


def test_a_flipped_bit_of_the_image_is_noticed(uri: str):
    dataset = open_dataset(uri)
    victim = dataset.read("s7/5.jpg")
    for path in Path(uri).glob("images/part-*.parquet"):  # every shard has an image of these bytes
        content = bytearray(path.read_bytes())
        content[content.find(victim.image) + 30] ^= 1
        path.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"s7/5\.jpg"):
        dataset.read("s7/5.jpg")
