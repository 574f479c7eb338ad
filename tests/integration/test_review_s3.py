"""On S3 predictions are routed, exported for review and looked through as on a disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from pipelines.exports.label_studio import export_label_studio
from pipelines.maintenance import verify
from pipelines.records import Annotations
from pipelines.relabelling import add_labels
from pipelines.report.browse import write_gallery
from pipelines.reviewing import reviewed_labels
from pipelines.route_rules import RouteRules
from pipelines.routing import route
from pipelines.shard_writing import label_rows
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.conftest import S3Server
from tests.evaluated import write_guesses
from tests.making import LABEL_MAP, commit_records, record


def test_review_on_s3(s3_server: S3Server) -> None:
    uri = s3_server.uri("datasets/review")
    records = [replace(record(i), annotations=None) for i in range(12)]
    commit_records(uri, records, plan_id="p")
    rows = [
        replace(
            row,
            annotations=Annotations.from_boxes(np.array([[1.0, 2, 3, 4]]), np.array([7]), scores=np.array([i / 12])),
            status="ok",
        )
        for i, row in enumerate(label_rows(records))
    ]
    predictions = write_guesses(open_dataset(uri), rows, LABEL_MAP)
    made = route(predictions.reference, RouteRules(accept=0.75, reject=0.25))
    assert {one: version.num_images for one, version in made.sets.items()} == {"accept": 3, "review": 6, "reject": 3}
    assert route(predictions.reference, RouteRules(accept=0.75, reject=0.25)).found
    review = made.sets["review"].reference
    assert verify(review) == []

    out = Store.open(s3_server.uri("review"))
    export_label_studio(review, out.uri)
    tasks = json.loads(out.read_bytes("tasks.json"))
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": task.pop("predictions")[0]["result"]}]
    out.write_bytes("done.json", json.dumps(tasks).encode())
    version = add_labels(uri, reviewed_labels(uri, "label_studio", out.join("done.json"), sent=review))
    assert version.reference == f"{uri}@labels/gt:2" and version.num_objects == 6

    gallery = Store.open(s3_server.uri("gallery"))
    report = write_gallery(gallery.uri, predictions.labels, size=32)
    assert report.uri == gallery.join("index.html")
    names = {file.path for file in gallery.list_files()}
    assert len(names) == report.files == 12 + 5 and {"index.html", "data/index.js", "thumbs/11.jpg"} <= names
