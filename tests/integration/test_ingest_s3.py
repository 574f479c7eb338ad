"""Source files and dataset on an S3 server that checks keys: the same values and digests as on a local disk."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from pipelines import open_dataset
from pipelines.exports.coco import export_coco
from pipelines.shards import read_image
from pipelines.sources import open_source
from pipelines.storage import Store
from pipelines.versions import DatasetNotFound
from tests.conftest import S3Server
from tests.making import commit_records, record
from workers.ingest import ingest


@pytest.fixture
def coco_on_s3(s3_server: S3Server, boxmill_data: Path) -> str:
    source = s3_server.uri("source/coco")
    fs = fsspec.filesystem("s3")
    for name in ("instances_train2017.json", "person_keypoints_train2017.json"):
        fs.put_file(str(boxmill_data / "coco-mini/annotations" / name), f"{source}/annotations/{name}")
    fs.put(str(boxmill_data / "coco-mini/train2017") + "/", f"{source}/train2017/", recursive=True)
    return source


def test_ingest_and_export_on_s3(s3_server: S3Server, coco_on_s3: str, boxmill_data: Path) -> None:
    options = {
        "annotations": f"{coco_on_s3}/annotations/instances_train2017.json",
        "keypoints": f"{coco_on_s3}/annotations/person_keypoints_train2017.json",
    }
    uri = s3_server.uri("datasets/coco")
    version = ingest(open_source("coco", **options), uri)
    assert (version.num_images, version.num_objects, version.found) == (80, 739, False)
    assert ingest(open_source("coco", **options), uri).found

    dataset = open_dataset(version.reference)
    first = next(dataset.records())
    assert read_image(dataset.shards[0], 0) == first.image
    assert first.image == (boxmill_data / "coco-mini/train2017" / first.image_id).read_bytes()

    exported = export_coco(version.reference, s3_server.uri("export"))
    found = json.loads(Store.open(s3_server.uri("export")).read_bytes("annotations/instances_train.json"))
    truth = json.loads((boxmill_data / "coco-mini/annotations/instances_train2017.json").read_text())
    keypoints = json.loads((boxmill_data / "coco-mini/annotations/person_keypoints_train2017.json").read_text())
    expected = {a["id"]: a for a in truth["annotations"]}
    for a in keypoints["annotations"]:
        expected[a["id"]] |= {k: a[k] for k in ("keypoints", "num_keypoints")}
    assert {a["id"]: a for a in found["annotations"]} == expected
    assert exported.num_objects == 739


def test_put_new_on_s3_has_one_winner(s3_server: S3Server) -> None:
    store = Store.open(s3_server.uri("race"))
    assert store.put_new("a.json", b"one")
    assert not store.put_new("a.json", b"two")
    # The caller's own bytes: its first answer was lost.
    assert store.put_new("a.json", b"one")
    assert store.read_bytes("a.json") == b"one"


def test_wrong_key_is_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PermissionError):
        Store.open(s3_server.uri("race")).read_bytes("a.json")
    with pytest.raises(PermissionError, match="check the keys"):
        open_dataset(s3_server.uri("race"))
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_is_not_there_is_said_so(s3_server: S3Server, tmp_path: Path) -> None:
    commit_records(s3_server.uri("shelf/shapes"), [record(1)], plan_id="p")
    with pytest.raises(DatasetNotFound, match=r"did you mean s3://.*/shelf/shapes\?"):
        open_dataset(s3_server.uri("shelf/shape"))
    with pytest.raises(DatasetNotFound, match="s3://no-such-bucket/shapes"):
        open_dataset("s3://no-such-bucket/shapes")
    with pytest.raises(ValueError, match=r"no COCO annotation file at s3://.*/gone\.json"):
        open_source("coco", annotations=s3_server.uri("gone.json"))
