"""The shapes of CVAT's XML: boxes, polygons, ellipses, masks, points and skeletons, each as one object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from pipelines.records import Category
from pipelines.sources.drawn import (
    VISIBLE,
    Box,
    Drawn,
    box_of_points,
    ellipse_polygon,
    encode_mask,
    rotated,
)

SHAPES = ("box", "polygon", "ellipse", "mask", "points", "skeleton", "polyline", "cuboid")
_GEOMETRY = frozenset(
    {"label", "points", "rotation", "rle", "left", "top", "width", "height", "cx", "cy", "rx", "ry"}
    | {"xtl", "ytl", "xbr", "ybr"}
)
_MAX_PIXELS = 2**27


class NoObject(ValueError):
    """A shape that cannot be one of our objects; the message is a fixed phrase."""


def parse_shape(shape: Element, number: int, size: tuple[int, int], categories: Mapping[str, Category]) -> Drawn:
    """One shape.

    Args:
        shape: an element of ``SHAPES``.
        number: the object's id: its place among the shapes of the image, from 1.
        size: width and height of the image, pixels.
        categories: by label.
    Raises:
        NoObject: with the reason.
    """
    category = categories.get(shape.get("label", ""))
    if category is None:
        raise NoObject("unknown category")
    fields: dict[str, Any] = {
        "category_id": category.category_id,
        "annotation_id": number,
        "attributes": _attributes(shape),
    }
    match shape.tag:
        case "box":
            return _box(shape, fields)
        case "polygon":
            points = _points(shape)
            if len(points) < 6:
                raise NoObject("polygon of fewer than three points")
            return Drawn(box_xywh=box_of_points(points), polygons=(points,), **fields)
        case "ellipse":
            center, radii = (_number(shape, "cx"), _number(shape, "cy")), (_number(shape, "rx"), _number(shape, "ry"))
            outline = ellipse_polygon(center, radii, _rotation(shape))
            return Drawn(
                box_xywh=box_of_points(outline), polygons=(outline,), mended="ellipse became a polygon", **fields
            )
        case "mask":
            return _mask(shape, size, fields)
        case "points":
            points = _points(shape)
            keypoints = np.array([[x, y, VISIBLE] for x, y in zip(points[::2], points[1::2])], np.float64)
            box = box_of_points(points)
            return Drawn(box_xywh=box, keypoints=keypoints, mended="points got the box around them", **fields)
        case "skeleton":
            return _skeleton(shape, category, fields)
        case _:
            raise NoObject(f"a {shape.tag} is not an object with a box")


def _box(shape: Element, fields: dict[str, Any]) -> Drawn:
    x0, y0, x1, y1 = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    box: Box = (x0, y0, x1 - x0, y1 - y0)
    degrees = _rotation(shape)
    if not degrees:
        return Drawn(box_xywh=box, **fields)
    outline = rotated(box, degrees, about=((x0 + x1) / 2, (y0 + y1) / 2))
    attributes = {**fields["attributes"], "rotation": degrees, "rotated_box": list(box)}
    return Drawn(
        box_xywh=box_of_points(outline),
        area=box[2] * box[3],
        mended="rotated box became the upright box around it",
        **{**fields, "attributes": attributes},
    )


def _mask(shape: Element, size: tuple[int, int], fields: dict[str, Any]) -> Drawn:
    """CVAT's runs go row by row inside the mask's box and begin with background."""
    width, height = size
    left, top, w, h = (_whole(shape, key) for key in ("left", "top", "width", "height"))
    runs = _numbers(shape.get("rle", ""))
    inside = min(left, top) >= 0 and min(w, h) > 0 and left + w <= width and top + h <= height
    whole = all(run == int(run) and run >= 0 for run in runs)
    if not inside or not whole or sum(runs) != w * h or width * height > _MAX_PIXELS:
        raise NoObject("mask does not fit its box or the image")
    values = np.arange(len(runs)) % 2 == 1
    crop = np.repeat(values, np.array(runs, np.int64)).reshape(h, w)
    if not crop.any():
        raise NoObject("mask is empty")
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + h, left : left + w] = crop
    box = (float(left), float(top), float(w), float(h))
    return Drawn(box_xywh=box, area=float(crop.sum()), rle=encode_mask(mask), **fields)


def _skeleton(shape: Element, category: Category, fields: dict[str, Any]) -> Drawn:
    names = category.keypoints
    keypoints = np.zeros((len(names), 3), np.float64)
    for point in shape.iterfind("points"):
        if point.get("label") not in names or point.get("outside") == "1":
            continue
        x, y = _points(point)[:2]
        visibility = 1 if point.get("occluded") == "1" else VISIBLE
        keypoints[names.index(str(point.get("label")))] = (x, y, visibility)
    there = keypoints[:, 2] > 0
    if not there.any():
        raise NoObject("skeleton without a point")
    return Drawn(box_xywh=box_of_points(keypoints[there, :2].reshape(-1).tolist()), keypoints=keypoints, **fields)


def _attributes(shape: Element) -> dict[str, Any]:
    """CVAT's own flags as they are written, and the user's attributes under ``attributes``."""
    found: dict[str, Any] = {key: value for key, value in shape.items() if key not in _GEOMETRY}
    own = {a.get("name", ""): a.text or "" for a in shape.iterfind("attribute")}
    return found | ({"attributes": own} if own else {})


def _number(shape: Element, key: str) -> float:
    try:
        value = float(shape.get(key, "nan"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise NoObject("shape without its numbers")
    return value


def _whole(shape: Element, key: str) -> int:
    value = _number(shape, key)
    if value != int(value):
        raise NoObject("shape without its numbers")
    return int(value)


def _rotation(shape: Element) -> float:
    return _number(shape, "rotation") % 360 if shape.get("rotation") else 0.0


def _numbers(text: str) -> list[float]:
    try:
        values = [float(v) for v in text.replace(";", ",").split(",")]
    except ValueError:
        raise NoObject("shape without its numbers") from None
    if not all(map(math.isfinite, values)):
        raise NoObject("shape without its numbers")
    return values


def _points(shape: Element) -> tuple[float, ...]:
    values = _numbers(shape.get("points", ""))
    if len(values) % 2:
        raise NoObject("shape without its numbers")
    return tuple(values)
