"""A dataset version as Label Studio tasks: ``tasks.json``, a labelling configuration, and the images.

Objects with scores are pre-annotations (``predictions``), truth is ``annotations``. Places are percent of the upright
picture, which Label Studio shows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from operator import itemgetter
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipelines.exports.walk import ExportImage, ExportReport, Losses, count_losses, open_export, walk, write_files
from pipelines.exports.xml_text import xml_text
from pipelines.records import Annotations, Category, LabelMap
from pipelines.sources.drawn import decode_mask, to_pixels
from pipelines.sources.frames import stored_to_upright
from pipelines.sources.label_studio_brush import encode_brush
from pipelines.storage import Store
from pipelines.versions import Dataset

LOCAL_FILES = "/data/local-files/?d=images/"


def export_label_studio(
    dataset: str | Dataset,
    out_uri: str,
    splits: Collection[str] | None = None,
    images: bool = True,
    *,
    image_prefix: str = LOCAL_FILES,
) -> ExportReport:
    """Write a dataset version for Label Studio.

    Images that a routing sent to review come in the order of their uncertainty, which is in ``data``, with the reason.

    An object with an RLE becomes a brush mask, one with polygons a polygon each, any other a rectangle; keypoints
    become regions whose parent is the rectangle.

    Args:
        dataset: a reference, or an opened dataset.
        out_uri: a folder on any store.
        splits: only these; None for all.
        images: also write the image files, below ``images/``.
        image_prefix: what comes before an image's path in ``data.image``. The default is for Label Studio's local
            storage with its document root at the export's folder.
    Raises:
        EmptyDataset: no image is in these splits.
    """
    opened = open_export(dataset)
    store = Store.open(out_uri)
    losses = Losses()
    counts = {"images": 0, "objects": 0}
    predicted = opened.metadata.get("kind") == "predictions"
    tasks = []
    for number, image in enumerate(walk(opened, splits), start=1):
        counts["images"] += 1
        counts["objects"] += 0 if image.annotations is None else len(image.annotations)
        task = _task(number, image, opened, predicted, f"{image_prefix}{quote(image.name)}", losses)
        tasks.append((-image.routed.get("uncertainty", 0.0), json.dumps(task, ensure_ascii=False)))
    tasks.sort(key=itemgetter(0))
    text = ",\n".join(task for _, task in tasks)
    store.write_bytes("tasks.json", f"[\n{text}\n]\n".encode())
    store.write_bytes("config.xml", _config(opened.label_map).encode())
    if images:
        write_files(store, ((f"images/{image.name}", image.read) for image in walk(opened, splits)))
    return ExportReport(
        files={"tasks.json": store.join("tasks.json"), "config.xml": store.join("config.xml")},
        num_images=counts["images"],
        num_objects=counts["objects"],
        losses=losses.counts,
        examples=losses.examples,
        never_carried=("annotation ids", "category ids", "areas", "licenses and URLs"),
    )


def _task(
    number: int, image: ExportImage, dataset: Dataset, predicted: bool, reference: str, losses: Losses
) -> dict[str, Any]:
    task: dict[str, Any] = {"id": number, "data": {"image": reference, "image_id": image.image_id}}
    if image.split:
        task["data"]["split"] = image.split
    task["data"] |= image.routed
    found = image.annotations
    if found is None:
        return task
    count_losses(image, losses, ("polygons", "rle", "keypoints", "score"))
    fractions = stored_to_upright(to_pixels(found, 1 / image.width, 1 / image.height), image.orientation)
    labels = dataset.label_map.to_labels(found.category_ids)
    results = [
        result
        for i in range(len(found))
        for result in _results(fractions, i, dataset.label_map.categories[int(labels[i])], image, losses)
    ]
    if predicted or found.scores is not None:
        version = str(dataset.metadata.get("provenance", {}).get("model_digest", dataset.digest))[:12]
        entry: dict[str, Any] = {"model_version": version, "result": results}
        if found.scores is not None and len(found):
            entry["score"] = float(found.scores.mean())
        task["predictions"] = [entry]
    else:
        task["annotations"] = [{"id": number, "result": results, "was_cancelled": False, "ground_truth": False}]
    return task


def _results(
    fractions: Annotations, i: int, category: Category, image: ExportImage, losses: Losses
) -> Iterator[dict[str, Any]]:
    turned = image.orientation >= 5
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    object_id = int(fractions.ids[i])

    def region(kind: str, value: dict[str, Any], name: str, label: str, **more: Any) -> dict[str, Any]:
        result = {
            "id": f"{image.coco_image_id}-{i}{name}",
            "type": f"{kind}labels",
            "from_name": kind,
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, f"{kind}labels": [label]},
            **more,
        }
        return result if fractions.scores is None else {**result, "score": float(fractions.scores[i])}

    keypoints, rle, polygons = fractions.keypoints[i], fractions.rles[i], fractions.polygons[i]
    named = keypoints is not None and len(keypoints) == len(category.keypoints) > 0
    if keypoints is not None and not named:
        losses.add("keypoints without names", image.image_id, object_id)
    if rle is not None and not named:
        packed = encode_brush(decode_mask(rle))
        yield region("brush", {"format": "rle", "rle": packed}, "", category.name)
        return
    if polygons and not named:
        if len(polygons) > 1:
            losses.add("object of several polygons became several regions", image.image_id, object_id)
        for number, polygon in enumerate(polygons):
            points = [[x * 100, y * 100] for x, y in zip(polygon[::2], polygon[1::2])]
            yield region("polygon", {"points": points, "closed": True}, f"-{number}", category.name)
        return
    if named and (polygons or rle is not None):
        losses.add("mask of an object with keypoints", image.image_id, object_id)
    x, y, w, h = (v * 100 for v in fractions.boxes_xywh[i].tolist())
    box = region("rectangle", {"x": x, "y": y, "width": w, "height": h, "rotation": 0}, "", category.name)
    yield box
    if named and keypoints is not None:
        for name, (px, py, visibility) in zip(category.keypoints, keypoints.tolist(), strict=True):
            if visibility == 1:
                losses.add("keypoint that is hidden became visible", image.image_id, object_id)
            if visibility > 0:
                place = {"x": px * 100, "y": py * 100, "width": 0.5}
                yield region("keypoint", place, f"-{name}", name, parentID=box["id"])


def _config(label_map: LabelMap) -> str:
    """The labelling interface that the tasks need."""
    names = [_quoted(name) for name in label_map.names]
    points = list(dict.fromkeys(name for c in label_map.categories for name in c.keypoints))
    controls = []
    for tag in ("RectangleLabels", "PolygonLabels", "BrushLabels"):
        labels = "".join(f"    <Label value={name}/>\n" for name in names)
        controls.append(f'  <{tag} name="{tag.removesuffix("Labels").lower()}" toName="image">\n{labels}  </{tag}>\n')
    if points:
        labels = "".join(f"    <Label value={_quoted(name)}/>\n" for name in points)
        controls.append(f'  <KeyPointLabels name="keypoint" toName="image">\n{labels}  </KeyPointLabels>\n')
    return f'<View>\n  <Image name="image" value="$image"/>\n{"".join(controls)}</View>\n'


def _quoted(text: str) -> str:
    return quoteattr(xml_text(text))
