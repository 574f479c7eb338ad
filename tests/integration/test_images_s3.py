"""One image by id is one range request on S3; purges and labels work there as on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from pipelines import lookup, shards
from pipelines.maintenance import verify
from pipelines.purging import purge_images
from pipelines.relabelling import add_labels, coco_labels
from pipelines.versions import open_dataset
from tests.conftest import S3Server
from tests.making import commit_records, record


@pytest.fixture
def uri(s3_server: S3Server) -> str:
    uri = s3_server.uri("datasets/by-id")
    for shard in range(4):
        commit_records(uri, [record(i, prefix=f"s{shard}") for i in range(10)], plan_id=f"p{shard}")
    return uri


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], str]]:
    """(operation, key's folder, range) of every request that s3fs makes."""
    import s3fs

    made: list[tuple[str, list[str], str]] = []
    real = s3fs.S3FileSystem._call_s3

    async def call(self, method, *args, **options):
        made.append((method, options.get("Key", "").split("/")[2:3], options.get("Range", "")))
        return await real(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    return made


def test_one_image_is_one_range_request(uri: str, requests: list):
    open_dataset(uri).read_bytes("s3/4.jpg")
    lookup._header.cache_clear()
    shards.read_label_file.cache_clear()
    dataset = open_dataset(uri)
    requests.clear()
    assert dataset.read_bytes("s2/5.jpg") == record(5).image
    assert [(method, folder) for method, folder, _ in requests] == [
        *[("get_object", ["_lookups"])] * 3,
        ("get_object", ["images"]),
    ]
    assert all(span.startswith("bytes=") for _, _, span in requests)
    first, last = requests[-1][2].removeprefix("bytes=").split("-")
    assert int(last) - int(first) + 1 == len(record(5).image)
    dataset.read("s2/5.jpg")
    requests.clear()
    assert dataset.read("s2/6.jpg").extra == {"number": 6}
    assert [(method, folder) for method, folder, _ in requests] == [
        *[("get_object", ["_lookups"])] * 2,
        ("get_object", ["images"]),
    ]


def test_purge_and_labels_on_s3(uri: str, tmp_path: Path):
    document = {
        "images": [{"id": 1, "file_name": "s1/1.jpg"}, {"id": 2, "file_name": "s2/2.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]}],
        "categories": [{"id": 7, "name": "person"}],
    }
    (tmp_path / "more.json").write_text(json.dumps(document))
    version = add_labels(uri, coco_labels(uri, str(tmp_path / "more.json")), label_set="more")
    assert (version.num_images, version.num_objects) == (2, 1)
    before = open_dataset(uri).num_images
    purge_images(uri, ["s1/1.jpg", "s0/3.jpg"])
    assert open_dataset(uri).num_images == before - 2
    assert [r.image_id for r in open_dataset(f"{uri}@labels/more").records()] == ["s2/2.jpg"]
    assert verify(uri) == []
    names = fsspec.filesystem("s3").find(f"{uri}/images")
    assert sum("/images/part-" in name for name in names) == 4
