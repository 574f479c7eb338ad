"""A RetinaNet learns two images by heart: targets, losses, decoding and NMS fit together."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors import create
from detectors.batching import make_batch
from detectors.structures import Target

SIZE = 128


def scene(objects: list[tuple[int, list[int]]]) -> tuple[Tensor, Target]:
    """Bright rectangles of one colour a class on grey."""
    image = torch.full((3, SIZE, SIZE), 100, dtype=torch.uint8)
    for label, (x1, y1, x2, y2) in objects:
        image[:, y1:y2, x1:x2] = torch.tensor([[250, 30, 30], [30, 30, 250]], dtype=torch.uint8)[label][:, None, None]
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float32)
    labels = torch.tensor([label for label, _ in objects])
    return image, Target(boxes=boxes, labels=labels, iscrowd=torch.zeros(len(objects), dtype=torch.bool))


def test_two_images_by_heart() -> None:
    torch.manual_seed(0)
    images, targets = zip(
        scene([(0, [10, 12, 50, 60]), (1, [70, 64, 120, 100])]), scene([(1, [20, 30, 60, 110]), (0, [80, 10, 116, 40])])
    )
    detector = create("retinanet_lite0", num_classes=2, norm="gn", image_size=SIZE, head_depth=1)
    batch = make_batch(images, detector.preprocessing)
    steps = 80
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
        # Two objects, two sure finds; anchors between positive and background were never told what to say.
        iou, nearest = box_iou(prediction.boxes[:2], target.boxes).max(1)
        assert sorted(nearest.tolist()) == [0, 1], (prediction.scores[:6], prediction.boxes[:6])
        assert bool((iou >= 0.8).all()) and bool((prediction.scores[:2] > 0.8).all()), (iou, prediction.scores[:6])
        assert torch.equal(prediction.labels[:2], target.labels[nearest])
