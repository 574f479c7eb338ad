"""A dataset version as CVAT XML for images 1.1: ``annotations.xml`` with the images beside it in ``images/``.

Shapes are in the upright frame, which CVAT shows. Objects with scores are pre-annotations: their source is ``auto``,
the score an attribute. What came from CVAT goes back as it was, rotated boxes included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pipelines.exports.walk import ExportImage, ExportReport, Losses, count_losses, open_export, walk, write_files
from pipelines.exports.xml_text import xml_text
from pipelines.records import Annotations, Category, FloatArray, LabelMap
from pipelines.sources.drawn import Box, box_of_mask, box_of_points, decode_mask, to_pixels
from pipelines.sources.frames import stored_to_upright
from pipelines.storage import Store
from pipelines.versions import Dataset

_SAME_BOX = 1.0  # pixels
# CVAT takes attributes only that a label declares.
_SCORE = (
    "<attributes><attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
    "<default_value></default_value><values></values></attribute></attributes>"
)
_OWN = ("occluded", "source", "z_order", "group_id")


def export_cvat(
    dataset: str | Dataset, out_uri: str, splits: Collection[str] | None = None, images: bool = True
) -> ExportReport:
    """Write a dataset version for CVAT.

    An object with keypoints that span a box becomes a skeleton (CVAT's have no other box), one with an RLE a mask,
    one with polygons a polygon each, any other a box. Images that nobody has looked at have no shapes, which CVAT
    cannot tell from empty ones.

    Args:
        dataset: a reference, or an opened dataset.
        out_uri: a folder on any store.
        splits: only these; None for all. They become subsets.
        images: also write the image files.
    Raises:
        EmptyDataset: no image is in these splits.
    """
    opened = open_export(dataset)
    store = Store.open(out_uri)
    losses = Losses()
    counts = {"images": 0, "objects": 0}
    scored = opened.metadata["kind"] == "predictions"
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n',
        _meta(opened.label_map, scored),
    ]
    for number, image in enumerate(walk(opened, splits)):
        counts["images"] += 1
        if image.annotations is None:
            losses.add("image that nobody has looked at", image.image_id)
        else:
            counts["objects"] += len(image.annotations)
        parts.append(_image(number, image, opened.label_map, losses))
    parts.append("</annotations>\n")
    store.write_bytes("annotations.xml", "".join(parts).encode())
    if images:
        write_files(store, ((f"images/{image.name}", image.read) for image in walk(opened, splits)))
    return ExportReport(
        files={"annotations.xml": store.join("annotations.xml")},
        num_images=counts["images"],
        num_objects=counts["objects"],
        losses=losses.counts,
        examples=losses.examples,
        never_carried=("annotation ids", "category ids", "areas", "licenses and URLs"),
    )


def _meta(label_map: LabelMap, scored: bool) -> str:
    labels = []
    for category in label_map.categories:
        kind = "skeleton" if category.keypoints else str(category.extra.get("type", "any"))
        labels.append(_label(category.name, kind, "", _SCORE if scored else ""))
        labels += [_label(name, "points", category.name) for name in category.keypoints]
    return f"<meta><job><labels>\n{''.join(labels)}</labels></job></meta>\n"


def _label(name: str, kind: str, parent: str, attributes: str = "") -> str:
    above = f"<parent>{escape(xml_text(parent))}</parent>" if parent else ""
    about = f"<name>{escape(xml_text(name))}</name><type>{escape(xml_text(kind))}</type>"
    return f"<label>{about}{attributes}{above}</label>\n"


def _image(number: int, image: ExportImage, label_map: LabelMap, losses: Losses) -> str:
    turned = image.orientation >= 5
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    head: dict[str, Any] = {"id": number, "name": image.name, "width": width, "height": height}
    if image.split:
        head["subset"] = image.split
    found = image.annotations
    shapes: list[str] = []
    if found is not None:
        count_losses(image, losses, ("polygons", "rle", "keypoints", "attributes", "score"))
        if image.orientation != 1:
            fractions = to_pixels(found, 1 / image.width, 1 / image.height)
            found = to_pixels(stored_to_upright(fractions, image.orientation), width, height)
        labels = label_map.to_labels(found.category_ids)
        for i in range(len(found)):
            shapes += _shapes(found, i, label_map.categories[int(labels[i])], image, losses)
    tags = image.extra.get("tags")
    shapes += [_element("tag", {"label": t}) for t in (tags if isinstance(tags, list) else []) if isinstance(t, str)]
    return f"<image{_attributes(head)}>\n{''.join(shapes)}</image>\n"


def _shapes(found: Annotations, i: int, category: Category, image: ExportImage, losses: Losses) -> Iterator[str]:
    attributes = dict(found.attributes[i]) if found.attributes else {}
    common = {"label": category.name, "occluded": attributes.get("occluded", "0")}
    common |= {key: attributes[key] for key in _OWN if key in attributes}
    common = {key: int(v) if isinstance(v, bool) else v for key, v in common.items()}
    own = attributes.get("attributes")
    own = own if isinstance(own, dict) else {}
    rest = set(attributes) - {*_OWN, "attributes", "rotation", "rotated_box"}
    own = {**{key: attributes[key] for key in sorted(rest)}, **own}
    if found.scores is not None:
        common["source"] = "auto"
        own["score"] = f"{found.scores[i]:.4f}"
    children = "".join(f"<attribute name={_quoted(k)}>{escape(xml_text(str(v)))}</attribute>" for k, v in own.items())
    keypoints, rle, polygons = found.keypoints[i], found.rles[i], found.polygons[i]
    object_id = int(found.ids[i])
    hull = _hull(keypoints)
    named = keypoints is not None and len(keypoints) == len(category.keypoints) > 0
    if named and keypoints is not None and hull is not None:
        if polygons or rle is not None:
            losses.add("mask of an object with keypoints", image.image_id, object_id)
        if np.abs(np.subtract(hull, found.boxes_xywh[i])).max() > _SAME_BOX:
            losses.add("box of an object with keypoints", image.image_id, object_id)
        points = "".join(
            _element(
                "points", {"label": name, "outside": int(v == 0), "occluded": int(v == 1), "points": _points([x, y])}
            )
            for name, (x, y, v) in zip(category.keypoints, keypoints.tolist(), strict=True)
        )
        yield _element("skeleton", common, points + children)
    elif not named and keypoints is not None and hull is not None:
        yield _element("points", common | {"points": _points(keypoints[:, :2].reshape(-1).tolist())}, children)
    else:
        if keypoints is not None:
            losses.add("keypoints of an object without a skeleton", image.image_id, object_id)
        yield from _outline(found, i, common, children, attributes, image, losses)


def _outline(
    found: Annotations,
    i: int,
    common: Mapping[str, Any],
    children: str,
    attributes: Mapping[str, Any],
    image: ExportImage,
    losses: Losses,
) -> Iterator[str]:
    rle, polygons = found.rles[i], found.polygons[i]
    if rle is not None:
        mask = decode_mask(rle)
        x, y, w, h = (int(v) for v in box_of_mask(mask))
        runs = _runs(mask[y : y + h, x : x + w])
        place = {"rle": ", ".join(map(str, runs)), "left": x, "top": y, "width": w, "height": h}
        yield _element("mask", {**common, **place}, children)
    elif polygons:
        if len(polygons) > 1:
            losses.add("object of several polygons became several objects", image.image_id, int(found.ids[i]))
        for polygon in polygons:
            yield _element("polygon", {**common, "points": _points(polygon)}, children)
    else:
        sides = _box(found.boxes_xywh[i].tolist(), attributes, image.orientation)
        yield _element("box", {**common, **sides}, children)


def _hull(keypoints: FloatArray | None) -> Box | None:
    """The box that a skeleton's points span; None where CVAT could not have one: fewer than two points, or a line."""
    if keypoints is None:
        return None
    box = box_of_points(keypoints[keypoints[:, 2] > 0, :2].reshape(-1).tolist())
    return box if box[2] > 0 and box[3] > 0 else None


def _box(box_xywh: list[float], attributes: Mapping[str, Any], orientation: int) -> dict[str, Any]:
    rotated, degrees = attributes.get("rotated_box"), attributes.get("rotation")
    if isinstance(rotated, list) and len(rotated) == 4 and orientation == 1:
        x, y, w, h = rotated
        return _sides(x, y, w, h) | {"rotation": degrees}
    x, y, w, h = box_xywh
    return _sides(x, y, w, h)


def _sides(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    return {"xtl": x, "ytl": y, "xbr": x + w, "ybr": y + h}


def _runs(crop: np.ndarray) -> list[int]:
    """Runs row by row, background first."""
    flat = crop.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *lengths] if len(flat) and flat[0] else lengths


def _points(flat: Collection[float]) -> str:
    values = list(flat)
    return ";".join(f"{x!r},{y!r}" for x, y in zip(values[::2], values[1::2]))


def _element(tag: str, attributes: Mapping[str, Any], children: str = "") -> str:
    return f"<{tag}{_attributes(attributes)}>{children}</{tag}>\n"


def _attributes(values: Mapping[str, Any]) -> str:
    return "".join(f" {key}={_quoted(value)}" for key, value in values.items())


def _quoted(value: Any) -> str:
    return quoteattr(xml_text(str(value)))
