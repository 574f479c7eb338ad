from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import open_dataset, shard_writing, shards
from pipelines.shard_writing import group_rows, label_rows, write_image_shard, write_label_shard
from pipelines.shards import CorruptShard, read_image, read_row_group
from pipelines.storage import Store
from tests.making import assert_same_annotations, commit_records, encoded, record


def test_rows_come_back_with_bytes_and_annotations(tmp_path: Path) -> None:
    records = [record(i, split="train" if i < 140 else "val") for i in range(150)]
    commit_records(tmp_path, records, plan_id="p")
    dataset = open_dataset(str(tmp_path))
    found = list(dataset.records())
    assert len(found) == 150
    for one, other in zip(found, records, strict=True):
        assert one.image == other.image
        for name in ("image_id", "format", "width", "height", "sha256", "source", "split", "coco_image_id", "extra"):
            assert getattr(one, name) == getattr(other, name), name
        assert_same_annotations(one.annotations, other.annotations)


def test_row_groups_are_small_and_of_one_split(tmp_path: Path) -> None:
    records = [record(i, split="train" if i < 140 else "val") for i in range(150)]
    commit_records(tmp_path, records, plan_id="p")
    groups = open_dataset(str(tmp_path)).row_groups()
    assert [(g.row_group, g.rows, dict(g.splits)) for g in groups] == [
        (0, 128, {"train": 128}),
        (1, 12, {"train": 12}),
        (2, 10, {"val": 10}),
    ]
    assert [r.image_id for r in read_row_group(groups[2])] == [r.image_id for r in records[140:]]
    assert read_row_group(groups[2], ["train"]) == []


def test_a_row_group_ends_before_32_mb() -> None:
    big = replace(record(1), image=bytes(20 * 2**20))
    assert group_rows([big, big, record(1), big]) == [0, 1, 1, 2]


def test_settings_are_the_measured_ones(tmp_path: Path) -> None:
    file = write_image_shard(Store.open(tmp_path), [record(i) for i in range(3)])
    footer = pq.read_metadata(tmp_path / file.path)
    columns = {
        footer.row_group(0).column(i).path_in_schema: footer.row_group(0).column(i) for i in range(footer.num_columns)
    }
    image = columns["image.bytes"]
    assert image.compression == "UNCOMPRESSED"
    assert "PLAIN" in image.encodings and not image.has_dictionary_page
    assert image.statistics is None or not image.statistics.has_min_max
    assert image.has_offset_index
    assert {c.compression for name, c in columns.items() if name != "image.bytes"} == {"ZSTD"}


def test_equal_records_make_equal_files(tmp_path: Path) -> None:
    records = [record(i) for i in range(9)]
    files = []
    for name in ("one", "two"):
        store = Store.open(tmp_path / name)
        image_file = write_image_shard(store, records)
        label_file = write_label_shard(store, "gt", image_file.path, label_rows(records))
        files.append({f.path: store.read_bytes(f.path) for f in store.list_files()})
        assert label_file.path.startswith(f"labels/gt/{image_file.path.split('/')[-1].removesuffix('.parquet')}.")
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_one_image_is_one_range(tmp_path: Path) -> None:
    records = [record(i) for i in range(20)]
    # Equal beginnings, and more than one data page (1 MB) in a row group.
    records[5] = replace(records[5], image=records[4].image + b"tail")
    records[6] = replace(records[6], image=encoded(900, 900, format="BMP"))
    records = [_resigned(r) for r in records]
    commit_records(tmp_path, records, plan_id="p")
    (shard,) = open_dataset(str(tmp_path)).shards
    assert [read_image(shard, i) for i in range(20)] == [r.image for r in records]
    with pytest.raises(ValueError, match="row 20"):
        read_image(shard, 20)


def _resigned(r):
    import hashlib

    return replace(r, sha256=hashlib.sha256(r.image).hexdigest())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    commit_records(tmp_path, [record(i) for i in range(3)], plan_id="p")
    (shard,) = open_dataset(str(tmp_path)).shards
    path = tmp_path / shard.image_path
    content = bytearray(path.read_bytes())
    at = content.find(record(1).image) + 100
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"a/1\.jpg"):
        read_image(shard, 1)
    with pytest.raises(CorruptShard, match=r"a/1\.jpg"):
        list(open_dataset(str(tmp_path)).records())


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """Images, what is said of them, page headers, footer: each flip is found, or is of bytes that nobody reads."""
    commit_records(tmp_path, [record(i) for i in range(3)], plan_id="p")
    dataset = open_dataset(str(tmp_path))
    (shard,) = dataset.shards
    path = tmp_path / shard.image_path
    whole = path.read_bytes()
    expected = list(dataset.records())
    found = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        shards._footer.cache_clear()
        try:
            read = list(dataset.records())
        except CorruptShard:
            found += 1
        else:
            assert [repr(r) for r in read] == [repr(r) for r in expected], f"bit {at % 8} of byte {at}"
    path.write_bytes(whole)
    shards._footer.cache_clear()
    assert [r.image for r in dataset.records()] == [r.image for r in expected]
    images = sum(len(r.image) for r in expected)
    assert found > images / 7, "flips of images alone are more"


def test_a_shard_without_checksums_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that were written before pages had any."""
    options = shard_writing._write_options() | {"write_page_checksum": False}
    monkeypatch.setattr(shard_writing, "_write_options", lambda: options)
    records = [record(i) for i in range(3)]
    commit_records(tmp_path, records, plan_id="p")
    assert [r.image for r in open_dataset(str(tmp_path)).records()] == [r.image for r in records]


def test_ids_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_image_shard(Store.open(tmp_path), [record(1), record(1)])
