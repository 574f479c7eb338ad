"""COCO's JSON objects to and from our words. Nothing is lost: what has no field of its own is kept as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.records import Annotations, Category, FloatArray, LabelMap, Polygons, Rle
from pipelines.references import CategoryMismatch

_ANNOTATION_FIELDS = frozenset({"id", "image_id", "category_id", "bbox", "area", "iscrowd"})
_CATEGORY_FIELDS = frozenset({"id", "name", "supercategory", "keypoints", "skeleton"})
# No category has it: an annotation without a usable category id is dropped as of unknown category.
NO_CATEGORY = -(2**62)


def parse_categories(files: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> LabelMap:
    """Merge the categories of several files, in order of appearance.

    Args:
        files: (name of the file, its ``categories``); a later file adds categories and keypoints.
    Raises:
        CategoryMismatch: one id has two names.
        ValueError: a category without id or name, or no category at all.
    """
    merged: dict[int, Category] = {}
    name = ""
    for name, categories in files:
        for values in categories:
            category = _parse_category(values, name)
            known = merged.get(category.category_id)
            if known is None:
                merged[category.category_id] = category
            elif known.name != category.name:
                raise CategoryMismatch(
                    f"category id {known.category_id} is {known.name!r} and, in {name}, {category.name!r}; one ingest "
                    "needs one set of categories"
                )
            elif category.keypoints and not known.keypoints:
                merged[category.category_id] = category
    if not merged:
        raise ValueError(f"{name or 'the source'} has no categories; a COCO file lists them under 'categories'")
    return LabelMap(categories=tuple(merged.values()))


def _parse_category(values: Mapping[str, Any], name: str) -> Category:
    try:
        return Category(
            category_id=int(values["id"]),
            name=str(values["name"]),
            supercategory=str(values.get("supercategory") or ""),
            keypoints=tuple(values.get("keypoints") or ()),
            # COCO counts keypoints from 1.
            skeleton=tuple((int(a) - 1, int(b) - 1) for a, b in values.get("skeleton") or ()),
            extra={k: v for k, v in values.items() if k not in _CATEGORY_FIELDS},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{name}: category {values!r} needs an integer 'id' and a 'name'") from None


def odd_categories(categories: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that ``category_to_json`` would not give back: of empty keypoints, or keypoints without a skeleton.

    A supercategory that is not there is not looked for.
    """
    return [c for c in categories if category_to_json(_parse_category(c, "")) != {"supercategory": "", **c}]


def categories_to_json(label_map: LabelMap, given: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """COCO's categories.

    Args:
        label_map: the categories.
        given: what was odd in a source's file; that of a category that is still the same is written as it was.
    """
    known = {c["id"]: c for c in given}
    return [
        dict(known[c.category_id])
        if c.category_id in known and _parse_category(known[c.category_id], "") == c
        else category_to_json(c)
        for c in label_map.categories
    ]


def category_to_json(category: Category) -> dict[str, Any]:
    values: dict[str, Any] = {
        "supercategory": category.supercategory,
        "id": category.category_id,
        "name": category.name,
    }
    if category.keypoints:
        values["keypoints"] = list(category.keypoints)
        values["skeleton"] = [[a + 1, b + 1] for a, b in category.skeleton]
    return values | dict(category.extra)


def parse_annotations(objects: Sequence[Mapping[str, Any]], *, noted: Collection[str] = ()) -> Annotations:
    """The annotations of one image.

    A missing or malformed box becomes NaN and a bad category id ``NO_CATEGORY``: the checks drop them, with a reason.
    An id, area, crowd flag, segmentation or keypoints that are not COCO's are kept under ``attributes`` as they are.
    So are sound ones that are ``noted``: an export then tells who had them from who had not.
    """
    n = len(objects)
    polygons: list[Polygons | None] = []
    rles: list[Rle | None] = []
    keypoints: list[FloatArray | None] = []
    attributes: list[dict[str, Any]] = []
    for values in objects:
        other = {k: v for k, v in values.items() if k not in _ANNOTATION_FIELDS}
        outline, rle = _parse_segmentation(other)
        polygons.append(outline)
        rles.append(rle)
        keypoints.append(_parse_keypoints(other))
        other |= {k: values[k] for k, is_sound in _SOUND.items() if k in values and not is_sound(values[k])}
        other |= {k: values[k] for k in noted if k in values}
        attributes.append(other)
    return Annotations(
        ids=np.array([_integer(a.get("id"), i + 1) for i, a in enumerate(objects)], np.int64),
        boxes_xywh=np.array([_parse_box(a.get("bbox")) for a in objects], np.float64).reshape(n, 4),
        category_ids=np.array([_integer(a.get("category_id"), NO_CATEGORY) for a in objects], np.int64),
        area=np.array([_number(a.get("area")) for a in objects], np.float64),
        iscrowd=np.array([bool(a.get("iscrowd", 0)) for a in objects], np.bool_),
        polygons=tuple(polygons),
        rles=tuple(rles),
        keypoints=tuple(keypoints),
        num_keypoints=np.array([_take_count(other) for other in attributes], np.int64),
        attributes=tuple(attributes),
    )


_SOUND: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: _integer(value, NO_CATEGORY) != NO_CATEGORY,
    "area": lambda value: value is None or _is_number(value),
    "iscrowd": lambda value: value in (0, 1, None),
}


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)


