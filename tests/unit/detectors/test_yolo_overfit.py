"""YOLO learns two images by heart, v1 and v3 alike: matching, losses, decoding and NMS fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from detectors import create
from detectors.batching import make_batch
from tests.unit.detectors.test_overfit import SIZE, scene

V1 = {"backbone": "resnet18", "norm": "gn", "grid": 4, "head_stride": 1, "head_channels": 64}
CASES = [
    pytest.param("yolo_v3_tiny", {"norm": "gn"}, 45, id="v3"),
    pytest.param("yolo_v1_resnet34", V1, 45, id="v1"),
    pytest.param("yolo_v3_darknet53", {"norm": "gn"}, 80, id="v3-darknet53", marks=pytest.mark.slow),
    pytest.param(
        "yolo_v1_resnet34",
        {"norm": "gn", "grid": 4, "head_stride": 1, "head": "fc", "fc_channels": 512, "dropout": 0.0},
        120,
        id="v1-resnet34-fc",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "options", "steps"), CASES)
def test_two_images_by_heart(name: str, options: dict[str, Any], steps: int) -> None:
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
        # v1's scores are confidence x class, and its confidence is the IoU itself.
        assert bool((iou >= 0.8).all()) and bool((prediction.scores[:2] > 0.7).all()), (iou, prediction.scores[:6])
        assert torch.equal(prediction.labels[:2], target.labels[nearest])
