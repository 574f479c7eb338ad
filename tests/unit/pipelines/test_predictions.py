"""Prediction sets on disk: written, committed once, opened, trained on, and handed on as COCO results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import open_dataset, open_predictions
from pipelines.byte_ranges import MAX_GAP, MAX_REQUEST, read_stored_images, requests
from pipelines.commits import commit_images, commit_labels
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.maintenance import verify
from pipelines.predictions import (
    ArchivePlace,
    commit_predictions,
    to_coco_results,
    write_predictions,
)
from pipelines.records import Annotations, Rle
from pipelines.references import DatasetNotFound
from pipelines.schema import LabelRow
from pipelines.shard_paths import shard_stem
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.sources.synthetic import SyntheticSource
from pipelines.storage import Store

SOURCE = SyntheticSource(seed=5, num_train=6, num_val=0, size=(96, 96))
RECORDS = [SOURCE.load(item) for item in SOURCE.scan()]


@pytest.fixture
def dataset(tmp_path) -> str:
    store = Store.open(tmp_path / "scenes")
    image_file = write_image_shard(store, RECORDS)
    label_file = write_label_shard(store, "gt", image_file.path, label_rows(RECORDS))
    version = commit_images(store.uri, [image_file], plan_id="ingest")
    ledger = Ledger()
    ledger.imported("image", 6)
    return commit_labels(
        store.uri,
        "gt",
        [label_file],
        plan_id="ingest",
        label_map=SOURCE.label_map,
        images_version=version,
        ledger=ledger.sums(),
    ).reference


def found_in(record, count: int) -> Annotations:
    boxes = np.array([[i, 2.0, 10.5, 20.25] for i in range(count)], np.float64)
    ids = SOURCE.label_map.to_category_ids(np.arange(count) % len(SOURCE.label_map))
    return Annotations.from_boxes(boxes, ids, scores=np.linspace(0.9, 0.1, count))


def prediction_rows(failed: int = 4) -> list[LabelRow]:
    """Image i has i objects; one image failed."""
    return [
        LabelRow(
            image_id=record.image_id,
            row=i,
            row_group=0,
            split=record.split,
            coco_image_id=record.coco_image_id,
            width=record.width,
            height=record.height,
            annotations=None if i == failed else found_in(record, i),
            status="failed" if i == failed else "ok",
            error="decode: BadImage: cut off" if i == failed else None,
            input_sha256=record.sha256,
        )
        for i, record in enumerate(RECORDS)
    ]


def commit(dataset: str, plan_id: str = "plan", rows: list[LabelRow] | None = None, model: str = "abc"):
    opened = open_dataset(dataset)
    store, rows = Store.open(opened.uri), rows or prediction_rows()
    stem = shard_stem(opened.shards[0].image_path)
    # Two tasks of one image shard: the reader takes any number of label files for it.
    files = [write_predictions(store, "pred-x", stem, part) for part in (rows[:3], rows[3:]) if part]
    ledger = Ledger()
    ledger.imported("image", 5)
    ledger.add(LedgerEntry(subject="image", fate="quarantined", reason="decode", image_id=RECORDS[4].image_id))
    ledger.imported("annotation", sum(f.num_objects for f in files))
    return commit_predictions(
        opened.uri,
        "pred-x",
        files,
        plan_id=plan_id,
        label_map=SOURCE.label_map,
        images_version=opened.metadata["images_version"],
        ledger=ledger,
        provenance={"model": {"digest": model}},
    )


def test_what_was_predicted_is_read_back(dataset):
    version = commit(dataset)
    predictions = open_predictions(version.reference)
    assert (predictions.num_images, predictions.num_objects) == (6, 0 + 1 + 2 + 3 + 5)
    assert predictions.status() == {"ok": 5, "failed": 1}
    assert list(predictions.errors()) == [(RECORDS[4].image_id, "decode: BadImage: cut off")]
    assert predictions.provenance == {"model": {"digest": "abc"}}
    assert predictions.label_map.digest == SOURCE.label_map.digest
    found = {image_id: annotations for image_id, _, _, _, annotations in predictions.annotations()}
    assert set(found) == {r.image_id for i, r in enumerate(RECORDS) if i != 4}
    for i in (0, 1, 2, 3, 5):
        ours, expected = found[RECORDS[i].image_id], found_in(RECORDS[i], i)
        assert ours.scores is not None and ours.scores.tolist() == expected.scores.tolist()
        assert ours.boxes_xywh.tolist() == expected.boxes_xywh.tolist()
        assert ours.category_ids.tolist() == expected.category_ids.tolist()
    assert {r.image_id: r.image for r in predictions.records()} == {
        r.image_id: r.image for i, r in enumerate(RECORDS) if i != 4
    }


def test_one_plan_is_committed_once(dataset):
    first, second = commit(dataset), commit(dataset)
    assert (first.found, second.found) == (False, True)
    assert first.reference == second.reference and first.digest == second.digest
    assert open_predictions(first.reference).num_images == 6


def test_predictions_of_another_model_are_not_added_to_a_set(dataset):
    first, second, third = prediction_rows()[:2], prediction_rows()[2:5], prediction_rows()[5:]
    commit(dataset, "first", first)
    with pytest.raises(ValueError, match=r"@labels/pred-x:1 .*digest abc.*digest other.*--out"):
        commit(dataset, "second", second, model="other")
    assert commit(dataset, "third", third).num_images == 3


def test_a_prediction_set_is_a_dataset(dataset):
    opened = open_dataset(commit(dataset).reference)
    assert {r.image_id for r in opened.records()} >= {r.image_id for i, r in enumerate(RECORDS) if i != 4}
    assert opened.index().num_rows == 6


def test_coco_results_are_the_predictions(dataset, tmp_path):
    predictions = open_predictions(commit(dataset).reference)
    uris = to_coco_results(predictions, str(tmp_path / "sub" / "results.json"))
    results = json.loads((tmp_path / "sub" / "results.json").read_text())
    assert uris == {"bbox": str(tmp_path / "sub" / "results.json")}
    expected = [
        {"image_id": coco_id, "category_id": int(c), "bbox": box.tolist(), "score": float(s)}
        for _, coco_id, _, _, a in predictions.annotations()
        for box, c, s in zip(a.boxes_xywh, a.category_ids, a.scores)
    ]
    assert results == expected and len(results) == 11
    to_coco_results(predictions, str(tmp_path / "none.json"), splits=["val"])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_masks_and_keypoints_have_results_files_of_their_own(dataset, tmp_path):
    """As ``loadRes`` wants them: with a box beside it, a mask would count as of the box's size."""
    rows = prediction_rows()
    number = next(i for i, row in enumerate(rows) if row.annotations is not None and len(row.annotations) > 1)
    found = rows[number].annotations
    rest = (None,) * (len(found) - 1)
    rle, keypoints = Rle(size=(5, 6), counts="abc"), np.array([[1.0, 2.0, 2.0], [3.0, 4.0, 2.0]])
    rows[number] = replace(rows[number], annotations=replace(found, rles=(rle, *rest), keypoints=(*rest, keypoints)))
    predictions = open_predictions(commit(dataset, rows=rows).reference)
    written = to_coco_results(predictions, str(tmp_path / "results.json"))
    assert {kind: Path(uri).name for kind, uri in written.items()} == {
        "bbox": "results.json",
        "segm": "results.segm.json",
        "keypoints": "results.keypoints.json",
    }
    (mask,), (pose,) = (json.loads(Path(written[kind]).read_text()) for kind in ("segm", "keypoints"))
    image_id, first, last = rows[number].coco_image_id, 0, len(found) - 1
    assert mask == {
        "image_id": image_id,
        "category_id": int(found.category_ids[first]),
        "segmentation": {"size": [5, 6], "counts": "abc"},
        "score": float(found.scores[first]),
    }
    assert pose == {
        "image_id": image_id,
        "category_id": int(found.category_ids[last]),
        "keypoints": [1.0, 2.0, 2.0, 3.0, 4.0, 2.0],
        "score": float(found.scores[last]),
    }


