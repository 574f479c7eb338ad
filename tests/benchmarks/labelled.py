"""What ``label`` measures on: a model that finds as much as a trained one, its images, and whether tools agree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

import detectors
from detectors.batching import fit_size, make_batch, resize_image
from pipelines import open_predictions
from pipelines.records import Category, LabelMap
from workers.batches import decode_image

CLASSES = 80
SCORE_THRESHOLD = 0.05
_CANDIDATES = 200  # anchors and classes above the threshold in an image, as a trained network has them
_SPREAD = 1.5  # standard deviation of the logits
_SURE = 0.06  # detections nearer to the threshold may be on the other side of it after other rounding

Found = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]
"""Boxes (N, 4) xyxy, labels (N,), scores (N,) of an image."""


def save_model(directory: Path, samples: Sequence[Path]) -> str:
    """retinanet_lite0 at 320 with random weights, its classifier set so that post-processing has its usual work."""
    torch.manual_seed(0)
    detector = detectors.create("retinanet_lite0", num_classes=CLASSES, image_size=320).eval()
    preprocessing = detector.preprocessing
    pixels = [decode_image(path.read_bytes()) for path in samples]
    batch = make_batch(
        [resize_image(p, fit_size(p.shape[1], p.shape[2], preprocessing)) for p in pixels], preprocessing
    )
    classifier = detector.head.class_logits
    with torch.no_grad():
        logits = torch.cat([x.flatten() for x in detector.dense(batch.images).logits]) - classifier.bias[0]
        factor = _SPREAD / logits.std()
        least = logits.topk(_CANDIDATES * len(samples)).values[-1] * factor
        classifier.weight.mul_(factor)
        classifier.bias.fill_(float(np.log(SCORE_THRESHOLD / (1 - SCORE_THRESHOLD))) - least)
    categories = LabelMap(categories=tuple(Category(category_id=i, name=f"class {i}") for i in range(CLASSES)))
    detectors.save(detector, None, directory, categories=categories.to_json())
    return str(directory)


def linked(images: Path, folder: Path, count: int) -> Path:
    """The first images as a folder of their own, without copying them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(images.iterdir())[:count]:
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)
    return folder


def of_boxmill(reference: str) -> dict[str, Found]:
    found = {}
    for image_id, _, _, _, objects in open_predictions(reference).annotations():
        assert objects.scores is not None
        found[image_id] = (objects.boxes, objects.category_ids, objects.scores)
    return found


def of_bare(files: Sequence[Path]) -> dict[str, Found]:
    rows = [row for file in files for row in json.loads(file.read_text())]
    return {name: _arrays(boxes, labels, scores) for name, boxes, labels, scores in rows}


def of_ray_data(folder: Path) -> dict[str, Found]:
    rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return {row["name"]: _arrays(row["boxes"], row["labels"], row["scores"]) for row in rows}


def _arrays(boxes: object, labels: object, scores: object) -> Found:
    return np.array(boxes, float).reshape(-1, 4), np.array(labels, np.int64), np.array(scores, float)


def agreement(ours: Mapping[str, Found], theirs: Mapping[str, Found]) -> float:
    """Share of the sure detections of both that the other has too: IoU above 0.9, scores within 0.01.

    Raises:
        SystemExit: they are not of the same images.
    """
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{len(ours.keys() ^ theirs.keys())} images were labelled by one of two tools alone")
    checks = [hit for name in ours for pair in _pairs(ours[name], theirs[name]) for hit in pair]
    return sum(checks) / max(1, len(checks))


def _pairs(one: Found, other: Found) -> Iterator[list[bool]]:
    for (boxes, labels, scores), (boxes_, labels_, scores_) in ((one, other), (other, one)):
        yield [
            bool(((labels_ == label) & (np.abs(scores_ - score) < 0.01) & (_iou(box, boxes_) > 0.9)).any())
            for box, label, score in zip(boxes, labels, scores)
            if score > _SURE
        ]


def _iou(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = sides.clip(min=0).prod(1)
    area = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return both / np.maximum(area - both, 1e-9)
