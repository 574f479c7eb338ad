"""A detector learns two images by heart: targets, losses, decoding and NMS fit together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors import Detector, create
from detectors.batching import make_batch
from detectors.structures import Target

COLOURS = torch.tensor([[250, 30, 30], [30, 30, 250]], dtype=torch.uint8)


def coloured_boxes(objects: list[tuple[int, list[int]]], *, side: int) -> tuple[Tensor, Target]:
    """Bright rectangles of one colour a class on grey; boxes are given for a side of 128 and scaled to ``side``."""
    image = torch.full((3, side, side), 100, dtype=torch.uint8)
    boxes = torch.tensor([box for _, box in objects]) * side // 128
    for (label, _), (x1, y1, x2, y2) in zip(objects, boxes.tolist()):
        image[:, y1:y2, x1:x2] = COLOURS[label][:, None, None]
    labels = torch.tensor([label for label, _ in objects])
    return image, Target(boxes=boxes.float(), labels=labels, iscrowd=torch.zeros(len(objects), dtype=torch.bool))


def assert_learns_by_heart(
    name: str, *, side: int, steps: int, lr: float, least_score: float = 0.5, **options: Any
) -> Detector:
    """Trains on two images of two objects, and asserts that the two surest finds of each are those: IoU >= 0.8.

    Args:
        name: of the catalog.
        side: of the images, pixels; also the model's.
        steps, lr: of AdamW under one cycle of the learning rate.
        least_score: of the four finds.
        options: of the detector.
    """
    torch.manual_seed(0)
    first = coloured_boxes([(0, [10, 12, 50, 60]), (1, [70, 64, 120, 100])], side=side)
    second = coloured_boxes([(1, [20, 30, 60, 110]), (0, [80, 10, 116, 40])], side=side)
    images, targets = zip(first, second)
    detector = create(name, num_classes=2, image_size=side, **options).train()
    batch = make_batch(images, detector.preprocessing)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack(list(detector(batch, list(targets)).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    for prediction, target in zip(detector.eval().predict(batch), targets):
        iou, nearest = box_iou(prediction.boxes[:2], target.boxes).max(1)
        seen = (prediction.scores[:6], prediction.boxes[:6], prediction.labels[:6])
        assert sorted(nearest.tolist()) == [0, 1], seen
        assert bool((iou >= 0.8).all()) and bool((prediction.scores[:2] >= least_score).all()), (iou, *seen)
        assert torch.equal(prediction.labels[:2], target.labels[nearest]), seen
    return detector
