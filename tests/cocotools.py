"""pycocotools as anybody runs it, on COCO documents, and the same documents as our annotations."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.metrics.settings import MatchSettings
from pipelines.records import Annotations, LabelMap, Rle

Document = dict[str, Any]
Results = list[dict[str, Any]]


def run_cocotools(truth: Document, results: Results, settings: MatchSettings) -> COCOeval:
    """From dictionaries, by its own loadRes where there is anything to load."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    if settings.iou_type == "segm":
        for result in results:
            result.pop("bbox", None)  # with a box it would take the box's area
    with contextlib.redirect_stdout(io.StringIO()):
        dataset, found = COCO(), COCO()
        dataset.dataset = truth
        dataset.createIndex()
        if results:
            found = dataset.loadRes(results)
        else:
            found.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": []}
            found.createIndex()
        evaluation = COCOeval(dataset, found, settings.iou_type)
        evaluation.params.iouThrs = np.array(settings.iou_thresholds)
        evaluation.params.areaRng = [[area.low, area.high] for area in settings.areas]
        evaluation.params.areaRngLbl = [area.name for area in settings.areas]
        evaluation.params.maxDets = list(settings.max_detections)
        if settings.oks_sigmas:
            (sigmas,) = settings.oks_sigmas.values()
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def name_of(image: int) -> str:
    return f"folder/{image:012d}.jpg"


def as_label_map(truth: Document) -> LabelMap:
    return LabelMap.from_json(sorted(truth["categories"], key=lambda c: c["id"]))  # pycocotools orders classes by id


def as_sizes(truth: Document) -> dict[str, tuple[int, int]]:
    return {name_of(image["id"]): (image["height"], image["width"]) for image in truth["images"]}


def as_numbers(truth: Document) -> dict[str, int]:
    return {name_of(image["id"]): image["id"] for image in truth["images"]}


def as_truths(truth: Document) -> list[tuple[str, Annotations]]:
    own: dict[int, Results] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        own[annotation["image_id"]].append(annotation)
    return [(name_of(image), to_annotations(objects)) for image, objects in sorted(own.items())]


def as_detections(results: Results) -> list[tuple[str, Annotations]]:
    own: dict[int, Results] = {}
    for result in results:
        own.setdefault(result["image_id"], []).append(result)
    return [(name_of(image), to_annotations(objects)) for image, objects in own.items()]


def to_annotations(objects: Results) -> Annotations:
    n = len(objects)
    segmentations = [o.get("segmentation") for o in objects]
    return Annotations(
        ids=np.array([o.get("id", at + 1) for at, o in enumerate(objects)], np.int64),
        boxes_xywh=np.array([o.get("bbox", [0, 0, 0, 0]) for o in objects], np.float64).reshape(n, 4),
        category_ids=np.array([o["category_id"] for o in objects], np.int64),
        area=np.array([o.get("area", np.nan) for o in objects], np.float64),
        iscrowd=np.array([bool(o.get("iscrowd", 0)) for o in objects], np.bool_),
        polygons=tuple(tuple(map(tuple, s)) if isinstance(s, list) else None for s in segmentations),
        rles=tuple(_rle(s) if isinstance(s, dict) else None for s in segmentations),
        keypoints=tuple(
            np.array(o["keypoints"], np.float64).reshape(-1, 3) if "keypoints" in o else None for o in objects
        ),
        num_keypoints=np.array([o.get("num_keypoints", -1) for o in objects], np.int64),
        scores=np.array([o["score"] for o in objects], np.float64) if n and "score" in objects[0] else None,
        attributes=({},) * n,
    )


def _rle(segmentation: dict[str, Any]) -> Rle:
    counts = segmentation["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode()
    height, width = segmentation["size"]
    return Rle(size=(height, width), counts=counts if isinstance(counts, str) else tuple(counts))


def jittered(truth: Document, seed: int, *, ties: bool = True, masks: bool = False) -> Results:
    """Truth moved a little, some of it lost or of another class, crowds found many times, and false alarms."""
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in truth["categories"]]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for a in truth["annotations"]:
        for _ in range(6 if a["iscrowd"] else int(rng.integers(0, 3))):
            x, y, w, h = a["bbox"]
            dx, dy, dw, dh = rng.normal(0, 0.12, 4)
            result: dict[str, Any] = {
                "image_id": a["image_id"],
                "category_id": a["category_id"] if rng.random() < 0.85 else int(rng.choice(ids)),
                "bbox": [float(v) for v in (x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh))],
                "score": float(rng.integers(1, 6)) / 5 if ties else float(rng.random()),
            }
            if masks:
                result["segmentation"] = _moved(a["segmentation"], sizes[a["image_id"]], dx * w, dy * h)
            if "keypoints" in a:
                points = np.array(a["keypoints"], np.float64).reshape(-1, 3)
                if not points[:, 2].any():
                    points[:, :2] = rng.uniform([x, y], [x + w, y + h], (len(points), 2))
                points[:, :2] += rng.normal(0, 0.04, (len(points), 2)) * [w, h]
                result["keypoints"] = points.reshape(-1).tolist()
            results.append(result)
    order = rng.permutation(len(results))
    return [results[at] for at in order]


def _moved(segmentation: Any, size: tuple[int, int], dx: float, dy: float) -> dict[str, Any]:
    """The mask shifted by whole pixels, as a compressed RLE."""
    rles = coco_mask.frPyObjects(segmentation, *size)
    dense = coco_mask.decode(coco_mask.merge(rles) if isinstance(rles, list) else rles)
    moved = np.roll(dense, (round(dy), round(dx)), axis=(0, 1))
    rle = coco_mask.encode(np.asfortranarray(moved))
    return {"size": rle["size"], "counts": rle["counts"].decode()}