def test_equal_rows_make_equal_files(tmp_path):
    store, rows = Store.open(tmp_path), prediction_rows()
    places = [ArchivePlace(source="a.tar", member=r.image_id, offset=1, length=2) for r in rows]
    first = write_predictions(store, "pred-x", "archive-1", rows, places)
    again = write_predictions(store, "pred-x", "archive-1", rows, places)
    assert first == again
    assert write_predictions(store, "pred-x", "archive-1", rows[1:], places[1:]).path != first.path


def test_an_archives_predictions_verify_by_themselves(tmp_path):
    store, rows = Store.open(tmp_path), prediction_rows()
    places = [ArchivePlace(source="a.tar", member=r.image_id, offset=1, length=2) for r in rows]
    file = write_predictions(store, "pred-x", "archive-1", rows, places)
    ledger = Ledger()
    ledger.imported("image", len(rows))
    made = commit_predictions(
        store.uri,
        "pred-x",
        [file],
        plan_id="plan",
        label_map=SOURCE.label_map,
        images_version=None,
        ledger=ledger,
        provenance={},
    )
    assert not open_dataset(made.reference).has_images
    assert verify(made.reference) == []
    (tmp_path / file.path).write_bytes(b"other bytes")
    assert [problem.path for problem in verify(made.reference)] == [file.path]


def test_errors_name_the_way_out(dataset):
    uri = dataset.split("@")[0]
    with pytest.raises(ValueError, match="holds truth, not predictions"):
        open_predictions(dataset)
    with pytest.raises(DatasetNotFound):
        open_predictions(f"{uri}@labels/pred-none")
    commit(dataset)
    with pytest.raises(ValueError, match=r"several label sets \(gt, pred-x\)"):
        open_predictions(uri)


def test_stored_images_by_row(dataset):
    shard = open_dataset(dataset).shards[0]
    for rows in ([0], [1, 2, 5], list(range(6)), []):
        found = read_stored_images(Store.open(shard.uri), shard.image_path, rows)
        assert [f.image for f in found] == [RECORDS[i].image for i in rows]
        assert [f.sha256 for f in found] == [RECORDS[i].sha256 for i in rows]


def test_neighbouring_ranges_share_a_request():
    def cut(*ranges: tuple[int, int]):
        offsets, lengths = np.array(ranges, np.int64).reshape(-1, 2).T
        return requests(offsets, lengths)

    assert cut() == []
    assert cut((0, 10), (10, 10), (25, 10)) == [(0, 3)]
    assert cut((0, 10), (10 + MAX_GAP + 1, 10)) == [(0, 1), (1, 2)]
    assert cut((0, MAX_REQUEST), (MAX_REQUEST, 10), (MAX_REQUEST + 10, 10)) == [(0, 1), (1, 3)]
