"""A small dataset with predictions on it, made without Ray or a model, for the tests of metrics and report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.commits import commit_images, commit_labels
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.predictions import PredictionSet, commit_predictions, open_predictions, write_predictions
from pipelines.records import Annotations, ImageRecord, LabelMap
from pipelines.schema import LabelRow
from pipelines.shard_paths import shard_stem
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.sources.synthetic import SyntheticSource
from pipelines.storage import Store
from pipelines.versions import Dataset, open_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    dataset: Dataset
    predictions: PredictionSet


def synthetic_records(num_train: int, num_val: int, *, seed: int = 4) -> tuple[list[ImageRecord], LabelMap]:
    source = SyntheticSource(seed=seed, num_train=num_train, num_val=num_val)
    return [source.load(item) for item in source.scan()], source.label_map


def write_dataset(folder: Path, records: list[ImageRecord], label_map: LabelMap) -> Dataset:
    """One shard, one version, with a ledger that has something to tell."""
    uri = str(folder)
    store = Store.open(uri)
    shard = write_image_shard(store, records)
    version = commit_images(uri, [shard], plan_id="images")
    labels = write_label_shard(store, "gt", shard.path, label_rows(records))
    ledger = Ledger()
    ledger.imported("image", len(records))
    ledger.imported("annotation", sum(len(r.annotations) for r in records if r.annotations is not None))
    ledger.add(
        LedgerEntry(subject="annotation", fate="dropped", reason="box without area", image_id="x", annotation_id=1)
    )
    made = commit_labels(
        uri,
        "gt",
        [labels],
        plan_id="truth",
        label_map=label_map,
        images_version=version,
        ledger=ledger.sums(),
        provenance={"source": "synthetic"},
    )
    return open_dataset(made.reference)


def guess(truth: Annotations, rng: np.random.Generator, *, skill: float = 0.85) -> Annotations:
    """What a fair detector might find: moved boxes, some lost, some false."""
    kept = rng.random(len(truth)) < skill
    boxes = truth.boxes_xywh[kept]
    boxes = boxes + rng.normal(0, 0.05, boxes.shape) * np.tile(boxes[:, 2:], 2)
    false = rng.uniform(10, 100, (int(rng.integers(0, 4)), 4))
    categories = np.concatenate([truth.category_ids[kept], rng.choice(truth.category_ids, len(false))])
    scores = np.concatenate([rng.beta(6, 2, int(kept.sum())), rng.beta(2, 5, len(false))])
    order = np.argsort(-scores, kind="stable")
    return Annotations.from_boxes(np.concatenate([boxes, false])[order], categories[order], scores=scores[order])


def write_guesses(
    dataset: Dataset,
    rows: list[LabelRow],
    label_map: LabelMap,
    *,
    label_set: str = "guesses",
    uri: str | None = None,
) -> PredictionSet:
    """A prediction set of these rows."""
    uri = uri or dataset.uri
    store = Store.open(uri)
    file = write_predictions(store, label_set, shard_stem(dataset.shards[0].image_path), rows)
    ledger = Ledger()
    ledger.imported("image", len(rows))
    made = commit_predictions(
        uri,
        label_set,
        [file],
        plan_id=f"plan-{label_set}",
        label_map=label_map,
        images_version=0,
        ledger=ledger,
        provenance={"model": {"uri": "models/guess", "digest": "f00d" * 16}, "settings": {"score_threshold": 0.05}},
    )
    return open_predictions(made.reference)


def guessed_rows(records: list[ImageRecord], *, skill: float = 0.85, seed: int = 0) -> list[LabelRow]:
    rng = np.random.default_rng(seed)
    return [
        replace(row, annotations=guess(row.annotations, rng, skill=skill), status="ok")
        for row in label_rows(records)
        if row.annotations is not None
    ]


def make_evaluated(folder: Path, *, num_train: int = 30, num_val: int = 12) -> Evaluated:
    records, label_map = synthetic_records(num_train, num_val)
    dataset = write_dataset(folder, records, label_map)
    rows = [row for row in guessed_rows(records) if row.split == "val"]
    return Evaluated(dataset=dataset, predictions=write_guesses(dataset, rows, label_map))


HISTORY = [
    {
        "epoch": epoch,
        "loss": 1.9 * 0.72**epoch + 0.25,
        "loss_classification": 1.2 * 0.7**epoch + 0.1,
        "loss_box_regression": 0.7 * 0.76**epoch + 0.15,
        "lr": 1e-3,
        "AP": 0.7 - 0.65 * 0.7**epoch,
        "AP50": 0.93 - 0.9 * 0.62**epoch,
        "AP75": 0.78 - 0.75 * 0.7**epoch,
    }
    for epoch in range(1, 13)
]
BASELINE = {"AP": 0.0012, "AP50": 0.0041, "AP75": 0.0003, "AR_100": 0.02}
