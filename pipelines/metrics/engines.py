"""The libraries that count: hotcoco, and pycocotools as its fallback and its oracle.

Both get images numbered 1..I, objects numbered from 1 (pycocotools scores truth of id 0 as missed) and categories
1..C in the label map's order, and detections in their own order, because order decides between equal scores.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np

from pipelines.metrics.columns import ObjectColumns
from pipelines.records import FloatArray

Engine = Literal["auto", "hotcoco", "pycocotools"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationArrays:
    """pycocotools's three arrays.

    Attributes:
        precision, scores: (T, R, K, A, M) float64.
        recall: (T, K, A, M) float64.
        engine: name and version of the library.
    """

    precision: FloatArray
    recall: FloatArray
    scores: FloatArray
    engine: str


def count_boxes(truth: ObjectColumns, found: ObjectColumns, *, num_classes: int, engine: Engine) -> EvaluationArrays:
    """Match boxes and accumulate precision and recall.

    Raises:
        ValueError: ``hotcoco`` is asked for and not installed.
    """
    has_hotcoco = importlib.util.find_spec("hotcoco") is not None
    if engine == "hotcoco" and not has_hotcoco:
        raise ValueError("engine 'hotcoco' is not installed; pip install hotcoco, or use engine='pycocotools'")
    if not truth.image_ids or not num_classes:
        return _nothing(num_classes)
    name: Literal["hotcoco", "pycocotools"] = "pycocotools" if engine == "pycocotools" or not has_hotcoco else "hotcoco"
    match name:
        case "hotcoco":
            evaluated = _hotcoco(truth, found, num_classes)
        case "pycocotools":
            evaluated = _pycocotools(truth, found, num_classes)
        case _:
            assert_never(name)
    return EvaluationArrays(
        precision=np.asarray(evaluated["precision"], np.float64),
        recall=np.asarray(evaluated["recall"], np.float64),
        scores=np.asarray(evaluated["scores"], np.float64),
        engine=f"{name} {importlib.metadata.version(name)}",
    )


def _nothing(num_classes: int) -> EvaluationArrays:
    return EvaluationArrays(
        precision=np.full((10, 101, num_classes, 4, 3), -1.0),
        recall=np.full((10, num_classes, 4, 3), -1.0),
        scores=np.full((10, 101, num_classes, 4, 3), -1.0),
        engine="none",
    )


def _images(truth: ObjectColumns) -> list[dict[str, Any]]:
    # Box evaluation never reads the size; the keys are there because readers look for them.
    return [{"id": number, "width": 0, "height": 0} for number in range(1, len(truth.image_ids) + 1)]


def _categories(num_classes: int) -> list[dict[str, Any]]:
    return [{"id": label + 1, "name": str(label)} for label in range(num_classes)]


def _hotcoco(truth: ObjectColumns, found: ObjectColumns, num_classes: int) -> dict[str, Any]:
    import hotcoco

    dataset = hotcoco.COCO.from_arrays(
        _images(truth),
        _categories(num_classes),
        truth.images + 1,
        truth.labels + 1,
        truth.boxes_xywh,
        ids=np.arange(1, len(truth) + 1),
        area=truth.area,
        iscrowd=truth.iscrowd.astype(np.int64),
    )
    rows = np.column_stack([found.images + 1, found.boxes_xywh, found.scores, found.labels + 1])
    evaluation = hotcoco.COCOeval(dataset, dataset.load_res(rows.astype(np.float64)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    return dict(evaluation.eval)


def _pycocotools(truth: ObjectColumns, found: ObjectColumns, num_classes: int) -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # It reports its progress by print.
    with contextlib.redirect_stdout(io.StringIO()):
        dataset, results = COCO(), COCO()
        images, categories = _images(truth), _categories(num_classes)
        dataset.dataset = {"images": images, "categories": categories, "annotations": _annotations(truth)}
        # Not loadRes: it raises on empty results.
        results.dataset = {"images": images, "categories": categories, "annotations": _annotations(found)}
        dataset.createIndex()
        results.createIndex()
        evaluation = COCOeval(dataset, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return dict(evaluation.eval)


def _annotations(columns: ObjectColumns) -> list[dict[str, Any]]:
    return [
        {
            "id": at + 1,
            "image_id": int(columns.images[at]) + 1,
            "category_id": int(columns.labels[at]) + 1,
            "bbox": columns.boxes_xywh[at].tolist(),
            "area": float(columns.area[at]),
            "iscrowd": int(columns.iscrowd[at]),
            "score": float(columns.scores[at]),
        }
        for at in range(len(columns))
    ]