def _integer(value: Any, default: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return default
    return int(value) if value == int(value) and abs(value) < 2**63 else default


def _parse_box(bbox: Any) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return [math.nan] * 4
    return [_number(v) for v in bbox]


def _parse_segmentation(other: dict[str, Any]) -> tuple[Polygons | None, Rle | None]:
    """Takes ``segmentation`` out of ``other`` where it is understood."""
    found = other.get("segmentation")
    if found is None or found == []:
        other.pop("segmentation", None)
        return None, None
    if isinstance(found, list) and all(_is_polygon(p) for p in found):
        del other["segmentation"]
        return tuple(tuple(map(float, polygon)) for polygon in found), None
    if isinstance(found, dict) and set(found) == {"size", "counts"} and _is_size(found["size"]):
        counts = found["counts"]
        if isinstance(counts, list) and all(type(c) is int and 0 <= c < 2**63 for c in counts):
            counts = tuple(counts)
        if isinstance(counts, (str, tuple)):
            del other["segmentation"]
            return None, Rle(size=(found["size"][0], found["size"][1]), counts=counts)
    return None, None


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(type(v) is int and 0 <= v < 2**31 for v in size)


def _is_polygon(values: Any) -> bool:
    return _is_numbers(values) and len(values) % 2 == 0


def _is_numbers(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    # Outlines are nearly all of a file: a look at the types alone settles most of them.
    types = set(map(type, values))
    if types <= {float} and math.isfinite(sum(values)):  # no NaN nor infinity leaves a sum finite
        return True
    return types <= {float, int} and all(map(_is_number, values))


def _parse_keypoints(other: dict[str, Any]) -> FloatArray | None:
    """Takes ``keypoints`` out of ``other`` where they are understood."""
    found = other.get("keypoints")
    if not isinstance(found, list) or len(found) % 3 or not _is_numbers(found):
        return None
    del other["keypoints"]
    return np.array(found, np.float64).reshape(-1, 3)


def _take_count(other: dict[str, Any]) -> int:
    count = other.get("num_keypoints")
    if type(count) is not int or not 0 <= count < 2**31:
        return -1
    del other["num_keypoints"]
    return count


def annotations_to_json(annotations: Annotations, image_id: int) -> list[dict[str, Any]]:
    """COCO's annotation objects of one image.

    Whole numbers among keypoints are written as integers, as COCO has them. Where the source gave no area, the
    box's is written.
    """
    objects = []
    for i in range(len(annotations)):
        box = annotations.boxes_xywh[i].tolist()
        area = float(annotations.area[i])
        values: dict[str, Any] = {
            "segmentation": _segmentation_to_json(annotations.polygons[i], annotations.rles[i]),
            "area": box[2] * box[3] if math.isnan(area) else area,
            "iscrowd": int(annotations.iscrowd[i]),
            "image_id": image_id,
            "bbox": box,
            "category_id": int(annotations.category_ids[i]),
            "id": int(annotations.ids[i]),
        }
        keypoints = annotations.keypoints[i]
        if keypoints is not None:
            values["keypoints"] = [int(v) if v.is_integer() else v for v in keypoints.reshape(-1).tolist()]
        if annotations.num_keypoints[i] >= 0:
            values["num_keypoints"] = int(annotations.num_keypoints[i])
        if annotations.scores is not None:
            values["score"] = float(annotations.scores[i])
        if annotations.attributes:
            values |= annotations.attributes[i]
        objects.append(values)
    return objects


def _segmentation_to_json(polygons: Polygons | None, rle: Rle | None) -> Any:
    if polygons is not None:
        return [list(polygon) for polygon in polygons]
    if rle is not None:
        return {"counts": rle.counts if isinstance(rle.counts, str) else list(rle.counts), "size": list(rle.size)}
    return []
