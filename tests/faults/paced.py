"""A small detector that takes as long for a batch as a file says: runs that faults can be timed against."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import detectors
from detectors.base import Detector
from detectors.models.retinanet import RetinaNet
from detectors.structures import Batch, Prediction
from pipelines.records import LabelMap
from tests.integration.labelling import THRESHOLD
from tests.integration.training import TINY

NAME = f"{__name__}:make"


@dataclass(frozen=True, slots=True)
class Pace:
    """The folder that the model and the test share: how long a batch takes, and who has begun one."""

    folder: Path

    def set(self, seconds: float) -> None:
        """Each batch takes so much longer, those that have begun too."""
        self.folder.mkdir(exist_ok=True)
        temporary = self.folder / "seconds.new"
        temporary.write_text(str(seconds))
        temporary.replace(self.folder / "seconds")

    def wait(self) -> None:
        """In a worker: it is at a batch now."""
        (self.folder / str(os.getpid())).touch()
        began = time.time()
        while time.time() - began < float((self.folder / "seconds").read_text()):
            time.sleep(0.05)

    def has_begun(self, pid: int, *, within: float = float("inf")) -> bool:
        """Whether a worker has begun a batch, in the last seconds."""
        try:
            return time.time() - (self.folder / str(pid)).stat().st_mtime < within
        except FileNotFoundError:
            return False


class PacedRetinaNet(RetinaNet):
    """Waits, then predicts as always."""

    pace: Pace

    def predict(self, batch: Batch) -> list[Prediction]:
        self.pace.wait()
        return super().predict(batch)


def make(num_classes: int, folder: str, **options: Any) -> Detector:
    detector = detectors.create("retinanet_lite0", num_classes=num_classes, **options)
    assert isinstance(detector, RetinaNet)
    # The catalog builds it, with all its options; only this one method is another.
    detector.__class__ = PacedRetinaNet
    detector.pace = Pace(Path(folder))
    return detector


def save(directory: Path, label_map: LabelMap, pace: Pace) -> None:
    """A model directory, random weights that find something in every image."""
    torch.manual_seed(0)
    options = {"image_size": 128, "score_threshold": THRESHOLD, "max_detections": 100, **TINY}
    detector = detectors.create(NAME, num_classes=len(label_map), folder=str(pace.folder), **options)
    detectors.save(detector, None, directory, categories=label_map.to_json())
