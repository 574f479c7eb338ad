"""A detector that knows some images by heart: what it finds, with masks and keypoints, is as good as it was taught.

It stands for a trained network where a test is about what becomes of its predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

import detectors
from detectors.base import Detector, Preprocessing
from detectors.batching import make_batch
from detectors.structures import Batch, Prediction, Target
from pipelines.records import ImageRecord, LabelMap
from workers.batches import to_image_and_target

NAME = f"{__name__}:make"
NEEDS = frozenset({"masks", "keypoints"})
_GRID = 6  # cells a side of what tells images apart
_CROP = 28


class Recaller(Detector):
    """Finds what it was taught in the taught image that looks most like the given one.

    Shape legend: I taught images of N objects at most, K keypoints.
    """

    network = ("look",)
    needs = NEEDS

    def __init__(self, *, num_classes: int, images: int, objects: int, num_keypoints: int, image_size: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.preprocessing = Preprocessing(mean=(128.0,) * 3, std=(64.0,) * 3, size=image_size, divisor=32)
        for name, shape in (
            ("looks", (images, 3 * _GRID * _GRID)),
            ("boxes", (images, objects, 4)),
            ("labels", (images, objects)),
            ("scores", (images, objects)),
            ("crops", (images, objects, _CROP, _CROP)),
            ("keypoints", (images, objects, num_keypoints, 3)),
        ):
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))

    def look(self, image: Tensor) -> Tensor:
        """(3, h, w) to what it looks like from afar."""
        return F.adaptive_avg_pool2d(image[None], _GRID).flatten()

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        return {"nothing": self.looks.sum() * 0}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        found = []
        for image, (h, w), (height, width) in zip(batch.images, batch.sizes.tolist(), batch.original_sizes.tolist()):
            at = int((self.looks - self.look(image[:, :h, :w])).square().sum(1).argmin())
            order = self.scores[at].argsort(descending=True, stable=True)
            order = order[: int((self.scores[at] > 0).sum())]
            found.append(
                Prediction(
                    boxes=self.boxes[at, order],
                    labels=self.labels[at, order].long(),
                    scores=self.scores[at, order],
                    size=(height, width),
                    masks=self.crops[at, order],
                    keypoints=self.keypoints[at, order],
                )
            )
        return found


def make(**options: int) -> Recaller:
    return Recaller(**options)


def save_recaller(
    records: Sequence[ImageRecord], label_map: LabelMap, directory: Path, *, size: int, seed: int = 0
) -> None:
    """A model of these images that is mostly right: all a little moved, some of another class."""
    generator = torch.Generator().manual_seed(seed)
    taught = [to_image_and_target(record, label_map, needs=NEEDS) for record in records]
    detector = detectors.create(
        NAME,
        num_classes=len(label_map),
        images=len(records),
        objects=max(len(target) for _, target in taught),
        num_keypoints=len(label_map.keypoint_flip()),
        image_size=size,
    )
    assert isinstance(detector, Recaller)
    with torch.no_grad():
        for at, (image, target) in enumerate(taught):
            n = len(target)
            batch = make_batch([image], detector.preprocessing)
            height, width = batch.sizes[0].tolist()
            detector.looks[at] = detector.look(batch.images[0, :, :height, :width])
            sides = target.boxes[:, 2:] - target.boxes[:, :2]
            moved = target.boxes + torch.randn(n, 4, generator=generator) * 0.04 * sides.repeat(1, 2)
            limits = torch.tensor([image.shape[2], image.shape[1]] * 2)
            moved = torch.minimum(moved.clamp(min=0), limits)
            wrong = torch.rand(n, generator=generator) < 0.1
            assert target.masks is not None and target.keypoints is not None
            rois = torch.cat([torch.arange(n)[:, None], moved], 1)
            detector.boxes[at, :n] = moved
            detector.labels[at, :n] = torch.where(wrong, (target.labels + 1) % len(label_map), target.labels).float()
            detector.scores[at, :n] = 0.1 + 0.9 * torch.rand(n, generator=generator)
            detector.crops[at, :n] = roi_align(target.masks[:, None].float(), rois, _CROP)[:, 0]
            spread = torch.randn(n, target.keypoints.shape[1], 2, generator=generator) * 0.03 * sides[:, None]
            centres = (moved[:, None, :2] + moved[:, None, 2:]) / 2
            labelled = target.keypoints[..., 2:] > 0
            detector.keypoints[at, :n, :, :2] = torch.where(labelled, target.keypoints[..., :2], centres) + spread
            detector.keypoints[at, :n, :, 2] = torch.rand(labelled.shape[:2], generator=generator)
    detectors.save(detector, None, directory, categories=label_map.to_json())
