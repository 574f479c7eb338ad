"""A results file and an export call the same image by the same id, whatever ids the source had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.exports.coco import export_coco
from pipelines.exports.coco_ids import coco_image_ids, unique_ids
from pipelines.predictions import to_coco_results
from pipelines.shards import read_labels
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.evaluated import write_guesses
from tests.making import coco_document, coco_images, commit_records, record, write_coco
from tests.unit.pipelines.test_predictions import found_in
from workers.ingest import ingest


@pytest.fixture
def clashing(tmp_path):
    """Two splits of a COCO source that both number their images from 1, and predictions for all of them."""
    splits = {
        split: write_coco(tmp_path / split, split, coco_document(3), coco_images(3)) for split in ("train", "val")
    }
    made = ingest(open_source("coco", splits=splits), str(tmp_path / "data"))
    return open_dataset(made.reference)


def test_ids_are_given_or_counted():
    assert unique_ids({"b": 7, "a": 0}) == {"b": 7, "a": 0}
    assert unique_ids({"b": 7, "a": 7}) == {"a": 1, "b": 2}
    assert unique_ids({"b": -1, "a": 7}) == {"a": 1, "b": 2}


def test_results_and_export_agree_where_splits_clash(clashing, tmp_path):
    predictions = write_guesses(clashing, read_rows(clashing), clashing.label_map)
    exported = export_coco(clashing, str(tmp_path / "out"))
    for split in ("train", "val"):
        document = json.loads(Path(exported.files[split]).read_text())
        uri = to_coco_results(predictions, str(tmp_path / f"{split}.json"), splits=[split])["bbox"]
        results = json.loads(Path(uri).read_text())
        assert {image["id"] for image in document["images"]} == {1, 2, 3}
        assert {result["image_id"] for result in results} == {1, 2, 3}
        ids = coco_image_ids(predictions.labels, [split])
        names = {image["id"]: image["file_name"] for image in document["images"]}
        assert all(image_id.endswith(names[number]) for image_id, number in ids.items())


def test_one_results_file_for_both_is_refused(clashing, tmp_path):
    predictions = write_guesses(clashing, read_rows(clashing), clashing.label_map)
    with pytest.raises(ValueError, match=r"both have the id 1 .*one split at a time"):
        to_coco_results(predictions, str(tmp_path / "both.json"))


@pytest.mark.parametrize("other", ["abc", True, 1.5, None, {"a": 1}])
def test_an_id_that_is_no_whole_number_is_not_an_image_id(tmp_path, other: Any):
    records = [replace(record(1), extra={"id": other}), replace(record(2), extra={"id": 77})]
    version = commit_records(tmp_path / "d", records, plan_id="p")
    exported = export_coco(version.reference, str(tmp_path / "out"))
    found = json.loads(Path(exported.files["train"]).read_text())
    assert [i["id"] for i in found["images"]] == [records[0].coco_image_id, 77]


def read_rows(dataset):
    return [
        replace(row, annotations=replace(found_in(row, 2), category_ids=row.annotations.category_ids[:2]))
        for shard in dataset.shards
        for row in read_labels(shard)
    ]
