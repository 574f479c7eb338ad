"""Object keys that mean something elsewhere: in URLs, globs, shells, HTML, file systems."""

from __future__ import annotations

import boto3
import pytest
from botocore.exceptions import ClientError

from pipelines.shards import read_image
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.hostile.case import jpeg
from workers.ingest import ingest

# Keys of a bucket, but no paths: to a file system they would be other files.
ODD_PATHS = ("up/../dots.jpg", "dot/./inside.jpg", "double//slash.jpg", "/leading-slash.jpg")
VERSIONED = "question?versionId=1.jpg"  # s3fs takes it for version "1.jpg" of another key
KEYS = [
    "plain.jpg",
    "with space.jpg",
    " leading and trailing .jpg",
    "percent%20encoded.jpg",
    "percent%.jpg",
    "plus+sign.jpg",
    "ünïcödé-日本語-🦊.jpg",
    "e\u0301-decomposed.jpg",
    "\u202eright-to-left.jpg",
    "new\nline.jpg",
    "tab\tand\rreturn.jpg",
    "quote'\"`.jpg",
    "\"'><script>alert(1)</script>.jpg",
    "glob*?[a-z].jpg",
    "question?a=1&b.jpg",
    VERSIONED,
    "hash#fragment.jpg",
    "at@labels/gt:1.jpg",
    "colon:semi;comma,.jpg",
    "back\\slash.jpg",
    "$(touch boxmill-owned)&|<>.jpg",
    "brace{0}%s.jpg",
    *ODD_PATHS,
    "deep/" * 30 + "a.jpg",
    "x" * 900 + ".jpg",
    "UPPER.JPG",
    "upper.jpg",
]


@pytest.mark.timeout(120)
def test_every_key_is_imported_or_told_of(any_s3_server):
    client = boto3.client("s3")
    images: dict[str, bytes] = {}
    for number, key in enumerate(KEYS):
        image = jpeg(number)
        try:
            client.put_object(Bucket=any_s3_server.bucket, Key=f"keys/{key}", Body=image)
        except ClientError:
            assert key in (*ODD_PATHS, "new\nline.jpg"), key  # moto's routes do not match them
            continue
        images[key] = image
    stored = {
        entry["Key"].removeprefix("keys/")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=any_s3_server.bucket, Prefix="keys/")
        for entry in page["Contents"]
    }
    assert stored == set(images)

    version = ingest(open_source("archive", uri=any_s3_server.uri("keys")), any_s3_server.uri("keys-dataset"))
    sums = version.ledger["images"]
    assert sums["seen"] == len(images)
    dataset = open_dataset(version.reference)
    found = {record.image_id: record.image for record in dataset.records()}
    assert len(found) == sums["imported"]
    # An id is the key as it is, so that it leads back to the image; bytes never come from a neighbour.
    assert {image_id: images[image_id] for image_id in found} == found
    assert set(images) - set(found) <= {*ODD_PATHS, VERSIONED}
    index = dataset.index().to_pylist()
    for entry in index:
        assert read_image(dataset.shards[entry["shard"]], entry["row"]) == images[entry["image_id"]]
