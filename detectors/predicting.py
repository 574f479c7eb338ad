"""From pixels to predictions in one call: what tiling and test-time augmentation do several times over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detectors.base import Detector
from detectors.batching import fit_size, make_batch
from detectors.structures import Prediction

Predict = Callable[[Sequence[Tensor]], list[Prediction]]
"""From (3, H, W) uint8 RGB images of any sizes to a prediction each, in that image's own pixels."""


def predictor(
    detector: Detector, *, size: int | None = None, batch_size: int = 8, device: torch.device | str = "cpu"
) -> Predict:
    """A detector with all that stands before it: resizing, normalising, batching.

    Images of one size in model pixels go through the detector together, so that none is padded because of its
    neighbours and a prediction depends on its image alone.

    Args:
        detector: in eval mode, on ``device``.
        size: the longer side in model pixels; None is the model's own.
        batch_size: most images a batch.
        device: where batches go.
    Raises:
        ValueError: another size of a model of one fixed input, or a size or batch size below 1.
    """
    preprocessing = detector.preprocessing
    size = preprocessing.size if size is None else size
    if min(size, batch_size) < 1:
        raise ValueError(f"size={size} and batch_size={batch_size} must be at least 1")
    if preprocessing.resize == "stretch" and size != preprocessing.size:
        raise ValueError(
            f"size={size}: {type(detector).__name__} takes {preprocessing.size} x {preprocessing.size} pixels alone"
        )
    preprocessing = replace(preprocessing, size=size)

    def predict(images: Sequence[Tensor]) -> list[Prediction]:
        of_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            of_size.setdefault(fit_size(image.shape[1], image.shape[2], preprocessing), []).append(i)
        found: dict[int, Prediction] = {}
        for places in of_size.values():
            for first in range(0, len(places), batch_size):
                some = places[first : first + batch_size]
                batch = make_batch([images[i] for i in some], preprocessing)
                with torch.inference_mode():
                    found.update(zip(some, detector.predict(batch.to(device)), strict=True))
        return [found[i] for i in range(len(images))]

    return predict
