"""A detector that finds the whole image, and that images of some widths are poison to: the tests of giving up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.base import Detector, DetectorSpec, Preprocessing
from detectors.structures import Batch, Prediction, Target

NAME = f"{__name__}:make"
RAISES, KILLS, SULKS = 41, 43, 47
"""Widths of images: an error each time, the process's death each time, an error once."""


class Poisonous(Detector):
    network = ()

    def __init__(self, num_classes: int, memory: str) -> None:
        super().__init__()
        self.num_classes, self._memory = num_classes, Path(memory)
        self.preprocessing = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, size=32, divisor=32)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        return {"none": self.weight.sum()}

    def predict(self, batch: Batch) -> list[Prediction]:
        for _, width in batch.original_sizes.tolist():
            with (self._memory / str(width)).open("a") as log:
                log.write("seen\n")
            if width == KILLS:
                os._exit(1)
            if width == RAISES or (width == SULKS and (self._memory / str(width)).read_text().count("seen") == 1):
                raise RuntimeError(f"an image {width} pixels wide is too much for me")
        return [
            Prediction(
                boxes=torch.tensor([[0.0, 0.0, width, height]]),
                labels=torch.tensor([0]),
                scores=torch.tensor([0.5]),
                size=(height, width),
            )
            for height, width in batch.original_sizes.tolist()
        ]


def make(num_classes: int, memory: str) -> Detector:
    detector = Poisonous(num_classes, memory)
    detector.spec = DetectorSpec(name=NAME, num_classes=num_classes, options={"memory": memory})
    return detector


def save(directory: Path, memory: Path) -> dict[str, Any]:
    """A model of it; what it saw is counted in files of ``memory``, named by width."""
    import detectors

    memory.mkdir(exist_ok=True)
    detector = detectors.create(NAME, num_classes=1, memory=str(memory))
    detectors.save(detector, None, directory, categories=[{"id": 1, "name": "thing"}])
    return {"model": str(directory)}
