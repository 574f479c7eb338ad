"""What counts: our own kernel, or hotcoco and pycocotools, the reference, from the same columns.

Both libraries get images numbered 1..I, objects numbered from 1 (pycocotools scores truth of id 0 as missed) and
categories 1..C in the label map's order, and detections in their own order, because order decides between equal scores.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from typing import Any, Literal, assert_never

import numpy as np

from pipelines.metrics.accumulating import NO_TRUTH, EvaluationArrays, accumulate
from pipelines.metrics.columns import ObjectColumns
from pipelines.metrics.counting import count_columns
from pipelines.metrics.rles import load_hotcoco
from pipelines.metrics.settings import RECALL_POINTS, MatchSettings
from pipelines.records import LabelMap

Engine = Literal["auto", "boxmill", "hotcoco", "pycocotools"]
ENGINES: tuple[Engine, ...] = ("auto", "boxmill", "hotcoco", "pycocotools")


def count(
    truth: ObjectColumns, found: ObjectColumns, label_map: LabelMap, settings: MatchSettings, *, engine: Engine
) -> EvaluationArrays:
    """Match and accumulate precision and recall.

    Raises:
        ValueError: an unknown engine, ``hotcoco`` is asked for and cannot be loaded, a library cannot count this.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if engine == "hotcoco" and load_hotcoco() is None:
        raise ValueError("engine 'hotcoco' is not installed or cannot be loaded; pip install hotcoco, or use 'auto'")
    if not truth.image_ids or not len(label_map):
        return _nothing(len(label_map), settings)
    match engine:
        case "auto" | "boxmill":
            return accumulate(count_columns(truth, found, label_map, settings), settings)
        case "hotcoco":
            evaluated = _hotcoco(truth, found, label_map, settings)
        case "pycocotools":
            evaluated = _pycocotools(truth, found, label_map, settings)
        case _:
            assert_never(engine)
    return EvaluationArrays(
        precision=np.asarray(evaluated["precision"], np.float64),
        recall=np.asarray(evaluated["recall"], np.float64),
        scores=np.asarray(evaluated["scores"], np.float64),
        engine=f"{engine} {importlib.metadata.version(engine)}",
    )


def _nothing(num_classes: int, settings: MatchSettings) -> EvaluationArrays:
    thresholds, rest = len(settings.iou_thresholds), (num_classes, len(settings.areas), len(settings.max_detections))
    return EvaluationArrays(
        precision=np.full((thresholds, len(RECALL_POINTS), *rest), NO_TRUTH),
        recall=np.full((thresholds, *rest), NO_TRUTH),
        scores=np.full((thresholds, len(RECALL_POINTS), *rest), NO_TRUTH),
        engine="none",
    )


def _hotcoco(
    truth: ObjectColumns, found: ObjectColumns, label_map: LabelMap, settings: MatchSettings
) -> dict[str, Any]:
    hotcoco = load_hotcoco()
    if settings.iou_type == "keypoints":
        dataset = hotcoco.COCO(_document(truth, label_map, settings))
        # Not load_res: it would take the boxes' areas for those of the keypoints.
        results = hotcoco.COCO(_document(found, label_map, settings))
    else:
        dataset = hotcoco.COCO.from_arrays(
            _images(truth),
            _categories(label_map),
            truth.images + 1,
            truth.labels + 1,
            truth.boxes_xywh,
            ids=np.arange(1, len(truth) + 1),
            area=truth.area,
            iscrowd=truth.iscrowd.astype(np.int64),
            segmentation=None if truth.masks is None else list(truth.masks),
        )
        rows = np.column_stack([found.images + 1, found.boxes_xywh, found.scores, found.labels + 1])
        results = dataset.load_res(
            rows.astype(np.float64), segmentation=None if found.masks is None else list(found.masks)
        )
        if found.masks is not None:
            results.update_anns(ids=np.arange(1, len(found) + 1), area=found.area)
    evaluation = hotcoco.COCOeval(dataset, results, settings.iou_type)
    params = evaluation.params
    params.iou_thrs = list(settings.iou_thresholds)
    params.area_rng = [[area.low, area.high] for area in settings.areas]
    params.area_rng_lbl = [area.name for area in settings.areas]
    params.max_dets = list(settings.max_detections)
    if settings.iou_type == "keypoints":
        params.kpt_oks_sigmas = _only_sigmas(truth, label_map, settings)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    return dict(evaluation.eval)


def _pycocotools(
    truth: ObjectColumns, found: ObjectColumns, label_map: LabelMap, settings: MatchSettings
) -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # It reports its progress by print.
    with contextlib.redirect_stdout(io.StringIO()):
        dataset, results = COCO(), COCO()
        dataset.dataset = _document(truth, label_map, settings)
        # Not loadRes: it raises on empty results, and takes the boxes' areas for those of masks.
        results.dataset = _document(found, label_map, settings)
        dataset.createIndex()
        results.createIndex()
        evaluation = COCOeval(dataset, results, settings.iou_type)
        evaluation.params.iouThrs = np.array(settings.iou_thresholds)
        evaluation.params.areaRng = [[area.low, area.high] for area in settings.areas]
        evaluation.params.areaRngLbl = [area.name for area in settings.areas]
        evaluation.params.maxDets = list(settings.max_detections)
        if settings.iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.array(_only_sigmas(truth, label_map, settings))
        evaluation.evaluate()
        evaluation.accumulate()
    return dict(evaluation.eval)


def _only_sigmas(truth: ObjectColumns, label_map: LabelMap, settings: MatchSettings) -> list[float]:
    """Both libraries know one kind of keypoints.

    Raises:
        ValueError: objects of several kinds.
    """
    assert truth.keypoints is not None
    kinds = {
        tuple(settings.sigmas_of(label_map, int(label), len(points)).tolist())
        for label, points in zip(truth.labels, truth.keypoints, strict=True)
    }
    if len(kinds) > 1:
        raise ValueError(
            "categories with other keypoints, or objects without any, are more than hotcoco and pycocotools count at "
            "once; use engine='auto'"
        )
    return list(next(iter(kinds), settings.sigmas_of(label_map, 0, 17)))


def _images(columns: ObjectColumns) -> list[dict[str, Any]]:
    # Nothing is drawn, and RLEs have sizes of their own; the keys are there because readers look for them.
    return [{"id": at + 1, "width": 0, "height": 0} for at in range(len(columns.image_ids))]


def _categories(label_map: LabelMap) -> list[dict[str, Any]]:
    return [{"id": label + 1, "name": name} for label, name in enumerate(label_map.names)]


def _document(columns: ObjectColumns, label_map: LabelMap, settings: MatchSettings) -> dict[str, Any]:
    annotations = []
    for at in range(len(columns)):
        one: dict[str, Any] = {
            "id": at + 1,
            "image_id": int(columns.images[at]) + 1,
            "category_id": int(columns.labels[at]) + 1,
            "bbox": columns.boxes_xywh[at].tolist(),
            "area": float(columns.area[at]),
            "iscrowd": int(columns.iscrowd[at]),
            "score": float(columns.scores[at]),
        }
        if columns.masks is not None:
            one["segmentation"] = columns.masks[at]
        if columns.keypoints is not None:
            one["keypoints"] = columns.keypoints[at].reshape(-1).tolist()
            # Only whether it is 0 is looked at, and that is what "ignored" says of what is no crowd.
            one["num_keypoints"] = int(not columns.ignored[at])
        annotations.append(one)
    return {"images": _images(columns), "categories": _categories(label_map), "annotations": annotations}
