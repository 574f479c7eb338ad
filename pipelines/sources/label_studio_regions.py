"""The regions of one Label Studio annotation as objects, in fractions of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.records import Category, FloatArray, Rle
from pipelines.sources.drawn import (
    UNKNOWN_CATEGORY,
    VISIBLE,
    Box,
    Drawn,
    box_of_mask,
    box_of_points,
    ellipse_polygon,
    encode_mask,
    rotated,
)
from pipelines.sources.label_studio_brush import BadBrush, decode_brush

SHAPES = ("rectangle", "polygon", "brush", "keypoint", "ellipse")
"""Region types, with or without ``labels`` behind them."""
_GEOMETRY = frozenset({"x", "y", "width", "height", "rotation", "points", "closed", "format", "rle"}) | frozenset(
    {"radiusX", "radiusY", "labels", *(f"{shape}labels" for shape in SHAPES)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRegion:
    """A region that is no object, and why."""

    reason: str
    detail: str


def shape_of(result: Mapping[str, Any]) -> str | None:
    """The shape of a result's region; None for what is no region: choices, texts, relations."""
    kind = str(result.get("type", ""))
    return next((shape for shape in SHAPES if kind in (shape, f"{shape}labels")), None)


def labels_of(result: Mapping[str, Any], others: Mapping[str, Sequence[str]]) -> list[str]:
    """The labels of a region: its own, or those that another result gives to the same id."""
    value = result.get("value")
    value = value if isinstance(value, dict) else {}
    found = value.get(str(result.get("type", ""))) or value.get("labels") or others.get(str(result.get("id")), [])
    return [str(label) for label in found] if isinstance(found, (list, tuple)) else []


