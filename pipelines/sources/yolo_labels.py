"""YOLO's label lines, in fractions: ``class cx cy w h``, then maybe keypoints, or ``class x y x y x y ...``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.records import FloatArray
from pipelines.sources.drawn import VISIBLE, Box, Drawn, box_of_points

# A value far outside is no slip of a border: somebody wrote pixels.
_LOWEST, _HIGHEST = -1.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A label line that is no object: its number from 1, why, and how it begins."""

    line: int
    reason: str
    detail: str


def parse_labels(text: str, kpt_shape: tuple[int, int] | None = None) -> tuple[list[Drawn], list[BadLine]]:
    """Read one label file.

    Args:
        text: its content.
        kpt_shape: of a pose data set: number of keypoints, and 2 or 3 numbers each.
    Returns:
        Objects in fractions of the image with line numbers as ids, and the lines that are none. Empty lines are
        neither.
    """
    objects: list[Drawn] = []
    bad: list[BadLine] = []
    seen: set[tuple[float, ...]] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        found = _parse_line(line.split(), number, kpt_shape, seen)
        if isinstance(found, Drawn):
            objects.append(found)
        else:
            bad.append(BadLine(line=number, reason=found, detail=f"line {number}: {line[:200]}"))
    return objects, bad


def _parse_line(
    columns: Sequence[str], number: int, kpt_shape: tuple[int, int] | None, seen: set[tuple[float, ...]]
) -> Drawn | str:
    """The object, or why there is none."""
    try:
        values = [float(column) for column in columns]
    except ValueError:
        return "label line is not numbers"
    if not all(map(math.isfinite, values)):
        return "label line has a value that is not finite"
    class_, places = values[0], values[1:]
    if class_ != int(class_) or not 0 <= class_ < 2**31:
        return "class is not a whole number"
    keypoint_columns = kpt_shape[0] * kpt_shape[1] if kpt_shape else 0
    is_box = len(places) == 4
    is_pose = kpt_shape is not None and len(places) == 4 + keypoint_columns
    is_polygon = kpt_shape is None and len(places) >= 6 and len(places) % 2 == 0
    if not (is_box or is_pose or is_polygon):
        return "label line has a wrong number of columns"
    if is_pose and kpt_shape is not None:
        keypoints = _keypoints(places[4:], kpt_shape)
        inside = [*places[:4], *keypoints[:, :2].reshape(-1).tolist()]
    else:
        keypoints, inside = None, places
    if not all(_LOWEST <= v <= _HIGHEST for v in inside):
        return "values are not fractions of the image (0 to 1)"
    if tuple(values) in seen:
        return "label line given twice"
    seen.add(tuple(values))
    if is_polygon and not is_pose:
        return Drawn(
            category_id=int(class_), annotation_id=number, box_xywh=box_of_points(places), polygons=(tuple(places),)
        )
    return Drawn(category_id=int(class_), annotation_id=number, box_xywh=_box(places), keypoints=keypoints)


def _box(places: Sequence[float]) -> Box:
    cx, cy, w, h = places[:4]
    return (cx - w / 2, cy - h / 2, w, h)


def _keypoints(flat: Sequence[float], kpt_shape: tuple[int, int]) -> FloatArray:
    """(K, 3); with two numbers each, a keypoint at 0, 0 or left of the image is absent, as Ultralytics has it."""
    points = np.array(flat, np.float64).reshape(kpt_shape)
    if kpt_shape[1] == 3:
        return points
    there = (points > 0).any(axis=1, keepdims=True) & (points >= 0).all(axis=1, keepdims=True)
    return np.concatenate([points * there, there * float(VISIBLE)], axis=1)
