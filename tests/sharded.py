"""A dataset of several shards with predictions, for the tests of what is known by shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.commits import commit_images, commit_labels
from pipelines.ledger import Ledger
from pipelines.predictions import PredictionSet, commit_predictions, open_predictions, write_predictions
from pipelines.records import ImageRecord
from pipelines.shard_paths import shard_stem
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.evaluated import guessed_rows, synthetic_records

SHARDS = 4


class Sets:
    """Shards whose images interleave by COCO id; predictions with tied scores, written anew for some shards."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self.store = Store.open(self.uri)
        records, self.label_map = synthetic_records(0, 20)
        records = [replace(r, coco_image_id=(at * 7) % 20 + 1) for at, r in enumerate(records)]
        self.parts = [records[at::SHARDS] for at in range(SHARDS)]
        self.shards = [write_image_shard(self.store, part) for part in self.parts]
        images = commit_images(self.uri, self.shards, plan_id="images")
        labels = [
            write_label_shard(self.store, "gt", shard.path, label_rows(part))
            for shard, part in zip(self.shards, self.parts, strict=True)
        ]
        made = commit_labels(
            self.uri, "gt", labels, plan_id="truth", label_map=self.label_map, images_version=images, ledger={}
        )
        self.dataset = open_dataset(made.reference)

    def predict(self, name: str, seeds: list[int]) -> PredictionSet:
        files = [
            write_predictions(self.store, name, shard_stem(shard.path), self._rows(part, seed))
            for shard, part, seed in zip(self.shards, self.parts, seeds, strict=True)
        ]
        made = commit_predictions(
            *(self.uri, name, files),
            plan_id=name,
            label_map=self.label_map,
            images_version=0,
            ledger=Ledger(),
            provenance={},
        )
        return open_predictions(made.reference)

    def _rows(self, part: list[ImageRecord], seed: int) -> list[Any]:
        rows = []
        for row in guessed_rows(part, seed=seed):
            assert row.annotations is not None and row.annotations.scores is not None
            rows.append(replace(row, annotations=replace(row.annotations, scores=row.annotations.scores.round(1))))
        return rows
