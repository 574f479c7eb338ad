"""A made-up data set of COCO's validation size with detections, at rest as Parquet and as COCO's JSON documents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipelines.commits import commit_images, commit_labels
from pipelines.ledger import Ledger
from pipelines.predictions import commit_predictions, write_predictions
from pipelines.records import Annotations, ImageRecord, LabelMap, Rle
from pipelines.shard_paths import shard_stem
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.storage import Store

WIDTH, HEIGHT, CLASSES, A_SHARD = 640, 480, 80, 1_000
TRUTHS, DETECTIONS = 7.4, 100  # an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """References of the data set and the predictions, and the files that the others read."""

    dataset: str
    predictions: str
    truth_json: Path
    results_json: Path
    num_truths: int
    num_detections: int


def make_detected(folder: Path, images: int, *, masks: bool, documents: bool = True, seed: int = 0) -> Detected:
    """Truth of few classes an image; of the detections some near truth, most false, with scores of 100 steps."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    uri = str(folder / "dataset")
    store = Store.open(uri)
    label_map = LabelMap.from_json([{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)])
    shards, labels, guesses = [], [], []
    truths_json: list[dict[str, Any]] = []
    results_json: list[dict[str, Any]] = []
    num_truths = num_detections = 0
    for first in range(0, images, A_SHARD):
        records, rows = [], []
        for number in range(first, min(images, first + A_SHARD)):
            truth = _truth(rng, num_truths)
            found = _found(rng, truth)
            num_truths += len(truth)
            num_detections += len(found)
            truth, found = (_masked(one) if masks else one for one in (truth, found))
            records.append(_record(number, truth))
            rows.append(found)
            if documents:
                truths_json += _entries(truth, number + 1)
                results_json += _entries(found, number + 1)
        shard = write_image_shard(store, records)
        shards.append(shard)
        truth_rows = label_rows(records)
        labels.append(write_label_shard(store, "gt", shard.path, truth_rows))
        found_rows = [replace(row, annotations=a, status="ok") for row, a in zip(truth_rows, rows, strict=True)]
        guesses.append(write_predictions(store, "guesses", shard_stem(shard.path), found_rows))
    version = commit_images(uri, shards, plan_id="images")
    truth_version = commit_labels(
        uri, "gt", labels, plan_id="truth", label_map=label_map, images_version=version, ledger={}
    )
    predictions = commit_predictions(
        uri,
        "guesses",
        guesses,
        plan_id="guesses",
        label_map=label_map,
        images_version=version,
        ledger=Ledger(),
        provenance={},
    )
    document = {
        "images": [{"id": i + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)],
        "annotations": truths_json,
    }
    paths = folder / "instances.json", folder / "results.json"
    if documents:
        for path, content in zip(paths, (document, results_json), strict=True):
            path.write_text(json.dumps(content))
    return Detected(
        dataset=truth_version.reference,
        predictions=predictions.reference,
        truth_json=paths[0],
        results_json=paths[1],
        num_truths=num_truths,
        num_detections=num_detections,
    )


def _truth(rng: np.random.Generator, before: int) -> Annotations:
    n = int(rng.geometric(1 / TRUTHS))
    palette = rng.integers(1, CLASSES + 1, 4)
    sides = np.minimum(np.exp(rng.uniform(np.log(8), np.log(300), (n, 2))), [WIDTH - 1, HEIGHT - 1])
    corners = rng.uniform(0, 1, (n, 2)) * ([WIDTH, HEIGHT] - sides)
    made = Annotations.from_boxes(np.column_stack([corners, sides]).round(2), palette[rng.integers(0, 4, n)])
    return replace(made, ids=np.arange(before + 1, before + n + 1), iscrowd=rng.random(n) < 0.01)


def _found(rng: np.random.Generator, truth: Annotations) -> Annotations:
    source = rng.integers(0, len(truth), DETECTIONS)
    near = rng.random(DETECTIONS) < 0.4
    moved = truth.boxes_xywh[source] * (1 + rng.normal(0, 0.06, (DETECTIONS, 4)))
    false = np.column_stack([rng.uniform(0, 400, (DETECTIONS, 2)), np.exp(rng.uniform(2, 5.4, (DETECTIONS, 2)))])
    categories = np.where(
        rng.random(DETECTIONS) < 0.8, truth.category_ids[source], rng.integers(1, CLASSES + 1, DETECTIONS)
    )
    scores = np.where(near, rng.beta(4, 2, DETECTIONS), rng.beta(1.2, 6, DETECTIONS)).round(2)
    order = np.argsort(-scores, kind="stable")
    boxes = np.where(near[:, None], moved, false)
    boxes[:, :2] = np.clip(boxes[:, :2], 0, [WIDTH - 8, HEIGHT - 8])
    boxes[:, 2:] = np.minimum(boxes[:, 2:], [WIDTH, HEIGHT] - boxes[:, :2])
    return Annotations.from_boxes(boxes.round(2)[order], categories[order], scores=scores[order])


def _masked(objects: Annotations) -> Annotations:
    """Each box's octagon, as a compressed RLE: the form in which COCO's results and our predictions are."""
    rles = []
    x, y, w, h = objects.boxes_xywh.T
    across = np.array([0.3, 0.7, 1.0, 1.0, 0.7, 0.3, 0.0, 0.0])
    outlines = np.stack(
        [x[:, None] + w[:, None] * across, y[:, None] + h[:, None] * np.roll(across, 2)], axis=2
    ).reshape(len(objects), 16)
    for mask in coco_mask.frPyObjects(outlines.tolist(), HEIGHT, WIDTH) if len(objects) else []:
        rles.append(Rle(size=(HEIGHT, WIDTH), counts=mask["counts"].decode()))
    return replace(objects, rles=tuple(rles))


def _record(number: int, truth: Annotations) -> ImageRecord:
    image = number.to_bytes(4, "big")  # nobody looks at it
    return ImageRecord(
        image_id=f"{number:08d}.jpg",
        image=image,
        format="jpeg",
        width=WIDTH,
        height=HEIGHT,
        sha256=hashlib.sha256(image).hexdigest(),
        source="made up",
        split="val",
        coco_image_id=number + 1,
        annotations=truth,
    )


def _entries(objects: Annotations, image: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for at in range(len(objects)):
        one: dict[str, Any] = {"image_id": image, "category_id": int(objects.category_ids[at])}
        rle = objects.rles[at]
        if rle is not None:
            one["segmentation"] = {"size": list(rle.size), "counts": rle.counts}
        if objects.scores is None or rle is None:  # a box beside a mask would give results the box's area
            one["bbox"] = objects.boxes_xywh[at].tolist()
        if objects.scores is None:
            one |= {"id": int(objects.ids[at]), "iscrowd": int(objects.iscrowd[at]), "area": float(objects.area[at])}
        else:
            one["score"] = float(objects.scores[at])
        entries.append(one)
    return entries
