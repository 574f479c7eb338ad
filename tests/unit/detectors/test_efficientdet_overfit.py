"""EfficientDet learns two images by heart: targets, losses, decoding and NMS fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from detectors import create
from detectors.batching import make_batch
from detectors.structures import Target

SIZE = 128
COLOURS = torch.tensor([[250, 30, 30], [30, 30, 250]], dtype=torch.uint8)


def scene(objects: list[tuple[int, list[int]]]) -> tuple[torch.Tensor, Target]:
    """Bright rectangles of one colour a class on grey."""
    image = torch.full((3, SIZE, SIZE), 100, dtype=torch.uint8)
    for label, (x1, y1, x2, y2) in objects:
        image[:, y1:y2, x1:x2] = COLOURS[label][:, None, None]
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float32)
    labels = torch.tensor([label for label, _ in objects])
    return image, Target(boxes=boxes, labels=labels, iscrowd=torch.zeros(len(objects), dtype=torch.bool))


def learn_by_heart(name: str, steps: int, **options: Any) -> None:
    torch.manual_seed(0)
    images, targets = zip(
        scene([(0, [10, 12, 50, 60]), (1, [70, 64, 120, 100])]), scene([(1, [20, 30, 60, 110]), (0, [80, 10, 116, 40])])
    )
    detector = create(name, num_classes=2, image_size=SIZE, **options)
    batch = make_batch(images, detector.preprocessing)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    detector.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack(list(detector(batch, list(targets)).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    for prediction, target in zip(detector.eval().predict(batch), targets):
        iou, nearest = box_iou(prediction.boxes[:2], target.boxes).max(1)
        assert sorted(nearest.tolist()) == [0, 1], (prediction.scores[:6], prediction.boxes[:6])
        assert bool((iou >= 0.8).all()) and bool((prediction.scores[:2] > 0.5).all()), (iou, prediction.scores[:6])
        assert torch.equal(prediction.labels[:2], target.labels[nearest])


def test_lite0() -> None:
    learn_by_heart("efficientdet_lite0", 50, norm="gn")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["efficientdet_d0", "efficientdet_d1", "efficientdet_d2", "efficientdet_d3"])
def test_the_scaled_ones(name: str) -> None:
    """With the paper's loss; random depth and statistics of two images are what GroupNorm spares us."""
    learn_by_heart(name, 150, norm="gn", head_norm="gn", drop_path=0.0, anchor_scale=3.0)
