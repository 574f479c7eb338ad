"""Whether a dataset has what a detector learns beside boxes, and how much of it is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from detectors.base import Detector
from pipelines.bitmaps import count_masks
from pipelines.records import LabelMap
from pipelines.shards import ShardRef, read_label_columns
from pipelines.versions import Dataset
from workers.train_config import TrainConfig

_READERS = 8
_LEAVES = {"masks": ("objects.polygons", "objects.rle"), "keypoints": ("objects.keypoints",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthCount:
    """Objects of a split, and how many of them have what is asked for.

    Attributes:
        objects: crowds included.
        having: of these with a mask, or with at least one labelled keypoint.
    """

    objects: int
    having: int

    @property
    def lacking(self) -> int:
        return self.objects - self.having


def options_of_truth(detector: Detector, label_map: LabelMap, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a detector of keypoints takes from the dataset: how many there are, and their mirror image.

    Args:
        given: options that the user chose; they must be the dataset's.
    Raises:
        ValueError: it learns keypoints, and the categories name none, several kinds, or others than ``given`` says.
    """
    if "keypoints" not in detector.needs or "num_keypoints" not in detector.spec.options:
        return {}
    flip = label_map.keypoint_flip()
    taken = {"num_keypoints": len(flip), "keypoint_flip": flip}
    for name, value in taken.items():
        chosen = tuple(given[name]) if isinstance(given.get(name), list) else given.get(name, value)
        if chosen != value:
            raise ValueError(f"{name}={chosen} is not what the dataset's keypoints say, {value}; leave the option out")
    return taken


def check_truth(config: TrainConfig, dataset: Dataset, detector: str, needs: Collection[str]) -> list[str]:
    """Looks for the masks and keypoints that a run uses.

    Args:
        detector: its name, for the errors.
        needs: see ``Detector.needs``.
    Returns:
        One sentence for each kind that some objects lack.
    Raises:
        ValueError: no object of the training split has them.
    """
    notes = []
    for need in sorted({*needs, *(["masks"] if config.augment.copy_paste > 0 else [])}):
        count = count_truth(dataset, config.train_split, need)
        if not count.having:
            user = f"{detector} learns {need}" if need in needs else "copy_paste needs masks"
            raise ValueError(
                f"{user}, and no object of split {config.train_split!r} of {dataset.reference} has any; do without, "
                f"or ingest a source with {need}"
            )
        if count.lacking and need in needs:
            notes.append(
                f"{count.lacking:,} of {count.objects:,} objects in split {config.train_split!r} have no {need}: they "
                f"teach boxes and classes, but no {need}"
            )
    if config.val_split is not None and "masks" in needs:
        count = count_truth(dataset, config.val_split, "masks")
        if count.lacking:
            notes.append(
                f"{count.lacking:,} of {count.objects:,} objects in split {config.val_split!r} have no masks: masks "
                "are not measured on their images"
            )
    return notes


def count_truth(dataset: Dataset, split: str, need: str) -> TruthCount:
    """Counts objects with masks or keypoints from the label files alone."""

    def of_shard(shard: ShardRef) -> tuple[int, int]:
        table = read_label_columns(shard, ("split", "objects.id", *_LEAVES[need]))
        objects = table.filter(pc.equal(table["split"], split))["objects"].combine_chunks()
        return len(pc.list_flatten(pc.struct_field(objects, "id"))), _HAVING[need](objects)

    with ThreadPoolExecutor(_READERS) as pool:
        counts = list(pool.map(of_shard, dataset.shards))
    return TruthCount(objects=sum(n for n, _ in counts), having=sum(n for _, n in counts))


def _count_keypoints(objects: pa.StructArray) -> int:
    """Objects of which at least one keypoint is labelled."""
    keypoints = pc.list_flatten(pc.struct_field(objects, "keypoints"))
    values, parents = pc.list_flatten(keypoints).to_numpy(), pc.list_parent_indices(keypoints).to_numpy()
    # Objects have whole triples, so every third number of all is a visibility.
    return len(set(parents[2::3][values[2::3] > 0].tolist()))


_HAVING = {"masks": count_masks, "keypoints": _count_keypoints}
