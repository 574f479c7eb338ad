"""COCO metrics of a detector that is being trained, by all workers together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from detectors import Detector
from detectors.batching import make_batch
from detectors.optimize import optimize
from pipelines.metrics.coco import evaluate_boxes
from pipelines.records import Annotations, LabelMap
from pipelines.versions import Dataset
from workers.batches import to_annotations
from workers.loader import RowGroupReader, evaluation_batches, list_row_groups, shard_of_rank
from workers.train_config import TrainConfig

Detected = tuple[int, str, Annotations, Annotations]
"""COCO image id, image id, truth, detections."""


class Validator:
    """COCO metrics on the validation split, whose images are shared out over the workers."""

    def __init__(self, config: TrainConfig, dataset: Dataset, label_map: LabelMap, *, rank: int, world: int) -> None:
        self._config, self._label_map, self._rank, self._world = config, label_map, rank, world
        self._groups = () if config.val_split is None else list_row_groups(dataset, config.val_split)
        self._reader = RowGroupReader(self._groups, max_bytes=config.cache_mb * 2**20)
        # Pickled annotations travel over gloo whatever the gradients use.
        self._channel = dist.new_group(backend="gloo") if world > 1 else None

    def after_epoch(self, epoch: int, detector: Detector, device: torch.device, board: Any) -> dict[str, float]:
        """The twelve COCO numbers on rank 0 where a validation is due, else nothing.

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
        images = sorted((image for part in gathered for image in part), key=lambda image: image[:2])
        metrics = evaluate_boxes(
            [(image_id, truth) for _, image_id, truth, _ in images],
            [(image_id, found) for _, image_id, _, found in images],
            self._label_map,
        )
        numbers = {name: float(value) for name, value in metrics.stats.items()}
        board.validated.remote(AP=round(numbers["AP"], 4), AP50=round(numbers["AP50"], 4))
        return numbers

    @torch.inference_mode()
    def _detect(self, detector: Detector, device: torch.device) -> list[Detected]:
        """What the detector finds in this worker's share, in float32 as labelling does it."""
        everything = [(g, place) for g, group in enumerate(self._groups) for place in range(len(group.image_ids))]
        share = shard_of_rank(len(everything), world=self._world, rank=self._rank)
        samples = everything[share.start : share.stop]
        fast = optimize(detector)
        detections: list[Detected] = []
        for batch in evaluation_batches(self._reader, samples, batch_size=self._config.batch_size):
            images = make_batch([image for _, image in batch], detector.preprocessing).to(device)
            for (record, _), prediction in zip(batch, fast.predict(images), strict=True):
                assert record.annotations is not None
                found = to_annotations(prediction, self._label_map)
                detections.append((record.coco_image_id, record.image_id, record.annotations, found))
        return detections
