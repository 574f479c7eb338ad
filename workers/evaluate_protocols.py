"""The protocols beside COCO's, from truth and predictions that are paired."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from pipelines.metrics.lvis import LvisMetrics, evaluate_lvis
from pipelines.metrics.pairing import PairedImage, Pairs
from pipelines.metrics.settings import IouType
from pipelines.metrics.voc import VocMetrics, VocProtocol, evaluate_voc
from pipelines.records import Annotations
from pipelines.shards import read_label_columns
from pipelines.versions import Dataset

Protocol = Literal["coco", "voc07", "voc10", "lvis"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
_MEASURES: dict[Protocol, tuple[IouType, ...]] = {
    "coco": ("bbox", "segm", "keypoints"),
    "voc07": ("bbox",),
    "voc10": ("bbox",),
    "lvis": ("bbox", "segm"),
}


def check_protocol(protocol: Protocol, iou_type: IouType) -> None:
    """Raises: ValueError: an unknown protocol, or one that does not measure this."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if iou_type not in _MEASURES[protocol]:
        raise ValueError(f"protocol {protocol!r} measures {' and '.join(_MEASURES[protocol])}, not {iou_type!r}")


def measure_voc(pairs: Pairs, protocol: VocProtocol) -> VocMetrics:
    """Boxes as VOC measures them, at IoU .5."""
    return evaluate_voc(
        [(image.image_id, image.truth) for image in pairs.images],
        [(image.image_id, image.found) for image in pairs.images],
        pairs.label_map,
        protocol=protocol,
    )


def measure_lvis(dataset: Dataset, pairs: Pairs, iou_type: IouType) -> tuple[Pairs, LvisMetrics]:
    """LVIS's numbers, and the pairs without detections of classes that nobody judged in their image.

    Raises:
        ValueError: the dataset does not say which classes were looked for.
    """
    absent, partly = _federated(dataset, {image.image_id for image in pairs.images})
    if not absent:
        raise ValueError(
            f"{dataset.reference} does not say which classes are known to be absent from its images, which LVIS needs; "
            "ingest it from LVIS annotations, or choose protocol 'coco'"
        )
    found = evaluate_lvis(
        [(image.image_id, image.truth) for image in pairs.images],
        [(image.image_id, image.found) for image in pairs.images],
        pairs.label_map,
        neg=absent,
        not_exhaustive=partly,
        iou_type=iou_type,
        sizes={image.image_id: (image.height, image.width) for image in pairs.images},
    )
    judged = tuple(_judged(image, absent.get(image.image_id, ())) for image in pairs.images)
    return replace(pairs, images=judged), found


def _judged(image: PairedImage, absent: tuple[int, ...]) -> PairedImage:
    known = np.isin(image.found.category_ids, [*absent, *np.unique(image.truth.category_ids).tolist()])
    return image if known.all() else replace(image, found=_rows(image.found, np.flatnonzero(known)))


def _rows(found: Annotations, rows: np.ndarray) -> Annotations:
    arrays = {name: getattr(found, name)[rows] for name in ("ids", "boxes_xywh", "category_ids", "area", "iscrowd")}
    listed = {name: tuple(getattr(found, name)[at] for at in rows) for name in ("polygons", "rles", "keypoints")}
    scores = None if found.scores is None else found.scores[rows]
    attributes = tuple(found.attributes[at] for at in rows)
    return replace(
        found, **arrays, **listed, num_keypoints=found.num_keypoints[rows], scores=scores, attributes=attributes
    )


def _federated(dataset: Dataset, wanted: set[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Category ids verified to be absent, and those not annotated exhaustively, by image, where a dataset says so."""
    absent: dict[str, tuple[int, ...]] = {}
    partly: dict[str, tuple[int, ...]] = {}
    for shard in dataset.shards:
        table = read_label_columns(shard, ["image_id", "neg", "not_exhaustive"])
        rows = zip(*(table[name].to_pylist() for name in ("image_id", "neg", "not_exhaustive")), strict=True)
        for image_id, neg, not_exhaustive in rows:
            if image_id in wanted:
                absent |= {image_id: tuple(neg)} if neg is not None else {}
                partly |= {image_id: tuple(not_exhaustive)} if not_exhaustive is not None else {}
    return absent, partly
