"""Several prediction sets of a dataset as one, by weighted-boxes fusion: labels in, labels out, no image is read.

Image shards are taken one by one, so that memory does not grow with the dataset. Files are named by their content and
committed once: a call that was killed is made again, a second one finds what the first has made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from typing import Any

import numpy as np

from detectors.fusion import IOU_THRESHOLD, check_weights, fuse_boxes
from pipelines import delta
from pipelines.commits import find_version
from pipelines.jobs import make_plan_id
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.predictions import (
    STATUS_FAILED,
    STATUS_OK,
    PredictionSet,
    commit_predictions,
    open_predictions,
    write_predictions,
)
from pipelines.records import Annotations, IntArray, LabelMap
from pipelines.references import check_label_set_name
from pipelines.routing import find_predictions
from pipelines.schema import SCHEMA_VERSION, LabelRow
from pipelines.shard_paths import shard_stem
from pipelines.shards import ShardFile, ShardRef, read_labels
from pipelines.storage import Store, redact
from workers.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseConfig:
    """What to fuse, and how.

    Attributes:
        dataset: reference, or URI.
        predictions: two label sets of it or more, by name or reference.
        out: name of the fused label set.
        weights: one a set, how much its scores count; none: all alike.
        iou_threshold: detections of a class that overlap by more are one object.
        score_threshold: fused detections must score above this.
        max_detections: an image, the best ones.
    """

    dataset: str
    predictions: tuple[str, ...]
    out: str
    weights: tuple[float, ...] = ()
    iou_threshold: float = IOU_THRESHOLD
    score_threshold: float = 0.0
    max_detections: int = 300

    def __post_init__(self) -> None:
        if len(self.predictions) < 2:
            raise ValueError(f"{len(self.predictions)} prediction sets to fuse; give two or more")
        if self.weights and len(self.weights) != len(self.predictions):
            raise ValueError(f"{len(self.weights)} weights for {len(self.predictions)} prediction sets; give one each")
        if self.weights:
            check_weights(self.weights)
        if not 0 < self.iou_threshold < 1:
            raise ValueError(f"iou_threshold={self.iou_threshold} must lie between 0 and 1")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold={self.score_threshold} must lie in 0 <= score_threshold < 1")
        if self.max_detections < 1:
            raise ValueError(f"max_detections={self.max_detections} must be at least 1")
        check_label_set_name(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedRef:
    """What a fusion made.

    Attributes:
        reference, digest: of the fused predictions.
        num_images: failed ones too.
        num_objects: fused detections.
        num_detections: that went into them, with those below the threshold; None where the version was found.
        seconds: wall time of this call.
        found: the version was there already.
    """

    reference: str
    digest: str
    num_images: int
    num_objects: int
    num_detections: int | None
    seconds: float
    found: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fuse(config: FuseConfig, progress: Progress | None = None) -> FusedRef:
    """Fuses prediction sets of the same images.

    A detection that only some of the sets have counts less. An image that failed in some sets is fused from the
    others; one that failed in all of them stays failed. Masks, keypoints and attributes are those of a cluster's best
    detection.

    Args:
        config: what to fuse.
        progress: called as ``progress("fuse", images_done, images)``.
    Raises:
        DatasetNotFound: there is no such prediction set.
        ValueError: sets of another dataset or of an archive, of other images, the same one twice, or a label set of
            the name ``out`` that something else has made.
    """
    started = time.perf_counter()
    sets = [open_predictions(find_predictions(config.dataset, name)) for name in config.predictions]
    _check_sets(sets)
    weights = config.weights or (1.0,) * len(sets)
    label_map = common_label_map([found.label_map for found in sets])
    settings = {name: getattr(config, name) for name in ("iou_threshold", "score_threshold", "max_detections")}
    plan_id = make_plan_id(
        job="fuse",
        schema_version=SCHEMA_VERSION,
        inputs=[[found.label_set, found.digest] for found in (s.labels for s in sets)],
        weights=list(weights),
        settings=settings,
        label_set=config.out,
    )
    uri = sets[0].uri
    version = find_version(uri, config.out, plan_id)
    detections = None
    if version is None:
        _check_free(uri, config.out)
        files, ledger, detections = _write(sets, weights, label_map, config, progress)
        version = commit_predictions(
            uri,
            config.out,
            files,
            plan_id=plan_id,
            label_map=label_map,
            images_version=int(sets[0].metadata["images_version"]),
            ledger=ledger,
            provenance={
                "fused": [
                    {"reference": redact(s.reference), "digest": s.digest, "weight": w, "provenance": s.provenance}
                    for s, w in zip(sets, weights)
                ],
                "settings": settings,
            },
        )
    return FusedRef(
        reference=version.reference,
        digest=version.digest,
        num_images=version.num_images,
        num_objects=version.num_objects,
        num_detections=detections,
        seconds=time.perf_counter() - started,
        found=version.found,
    )


def _check_sets(sets: Sequence[PredictionSet]) -> None:
    for found in sets:
        where = redact(found.reference)
        if found.is_archive:
            raise ValueError(f"{where} are predictions of an archive; only those of a dataset can be fused")
        if found.uri != sets[0].uri:
            raise ValueError(f"{where} is of another dataset than {redact(sets[0].reference)}")
        if found.splits != sets[0].splits:
            raise ValueError(
                f"{where} has images {found.splits}, {redact(sets[0].reference)} has {sets[0].splits} (by split); only "
                "predictions of the same images can be fused: label what is missing, or the same splits with both"
            )
    names = [found.labels.label_set for found in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"the same prediction set is given twice: {', '.join(names)}")


def _check_free(uri: str, label_set: str) -> None:
    table = Store.open(uri).sub("labels", label_set)
    if delta.exists(table) and delta.open_snapshot(table).metadata:
        raise ValueError(
            f"{redact(uri)} has a label set {label_set!r} already, which is no fusion of these; give another name"
        )


def common_label_map(label_maps: Sequence[LabelMap]) -> LabelMap:
    """The categories of all: by name, with the ids of the first that has them; a taken id is replaced by a free one."""
    categories = list(label_maps[0].categories)
    for category in chain.from_iterable(m.categories for m in label_maps[1:]):
        if category.name in {c.name for c in categories}:
            continue
        taken = {c.category_id for c in categories}
        free = category.category_id if category.category_id not in taken else max(taken) + 1
        categories.append(replace(category, category_id=free))
    return LabelMap(categories=tuple(categories))


def _write(
    sets: Sequence[PredictionSet],
    weights: Sequence[float],
    label_map: LabelMap,
    config: FuseConfig,
    progress: Progress | None,
) -> tuple[list[ShardFile], Ledger, int]:
    store = Store.open(sets[0].uri)
    files: list[ShardFile] = []
    ledger = Ledger()
    images = detections = 0
    for stem, rows in rows_by_shard(sets):
        fused = fuse_rows(rows, [s.label_map for s in sets], label_map, weights, config)
        files.append(write_predictions(store, config.out, stem, fused))
        images += len(fused)
        detections += sum(len(row.annotations) for of_set in rows for row in of_set if row.annotations is not None)
        _account(ledger, fused)
        if progress is not None:
            progress("fuse", images, sets[0].num_images)
    ledger.check(images=sets[0].num_images, annotations=sum(file.num_objects for file in files))
    return files, ledger, detections


def _account(ledger: Ledger, rows: Sequence[LabelRow]) -> None:
    failed = [row for row in rows if row.annotations is None]
    ledger.imported("image", len(rows) - len(failed))
    ledger.imported("annotation", sum(len(row.annotations) for row in rows if row.annotations is not None))
    ledger.extend(
        LedgerEntry(
            subject="image",
            fate="quarantined",
            reason="failed in every prediction set",
            image_id=row.image_id,
            detail=row.error or "",
        )
        for row in failed
    )


def rows_by_shard(sets: Sequence[PredictionSet]) -> Iterator[tuple[str, list[list[LabelRow]]]]:
    """For each image shard its stem and each set's rows of it, by their places: one shard in memory at a time.

    Raises:
        ValueError: the sets have different images.
    """
    shards = [{stem: list(refs) for stem, refs in groupby(s.labels.shards, _stem)} for s in sets]
    for stem in sorted({stem for of_set in shards for stem in of_set}):
        rows = [
            sorted(chain.from_iterable(map(read_labels, of_set.get(stem, ()))), key=lambda row: row.row)
            for of_set in shards
        ]
        ids = [{row.image_id for row in of_set} for of_set in rows]
        for found, mine in zip(sets, ids):
            for image_id in sorted(mine ^ ids[0])[:1]:
                has = found if image_id in mine else sets[0]
                lacks = sets[0] if image_id in mine else found
                raise ValueError(
                    f"{redact(has.reference)} has the image {image_id!r}, {redact(lacks.reference)} has not; only "
                    "predictions of the same images can be fused"
                )
        yield stem, rows


def _stem(shard: ShardRef) -> str:
    return shard_stem(shard.image_path)


def fuse_rows(
    rows: Sequence[Sequence[LabelRow]],
    label_maps: Sequence[LabelMap],
    label_map: LabelMap,
    weights: Sequence[float],
    config: FuseConfig,
) -> list[LabelRow]:
    """The fused rows of some images.

    Args:
        rows: of each set, the same images in the same order.
        label_maps: of the sets.
        label_map: of the result.
        weights, config: see ``FuseConfig``.
    """
    labels_of = [np.array([label_map.names.index(name) for name in of.names], np.int64) for of in label_maps]
    fused: dict[int, LabelRow] = {}
    # Images that the same sets have seen are fused together: a set that failed is no vote against an object.
    seen = [tuple(t for t, row in enumerate(of_image) if row.annotations is not None) for of_image in zip(*rows)]
    for models in set(seen):
        places = [i for i, who in enumerate(seen) if who == models]
        if not any(weights[t] for t in models):
            fused.update((i, _failed([of_set[i] for of_set in rows])) for i in places)
            continue
        found = [[rows[t][i] for i in places] for t in models]
        labels = [
            [labels_of[t][label_maps[t].to_labels(_there(row).category_ids)] for row in of_set]
            for t, of_set in zip(models, found)
        ]
        made = _fuse_seen(found, labels, label_map, [weights[t] for t in models], config)
        for i, row, objects in zip(places, found[0], made, strict=True):
            fused[i] = replace(row, annotations=objects, status=STATUS_OK, error=None, extra={})
    return [fused[i] for i in range(len(seen))]


def _there(row: LabelRow) -> Annotations:
    assert row.annotations is not None, "failed images were sorted out"
    return row.annotations


def _failed(rows: Sequence[LabelRow]) -> LabelRow:
    told = next((row.error for row in rows if row.error), None) or "no prediction set that counts has seen the image"
    return replace(rows[0], annotations=None, status=STATUS_FAILED, error=told, extra={})


def _fuse_seen(
    rows: Sequence[Sequence[LabelRow]],
    labels: Sequence[Sequence[IntArray]],
    label_map: LabelMap,
    weights: Sequence[float],
    config: FuseConfig,
) -> list[Annotations]:
    """Fused annotations of images that all these sets have seen."""
    found = [(t, i, _there(row)) for t, of_set in enumerate(rows) for i, row in enumerate(of_set)]
    counts = [len(annotations) for _, _, annotations in found]
    models = np.repeat([t for t, _, _ in found], counts).astype(np.int64)
    images = np.repeat([i for _, i, _ in found], counts).astype(np.int64)
    within = np.concatenate([np.arange(count) for count in counts])
    classes = np.concatenate(list(chain.from_iterable(labels)))
    boxes = np.concatenate([a.boxes for _, _, a in found])
    scores = np.concatenate([a.scores if a.scores is not None else np.ones(len(a)) for _, _, a in found])
    fused = fuse_boxes(
        boxes, scores, images * len(label_map) + classes, models, weights, iou_threshold=config.iou_threshold
    )
    kept = np.flatnonzero(fused.scores > config.score_threshold)
    kept = kept[np.lexsort((-fused.scores[kept], images[fused.best[kept]]))]
    ends = np.searchsorted(images[fused.best[kept]], np.arange(len(rows[0]) + 1))
    made = []
    for i in range(len(rows[0])):
        mine = kept[ends[i] : ends[i + 1]][: config.max_detections]
        best = fused.best[mine]
        members = [(_there(rows[models[b]][i]), int(within[b])) for b in best]
        made.append(
            _with_details(fused.boxes[mine], label_map.to_category_ids(classes[best]), fused.scores[mine], members)
        )
    return made


def _with_details(
    boxes: np.ndarray, category_ids: IntArray, scores: np.ndarray, members: Sequence[tuple[Annotations, int]]
) -> Annotations:
    """Boxes with what else the best detection of each says."""
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    plain = Annotations.from_boxes(xywh, category_ids, scores=scores)
    masked = [of.polygons[at] is not None or of.rles[at] is not None for of, at in members]
    attributes: tuple[Mapping[str, Any], ...] = tuple(of.attributes[at] if of.attributes else {} for of, at in members)
    return replace(
        plain,
        # A mask's own area: that of the box is another.
        area=np.where(masked, [of.area[at] for of, at in members], plain.area) if members else plain.area,
        polygons=tuple(of.polygons[at] for of, at in members),
        rles=tuple(of.rles[at] for of, at in members),
        keypoints=tuple(of.keypoints[at] for of, at in members),
        num_keypoints=np.array([of.num_keypoints[at] for of, at in members], np.int64),
        attributes=attributes,
    )
