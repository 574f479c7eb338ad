"""COCO metrics of a detector that is being trained, by all workers together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from detectors import Detector
from detectors.batching import make_batch
from detectors.optimize import optimize
from pipelines.bitmaps import has_masks
from pipelines.metrics.coco import evaluate, stat_names
from pipelines.metrics.settings import COCO_OKS_SIGMAS, IOU_TYPES, IouType, coco_settings
from pipelines.records import Annotations, LabelMap
from pipelines.versions import Dataset
from workers.batches import to_annotations
from workers.loader import RowGroupReader, evaluation_batches, list_row_groups, shard_of_rank
from workers.train_config import VALIDATED, TrainConfig

_PREFIXES: dict[IouType, str] = {"bbox": "", "segm": "segm_", "keypoints": "keypoints_"}
_NEEDED_FOR: dict[IouType, str] = {"segm": "masks", "keypoints": "keypoints"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validated:
    """One image with what was found in it; ``size`` is height and width in pixels."""

    coco_image_id: int
    image_id: str
    size: tuple[int, int]
    truth: Annotations
    found: Annotations


class Validator:
    """COCO metrics on the validation split, whose images are shared out over the workers."""

    def __init__(self, config: TrainConfig, dataset: Dataset, label_map: LabelMap, *, rank: int, world: int) -> None:
        self._config, self._label_map, self._rank, self._world = config, label_map, rank, world
        self._groups = () if config.val_split is None else list_row_groups(dataset, config.val_split)
        self._reader = RowGroupReader(self._groups, max_bytes=config.cache_mb * 2**20)
        # Pickled annotations travel over gloo whatever the gradients use.
        self._channel = dist.new_group(backend="gloo") if world > 1 else None

    def after_epoch(self, epoch: int, detector: Detector, device: torch.device, board: Any) -> dict[str, float]:
        """The numbers of ``measure`` on rank 0 where a validation is due, else nothing.

        Args:
            epoch: epochs done.
            detector: what would be saved now.
            board: handle of the ProgressBoard.
        """
        due = epoch % self._config.val_every == 0 or epoch == self._config.epochs
        if not due or not self._groups:
            return {}
        found = self._detect(detector, device)
        gathered: list[Any] = [found]
        if self._channel is not None:
            gathered = [None] * self._world
            dist.gather_object(found, gathered if self._rank == 0 else None, group=self._channel)
        if self._rank != 0:
            return {}
        # The order of images decides between equal scores, and is that of any other evaluation of the dataset.
        images = sorted((image for part in gathered for image in part), key=lambda i: (i.coco_image_id, i.image_id))
        numbers = measure(images, self._label_map, detector.needs)
        board.validated.remote(**{name: round(value, 4) for name, value in numbers.items() if name in VALIDATED})
        return numbers

    def _detect(self, detector: Detector, device: torch.device) -> list[Validated]:
        """What the detector finds in this worker's share, in float32 as labelling does it."""
        everything = [(g, place) for g, group in enumerate(self._groups) for place in range(len(group.image_ids))]
        share = shard_of_rank(len(everything), world=self._world, rank=self._rank)
        samples = everything[share.start : share.stop]
        # Outside of inference mode: folding norms changes copies of the weights, which then could not be changed.
        fast = optimize(detector)
        detections: list[Validated] = []
        for batch in evaluation_batches(self._reader, samples, batch_size=self._config.batch_size):
            images = make_batch([image for _, image in batch], detector.preprocessing).to(device)
            with torch.inference_mode():
                predictions = fast.predict(images)
            for (record, _), prediction in zip(batch, predictions, strict=True):
                assert record.annotations is not None
                found = to_annotations(prediction, self._label_map)
                detections.append(
                    Validated(
                        coco_image_id=record.coco_image_id,
                        image_id=record.image_id,
                        size=(record.height, record.width),
                        truth=record.annotations,
                        found=found,
                    )
                )
        return detections


def measure(images: Sequence[Validated], label_map: LabelMap, needs: Collection[str]) -> dict[str, float]:
    """COCO's numbers of boxes under their own names, of masks as ``segm_<name>``, of keypoints as ``keypoints_<name>``.

    Masks are measured on the images whose objects all have one. Keypoints other than COCO's 17 have no spreads of
    their own, and get COCO's mean; ``evaluate`` takes better ones.

    Args:
        images: in the order that decides between equal scores.
        needs: what the detector gives beside boxes, see ``Detector.needs``.
    """
    numbers: dict[str, float] = {}
    for iou_type in IOU_TYPES:
        if iou_type != "bbox" and _NEEDED_FOR[iou_type] not in needs:
            continue
        measured = [image for image in images if iou_type != "segm" or has_masks(image.truth)]
        metrics = evaluate(
            [(image.image_id, image.truth) for image in measured],
            [(image.image_id, image.found) for image in measured],
            label_map,
            settings=replace(coco_settings(iou_type), oks_sigmas=_spreads(label_map)),
            sizes={image.image_id: image.size for image in measured},
        )
        numbers |= {f"{_PREFIXES[iou_type]}{name}": float(value) for name, value in metrics.stats.items()}
    return numbers


def metric_names() -> tuple[str, ...]:
    """All names that ``measure`` may give, in its order."""
    return tuple(prefix + name for kind, prefix in _PREFIXES.items() for name in stat_names(coco_settings(kind)))


def _spreads(label_map: LabelMap) -> dict[str, tuple[float, ...]]:
    counts = {category.name: len(category.keypoints) for category in label_map.categories}
    mean = sum(COCO_OKS_SIGMAS) / len(COCO_OKS_SIGMAS)
    return {name: (mean,) * count for name, count in counts.items() if count not in (0, len(COCO_OKS_SIGMAS))}