def separate_labels(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Labels that a result of its own (``type: labels``) gives to the region with its id."""
    found: dict[str, list[str]] = {}
    for result in results:
        if result.get("type") == "labels" and isinstance(result.get("value"), dict):
            found[str(result.get("id"))] = labels_of(result, {})
    return found


def parse_regions(
    results: Sequence[Mapping[str, Any]], categories: Mapping[str, Category], score: float | None = None
) -> tuple[list[Drawn], list[LostRegion]]:
    """All regions of one annotation.

    Args:
        results: its ``result``.
        categories: by label.
        score: of results without one of their own (a prediction's); None for truth.
    Returns:
        Objects and lost regions: every region is one or the other, and a keypoint goes to the rectangle or polygon
        that is its parent.
    """
    others = separate_labels(results)
    points: dict[str, list[Mapping[str, Any]]] = {}
    objects: list[Drawn] = []
    lost: list[LostRegion] = []
    parents = {str(r.get("id")) for r in results if shape_of(r) in ("rectangle", "polygon") and r.get("id") is not None}
    for result in results:
        if shape_of(result) == "keypoint" and str(result.get("parentID")) in parents:
            points.setdefault(str(result["parentID"]), []).append(result)
    for result in results:
        shape = shape_of(result)
        if shape is None or (shape == "keypoint" and str(result.get("parentID")) in parents):
            continue
        detail = f"{result.get('type')} {result.get('id')}: {result.get('value')!r:.200}"
        labels = labels_of(result, others)
        try:
            if shape == "keypoint":
                raise _Lost("keypoint without the box that it belongs to")
            category = categories.get(labels[0]) if labels else None
            drawn = _draw(shape, result, score)
            drawn = replace(
                drawn,
                category_id=category.category_id if category else UNKNOWN_CATEGORY,
                attributes={**_attributes(result), **({"labels": labels} if len(labels) != 1 or not category else {})},
            )
            own = points.get(str(result.get("id")), [])
            objects.append(replace(drawn, keypoints=_keypoints(own, others, category)) if own else drawn)
        except (_Lost, BadBrush) as error:
            lost.append(LostRegion(reason=str(error), detail=detail))
    return objects, lost


def keypoint_names(
    results: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """(label of the parent, label of the keypoint) of every keypoint that has a parent."""
    parents = {str(r.get("id")): labels_of(r, others) for r in results if shape_of(r) in ("rectangle", "polygon")}
    for result in results:
        parent = parents.get(str(result.get("parentID")))
        if shape_of(result) == "keypoint" and parent:
            yield from ((parent[0], name) for name in labels_of(result, others)[:1])


class _Lost(ValueError):
    """Why a region is no object; a fixed phrase."""


def _draw(shape: str, result: Mapping[str, Any], score: float | None) -> Drawn:
    value = result.get("value")
    if not isinstance(value, dict):
        raise _Lost("region without its numbers")
    own = result.get("score", score)
    fields: dict[str, Any] = {
        "category_id": UNKNOWN_CATEGORY,
        "score": float(own) if isinstance(own, (int, float)) and not isinstance(own, bool) else None,
    }
    match shape:
        case "rectangle":
            return _rectangle(value, _size(result), fields)
        case "polygon":
            outline = _outline(value.get("points"))
            return Drawn(box_xywh=box_of_points(outline), polygons=(outline,), **fields)
        case "ellipse":
            return _ellipse(value, _size(result), fields)
        case _:
            return _brush(value, _size(result), fields)


def _rectangle(value: Mapping[str, Any], size: tuple[int, int] | None, fields: dict[str, Any]) -> Drawn:
    x, y, w, h = (_number(value, key) / 100 for key in ("x", "y", "width", "height"))
    box: Box = (x, y, w, h)
    degrees = _number(value, "rotation", 0.0) % 360
    if not degrees:
        return Drawn(box_xywh=box, **fields)
    # The rectangle turns about its upper left corner; angles are right in pixels only.
    side_x, side_y = size or (1, 1)
    pixels = (x * side_x, y * side_y, w * side_x, h * side_y)
    hull = box_of_points(rotated(pixels, degrees, about=pixels[:2]))
    return Drawn(
        box_xywh=(hull[0] / side_x, hull[1] / side_y, hull[2] / side_x, hull[3] / side_y),
        area=w * h,
        mended="rotated box became the upright box around it",
        **fields,
    )


def _ellipse(value: Mapping[str, Any], size: tuple[int, int] | None, fields: dict[str, Any]) -> Drawn:
    x, y, rx, ry = (_number(value, key) / 100 for key in ("x", "y", "radiusX", "radiusY"))
    sides = size or (1, 1)
    flat = ellipse_polygon(
        (x * sides[0], y * sides[1]), (rx * sides[0], ry * sides[1]), _number(value, "rotation", 0.0)
    )
    outline = tuple(v / sides[i % 2] for i, v in enumerate(flat))
    return Drawn(box_xywh=box_of_points(outline), polygons=(outline,), mended="ellipse became a polygon", **fields)


def _brush(value: Mapping[str, Any], size: tuple[int, int] | None, fields: dict[str, Any]) -> Drawn:
    packed = value.get("rle")
    if size is None or value.get("format") != "rle" or not isinstance(packed, list):
        raise _Lost("brush mask without its runs or the image's size")
    mask = decode_brush(packed, *size)
    if not mask.any():
        raise _Lost("brush mask is empty")
    rle: Rle = encode_mask(mask)
    x, y, w, h = box_of_mask(mask)
    box = (x / size[0], y / size[1], w / size[0], h / size[1])
    return Drawn(box_xywh=box, area=float(mask.sum()) / (size[0] * size[1]), rle=rle, **fields)


def _keypoints(
    points: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[str]], category: Category | None
) -> FloatArray | None:
    names = category.keypoints if category else ()
    found = np.zeros((len(names), 3), np.float64)
    for point in points:
        value, label = point.get("value"), labels_of(point, others)[:1]
        if label and label[0] in names and isinstance(value, dict):
            found[names.index(label[0])] = (_number(value, "x") / 100, _number(value, "y") / 100, VISIBLE)
    return found if names else None


def _outline(points: Any) -> tuple[float, ...]:
    if not isinstance(points, list) or len(points) < 3:
        raise _Lost("polygon of fewer than three points")
    flat = [v for point in points if isinstance(point, list) and len(point) == 2 for v in point]
    if len(flat) != 2 * len(points) or not all(map(_is_number, flat)):
        raise _Lost("region without its numbers")
    return tuple(v / 100 for v in flat)


def _attributes(result: Mapping[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    kept = {k: v for k, v in value.items() if k not in _GEOMETRY} if isinstance(value, dict) else {}
    if isinstance(value, dict) and value.get("rotation"):
        kept["rotation"] = value["rotation"]
        kept["rotated_percent"] = [value.get(key) for key in ("x", "y", "width", "height")]
    region = {k: result[k] for k in ("id", "parentID", "meta") if result.get(k) is not None}
    return kept | ({"label_studio": region} if region else {})


def _size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = result.get("original_width"), result.get("original_height")
    if type(width) is int and type(height) is int and 0 < width < 2**31 and 0 < height < 2**31:
        return (width, height)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63


def _number(value: Mapping[str, Any], key: str, default: float = math.nan) -> float:
    found = value.get(key, default)
    if not _is_number(found) or not math.isfinite(found):
        raise _Lost("region without its numbers")
    return float(found)
