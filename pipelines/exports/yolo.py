"""A dataset version as a YOLO data set: ``data.yaml``, ``images/<split>/...`` and ``labels/<split>/...``.

Labels are fractions of the upright picture, as YOLO trainers see it. Numbers have ten significant digits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from copy import copy
from typing import Any, Literal, get_args

import numpy as np
import yaml

from pipelines.exports.names import split_names
from pipelines.exports.outlines import joined, outlines
from pipelines.exports.walk import (
    ExportImage,
    ExportReport,
    Losses,
    choose_splits,
    count_losses,
    open_export,
    walk,
    write_files,
)
from pipelines.records import Annotations, Category, FloatArray, LabelMap
from pipelines.sources.drawn import decode_mask, to_pixels
from pipelines.sources.frames import stored_to_upright
from pipelines.storage import Store
from pipelines.versions import Dataset

Task = Literal["detect", "segment", "pose"]
Crowd = Literal["drop", "keep"]
_CARRIES: dict[Task, tuple[str, ...]] = {
    "detect": (),
    "segment": ("polygons", "rle"),
    "pose": ("keypoints",),
}
# Words of data.yaml, and the folders that trainers put in each other's place: no split is called so.
_RESERVED = ("path", "names", "nc", "kpt_shape", "flip_idx", "kpt_names", "channels", "download", "images", "labels")


def export_yolo(
    dataset: str | Dataset,
    out_uri: str,
    splits: Collection[str] | None = None,
    images: bool = True,
    *,
    task: Task = "detect",
    crowd: Crowd = "drop",
) -> ExportReport:
    """Write a dataset version for YOLO trainers.

    Images that nobody has looked at are left out: YOLO would take them for empty ones. Class numbers are the labels
    0..C-1 of the label map.

    Args:
        dataset: a reference, or an opened dataset.
        out_uri: a folder on any store.
        splits: only these; None for all.
        images: also write the image files.
        task: ``segment`` writes outlines (of a mask its parts, of a box its corners), ``pose`` keypoints.
        crowd: ``keep`` writes crowds as objects.
    Raises:
        EmptyDataset: no image is in these splits.
        ValueError: an unknown task, or for ``pose`` categories with different numbers of keypoints.
    """
    if task not in get_args(Task) or crowd not in get_args(Crowd):
        raise ValueError(f"task is one of {get_args(Task)} and crowd of {get_args(Crowd)}, not {task!r}, {crowd!r}")
    opened = open_export(dataset)
    store = Store.open(out_uri)
    losses = Losses()
    counts = {"images": 0, "objects": 0}
    label_map = opened.label_map
    num_keypoints = _num_keypoints(label_map) if task == "pose" else 0
    folders = split_names(opened.splits, without=_RESERVED)

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for image in walk(opened, splits, by_split=True, by_stem=True, without=("images", "labels")):
            if image.annotations is None:
                losses.add("image that nobody has looked at", image.image_id)
                continue
            place = f"{folders[image.split]}/{image.name}"
            lines = _lines(image, label_map, task, crowd, num_keypoints, losses)
            counts["images"] += 1
            counts["objects"] += len(lines)
            text = "".join(f"{line}\n" for line in lines).encode()
            yield f"labels/{place.rpartition('.')[0]}.txt", lambda text=text: text  # type: ignore[misc]
            if images:
                yield f"images/{place}", image.read

    write_files(store, files())
    chosen = {split: folders[split] for split in choose_splits(opened, splits)}
    config = yaml.safe_dump(_config(chosen, label_map, task, num_keypoints), sort_keys=False, allow_unicode=True)
    store.write_bytes("data.yaml", config.encode())
    return ExportReport(
        files={"data.yaml": store.join("data.yaml")},
        num_images=counts["images"],
        num_objects=counts["objects"],
        losses=losses.counts,
        examples=losses.examples,
        never_carried=("image ids", "annotation ids", "category ids", "areas", "licenses and URLs"),
    )


def _config(folders: dict[str, str], label_map: LabelMap, task: Task, num_keypoints: int) -> dict[str, Any]:
    # Without `path`: trainers then take the folder of the file.
    config: dict[str, Any] = {name: f"images/{name}" for split, name in folders.items() if split}
    if "" in folders:
        # What has no split is for training, beside what is said to be.
        unnamed = f"images/{folders['']}"
        config = {"train": [config.pop("train"), unnamed] if "train" in config else unnamed} | config
    config.setdefault("train", next(iter(config.values())))
    # A copy: the same list twice would become a YAML alias, which not every reader takes.
    config.setdefault("val", copy(config["train"]))
    config["names"] = dict(enumerate(label_map.names))
    if task == "pose":
        config["kpt_shape"] = [num_keypoints, 3]
        config["flip_idx"] = _flip_idx(label_map, num_keypoints)
        config["kpt_names"] = {i: list(c.keypoints) for i, c in enumerate(label_map.categories) if c.keypoints}
    return config


def _flip_idx(label_map: LabelMap, num_keypoints: int) -> list[int]:
    flip = list(range(num_keypoints))
    label = next(i for i, c in enumerate(label_map.categories) if c.keypoints)
    for a, b in label_map.flip_pairs(label):
        flip[a], flip[b] = b, a
    return flip


def _num_keypoints(label_map: LabelMap) -> int:
    found: dict[int, list[Category]] = {}
    for category in label_map.categories:
        if category.keypoints:
            found.setdefault(len(category.keypoints), []).append(category)
    if len(found) != 1:
        shown = {count: [c.name for c in categories][:5] for count, categories in found.items()}
        raise ValueError(f"YOLO needs one number of keypoints for all categories; the dataset has {shown or 'none'}")
    return next(iter(found))


def _lines(
    image: ExportImage, label_map: LabelMap, task: Task, crowd: Crowd, num_keypoints: int, losses: Losses
) -> list[str]:
    found = image.annotations
    assert found is not None
    count_losses(image, losses, _CARRIES[task])
    keep = [i for i in range(len(found)) if not found.iscrowd[i] or crowd == "keep"]
    for i in sorted(set(range(len(found))) - set(keep)):
        losses.add("crowd left out", image.image_id, int(found.ids[i]))
    fractions = stored_to_upright(to_pixels(found, 1 / image.width, 1 / image.height), image.orientation)
    labels = label_map.to_labels(found.category_ids)
    lines = []
    for i in keep:
        match task:
            case "detect":
                values = _cxcywh(fractions.boxes_xywh[i])
            case "segment":
                values = _outline(fractions, i, image, losses)
            case "pose":
                values = [*_cxcywh(fractions.boxes_xywh[i]), *_keypoints(fractions, i, num_keypoints)]
        lines.append(" ".join([str(int(labels[i])), *(_text(v) for v in values)]))
    unique = list(dict.fromkeys(lines))
    for _ in range(len(lines) - len(unique)):
        losses.add("object equal to another one", image.image_id)
    return unique


def _cxcywh(box_xywh: FloatArray) -> list[float]:
    x, y, w, h = box_xywh.tolist()
    return [x + w / 2, y + h / 2, w, h]


def _outline(fractions: Annotations, i: int, image: ExportImage, losses: Losses) -> list[float]:
    polygons, rle, object_id = fractions.polygons[i], fractions.rles[i], int(fractions.ids[i])
    if not polygons and rle is not None:
        height, width = rle.size
        side = np.array([width, height], np.float64)
        polygons = tuple(
            tuple((np.array(p).reshape(-1, 2) / side).reshape(-1).tolist()) for p in outlines(decode_mask(rle))
        )
        losses.add("mask became an outline", image.image_id, object_id)
    polygons = tuple(p for p in polygons or () if len(p) >= 6)
    if not polygons:
        losses.add("object without an outline became its box", image.image_id, object_id)
        x, y, w, h = fractions.boxes_xywh[i].tolist()
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    if len(polygons) > 1:
        losses.add("several outlines joined into one", image.image_id, object_id)
    return list(joined(polygons))


def _keypoints(fractions: Annotations, i: int, count: int) -> list[float]:
    found = fractions.keypoints[i]
    if found is None or len(found) != count:
        return [0.0] * (3 * count)
    return found.reshape(-1).tolist()


def _text(value: float) -> str:
    return format(value, ".10g")
