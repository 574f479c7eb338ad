"""Objects as the formats draw them: gathered one by one into ``Annotations``, in pixels or in fractions of the image.

The geometry that several formats share is here too: outlines, rotated boxes, bitmaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipelines.records import Annotations, BoolArray, FloatArray, Polygons, Rle

Box = tuple[float, float, float, float]
NO_BOX: Box = (math.nan, math.nan, math.nan, math.nan)
# No category has it: the checks drop its objects as of unknown category.
UNKNOWN_CATEGORY = -1
VISIBLE = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """One object.

    Attributes:
        category_id: ``UNKNOWN_CATEGORY`` where the source names a class that nobody knows.
        box_xywh: left, top, width, height.
        annotation_id: None numbers the objects of an image from 1.
        area: None takes the polygons', else the box's.
        keypoints: (K, 3) x, y, visibility.
        mended: how the source's shape was changed to become this; a fixed phrase, or empty.
    """

    category_id: int
    box_xywh: Box
    annotation_id: int | None = None
    area: float | None = None
    iscrowd: bool = False
    polygons: Polygons | None = None
    rle: Rle | None = None
    keypoints: FloatArray | None = None
    score: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    mended: str = ""


def gather(objects: Sequence[Drawn]) -> Annotations:
    """The annotations of one image. Scores are kept where every object has one."""
    n = len(objects)
    scored = n > 0 and all(o.score is not None for o in objects)
    return Annotations(
        ids=np.array([i if o.annotation_id is None else o.annotation_id for i, o in enumerate(objects, 1)], np.int64),
        boxes_xywh=np.array([o.box_xywh for o in objects], np.float64).reshape(n, 4),
        category_ids=np.array([o.category_id for o in objects], np.int64),
        area=np.array([_area(o) for o in objects], np.float64),
        iscrowd=np.array([o.iscrowd for o in objects], np.bool_),
        polygons=tuple(o.polygons for o in objects),
        rles=tuple(o.rle for o in objects),
        keypoints=tuple(o.keypoints for o in objects),
        num_keypoints=np.array([count_visible(o.keypoints) for o in objects], np.int64),
        scores=np.array([o.score for o in objects], np.float64) if scored else None,
        attributes=tuple(o.attributes for o in objects),
    )


def mended_places(objects: Sequence[Drawn]) -> dict[str, str]:
    """``SourceItem.mended`` of these objects."""
    return {str(i): o.mended for i, o in enumerate(objects) if o.mended}


def _area(drawn: Drawn) -> float:
    if drawn.area is not None:
        return drawn.area
    if drawn.polygons:
        return sum(map(polygon_area, drawn.polygons))
    return drawn.box_xywh[2] * drawn.box_xywh[3]


def count_visible(keypoints: FloatArray | None) -> int:
    """Keypoints with a visibility above 0; -1 where there are no keypoints at all."""
    return -1 if keypoints is None else int((keypoints[:, 2] > 0).sum())


def to_pixels(annotations: Annotations, width: float, height: float) -> Annotations:
    """From fractions of the image's sides to pixels (or back, with inverse sides); masks are pixels already."""
    side = np.array([width, height], np.float64)

    def polygon(flat: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((np.array(flat).reshape(-1, 2) * side).reshape(-1).tolist())

    return replace(
        annotations,
        boxes_xywh=annotations.boxes_xywh * np.tile(side, 2),
        area=annotations.area * (width * height),
        polygons=tuple(None if p is None else tuple(map(polygon, p)) for p in annotations.polygons),
        keypoints=tuple(None if k is None else k * np.append(side, 1.0) for k in annotations.keypoints),
    )


def polygon_area(polygon: Sequence[float]) -> float:
    """Of one flat x, y, x, y, ... outline; square units."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    x, y = points[:, 0] - points[:1, 0].sum(), points[:, 1] - points[:1, 1].sum()
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def box_of_points(flat: Sequence[float]) -> Box:
    """The smallest box around x, y, x, y, ...; ``NO_BOX`` around nothing."""
    points = np.array(flat, np.float64).reshape(-1, 2)
    if not len(points):
        return NO_BOX
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return (x0, y0, x1 - x0, y1 - y0)


def rotated(box: Box, degrees: float, *, about: tuple[float, float]) -> tuple[float, ...]:
    """The four corners of a box turned clockwise (y points down) about a point, flat x, y, x, y, ..."""
    x, y, w, h = box
    corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float64)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    center = np.array(about, np.float64)
    turned = (corners - center) @ np.array([[cos, sin], [-sin, cos]]) + center
    return tuple(turned.reshape(-1).tolist())


def ellipse_polygon(
    center: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0, *, corners: int = 36
) -> tuple[float, ...]:
    """An ellipse as an outline of ``corners`` points, turned clockwise about its center."""
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    x, y = radii[0] * np.cos(angles), radii[1] * np.sin(angles)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = np.stack([center[0] + x * cos - y * sin, center[1] + x * sin + y * cos], axis=1)
    return tuple(points.reshape(-1).tolist())


def encode_mask(mask: BoolArray) -> Rle:
    """A (H, W) bitmap as a compressed RLE."""
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return Rle(size=(int(mask.shape[0]), int(mask.shape[1])), counts=found["counts"].decode())


def decode_mask(rle: Rle) -> BoolArray:
    """The (H, W) bitmap of an RLE.

    Raises:
        ValueError: the runs do not fill the size.
    """
    height, width = rle.size
    if isinstance(rle.counts, str):
        found = {"size": [height, width], "counts": rle.counts.encode()}
    else:
        if sum(rle.counts) != height * width:
            raise ValueError(f"the runs of an RLE sum to {sum(rle.counts)}, its size is {height}x{width}")
        found = coco_mask.frPyObjects({"size": [height, width], "counts": list(rle.counts)}, height, width)
    mask: BoolArray = coco_mask.decode(found).astype(np.bool_)
    return mask


def box_of_mask(mask: BoolArray) -> Box:
    """The smallest box around the pixels of a (H, W) bitmap; without area where there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return (0.0, 0.0, 0.0, 0.0)
    x, y = float(columns[0]), float(rows[0])
    return (x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y)
