"""Anchors for a dataset: k-means over the sizes of its boxes, as a model sees them.

Shape legend: N boxes, A anchors. A size is width and height; two sizes are compared by the IoU of boxes on one centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.records import FloatArray, IntArray
from pipelines.shards import ShardRef, read_label_columns
from pipelines.versions import Dataset

MOST_BOXES = 100_000
"""As many decide; of more, so many are drawn. The figures are of all of them."""
_MOST_ROUNDS = 300
_GOOD_IOU = 0.5
_COLUMNS = ("split", "width", "height", "objects.bbox", "objects.iscrowd")
_READERS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxSizes:
    """Sizes of all boxes that a detector would learn.

    Attributes:
        sizes: (N, 2) width and height, pixels of the resized image.
        num_images: that were looked at.
        num_left_out: crowd regions and boxes without area.
    """

    sizes: FloatArray
    num_images: int
    num_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorFit:
    """How well anchors fit boxes.

    Attributes:
        mean_iou: of each box and the anchor that fits it best.
        recall: share of the boxes whose best anchor has an IoU of 0.5 or more.
        boxes: how many boxes each anchor fits best.
    """

    mean_iou: float
    recall: float
    boxes: tuple[int, ...]


def read_sizes(dataset: Dataset, splits: Sequence[str] | None, *, image_size: int) -> BoxSizes:
    """Box sizes after the resize that makes an image's longer side ``image_size``; only label columns are read.

    Raises:
        ValueError: an unknown split, or no boxes.
    """
    if unknown := sorted(set(splits or ()) - set(dataset.splits)):
        raise ValueError(f"{dataset.reference} has no split {unknown}; it has {sorted(dataset.splits)}")

    def read(shard: ShardRef) -> pa.Table:
        table = read_label_columns(shard, _COLUMNS)
        seen = table.filter(pc.field("objects").is_valid())
        return seen if splits is None else seen.filter(pc.field("split").isin(list(splits)))

    with ThreadPoolExecutor(_READERS) as pool:
        table = pa.concat_tables(pool.map(read, dataset.shards)).combine_chunks()
    boxes, is_object, image = _flatten(table)
    shape = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1).astype(np.float64)
    # The same rounding to whole pixels as the detectors' resize.
    resized = np.maximum(1, np.rint(shape * (image_size / np.maximum(shape.max(1, keepdims=True), 1))))
    sizes = boxes[:, 2:] * (resized / shape)[image]
    kept = is_object & (sizes > 0).all(1)
    if not kept.any():
        where = dataset.reference if splits is None else f"split {', '.join(splits)} of {dataset.reference}"
        raise ValueError(f"{where} has no boxes ({table.num_rows} images); anchors follow from boxes")
    return BoxSizes(sizes=sizes[kept], num_images=table.num_rows, num_left_out=int((~kept).sum()))


def _flatten(table: pa.Table) -> tuple[FloatArray, np.ndarray, IntArray]:
    """(N, 4) boxes xywh, (N,) whether each is an object and no crowd region, (N,) its image."""
    if table.num_rows == 0:
        return np.zeros((0, 4)), np.zeros(0, np.bool_), np.zeros(0, np.int64)
    objects = pa.chunked_array(table["objects"]).combine_chunks()
    boxes, crowd = pc.struct_field(objects, "bbox"), pc.struct_field(objects, "iscrowd")
    counts = pc.list_value_length(boxes).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = boxes.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    is_crowd = crowd.flatten().to_numpy(zero_copy_only=False).astype(np.bool_)
    return flat, ~is_crowd, np.repeat(np.arange(len(counts)), counts)


def find_anchors(sizes: FloatArray, num: int, *, seed: int = 0, restarts: int = 5) -> FloatArray:
    """The sizes that fit best: k-means with 1 - IoU as the distance, the best of some starts.

    Args:
        sizes: (N, 2), positive.
        num: A.
        seed: decides the starts, so that the same call finds the same anchors.
        restarts: how many starts are tried, each by k-means++.
    Returns:
        (A, 2) by ascending area.
    Raises:
        ValueError: fewer different sizes than anchors, or no anchors.
    Source: Redmon & Farhadi 2016, 1612.08242, section 2; Arthur & Vassilvitskii 2007 for the starts.
    """
    different = len(np.unique(sizes, axis=0))
    if not 1 <= num <= different:
        raise ValueError(f"{num} anchors cannot be found among {different} different box sizes; ask for fewer, from 1")
    rng = np.random.default_rng(seed)
    if len(sizes) > MOST_BOXES:
        sizes = sizes[rng.choice(len(sizes), MOST_BOXES, replace=False)]
    tried = [_cluster(sizes, _start(sizes, num, rng)) for _ in range(restarts)]
    best = max(tried, key=lambda anchors: float(size_iou(sizes, anchors).max(1).mean()))
    return best[np.argsort(best.prod(1), kind="stable")]


def fit_of(anchors: FloatArray, sizes: FloatArray) -> AnchorFit:
    """How well (A, 2) anchors fit (N, 2) sizes."""
    iou = size_iou(sizes, anchors)
    best = iou.max(1)
    boxes = np.bincount(iou.argmax(1), minlength=len(anchors))
    return AnchorFit(
        mean_iou=float(best.mean()), recall=float((best >= _GOOD_IOU).mean()), boxes=tuple(int(n) for n in boxes)
    )


def size_iou(sizes: FloatArray, anchors: FloatArray) -> FloatArray:
    """(N, A) IoU of sizes laid on one centre."""
    inside = np.minimum(sizes[:, None, 0], anchors[None, :, 0]) * np.minimum(sizes[:, None, 1], anchors[None, :, 1])
    iou: FloatArray = inside / (sizes.prod(1)[:, None] + anchors.prod(1)[None] - inside)
    return iou


def _start(sizes: FloatArray, num: int, rng: np.random.Generator) -> FloatArray:
    """k-means++: each next anchor is a box, drawn by its squared distance from those chosen before."""
    chosen = sizes[[rng.integers(len(sizes))]]
    while len(chosen) < num:
        far = (1 - size_iou(sizes, chosen).max(1)).clip(0) ** 2
        # All may be equal to rounding once the distinct ones are chosen.
        chance = far / far.sum() if far.sum() > 0 else None
        chosen = np.concatenate([chosen, sizes[[rng.choice(len(sizes), p=chance)]]])
    return chosen


def _cluster(sizes: FloatArray, anchors: FloatArray) -> FloatArray:
    """Lloyd's rounds: each box to its best anchor, each anchor to the mean of its boxes."""
    before: IntArray | None = None
    for _ in range(_MOST_ROUNDS):
        iou = size_iou(sizes, anchors)
        nearest = iou.argmax(1)
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        counts = np.bincount(nearest, minlength=len(anchors))
        sums = np.stack([np.bincount(nearest, sizes[:, axis], len(anchors)) for axis in (0, 1)], 1)
        anchors = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], anchors)
        if (counts == 0).any():
            # An anchor without boxes starts again where the fit is worst.
            anchors[counts == 0] = sizes[iou.max(1).argmin()]
    return anchors
