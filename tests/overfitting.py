"""A detector learns two images by heart: targets, losses, decoding and NMS fit together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors import Detector, create
from detectors.batching import make_batch
from detectors.blocks.masks import THRESHOLD
from detectors.structures import Target

# In units of the box, for each label.
POINTS = torch.tensor([[[0.5, 0.15], [0.2, 0.7], [0.8, 0.7]], [[0.5, 0.85], [0.75, 0.3], [0.25, 0.3]]])
COLOURS = torch.tensor([[250, 30, 30], [30, 30, 250]], dtype=torch.uint8)


def coloured_boxes(objects: list[tuple[int, list[int]]], *, side: int, round: bool = False) -> tuple[Tensor, Target]:
    """Bright shapes of one colour a class on grey, their masks, and three keypoints of each.

    Args:
        objects: label and box of each; boxes are given for a side of 128 and scaled to ``side``.
        round: ellipses instead of rectangles, so that a mask is something else than its box.
    """
    image = torch.full((3, side, side), 100, dtype=torch.uint8)
    boxes = torch.tensor([box for _, box in objects]) * side // 128
    labels = torch.tensor([label for label, _ in objects])
    y, x = torch.meshgrid(*[torch.arange(side) + 0.5] * 2, indexing="ij")
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)  # -1 to 1 inside the box
    masks = (across**2 + down**2 if round else torch.maximum(across.abs(), down.abs())) <= 1
    for label, mask in zip(labels, masks):
        image[:, mask] = COLOURS[label][:, None]
    points = boxes[:, None, :2] + POINTS[labels] * (boxes[:, 2:] - boxes[:, :2])[:, None]
    return image, Target(
        boxes=boxes.float(),
        labels=labels,
        iscrowd=torch.zeros(len(objects), dtype=torch.bool),
        masks=masks,
        keypoints=torch.cat([points, torch.full_like(points[..., :1], 2)], 2),
    )


def assert_learns_by_heart(
    name: str, *, side: int, steps: int, lr: float, least_score: float = 0.5, **options: Any
) -> Detector:
    """Trains on two images of two objects, and asserts that the two surest finds of each are those: IoU >= 0.8.

    A detector that needs masks is shown ellipses; the IoU of its masks is 0.7 at least. Keypoints of one that finds
    any are within 5 % of the longer side of their box.

    Args:
        name: of the catalog.
        side: of the images, pixels; also the model's.
        steps, lr: of AdamW under one cycle of the learning rate.
        least_score: of the four finds.
        options: of the detector.
    """
    torch.manual_seed(0)
    detector = create(name, num_classes=2, image_size=side, **options).train()
    with_masks = "masks" in detector.needs
    first = coloured_boxes([(0, [10, 12, 50, 60]), (1, [70, 64, 120, 100])], side=side, round=with_masks)
    second = coloured_boxes([(1, [20, 30, 60, 110]), (0, [80, 10, 116, 40])], side=side, round=with_masks)
    images, targets = zip(first, second)
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
        if with_masks:
            drawn, truth = prediction.dense()[:2] > THRESHOLD, target.masks[nearest]
            overlap = (drawn & truth).sum((1, 2)) / (drawn | truth).sum((1, 2))
            assert bool((overlap >= 0.7).all()), overlap
        if "keypoints" in detector.needs:
            apart = (prediction.keypoints[:2, :, :2] - target.keypoints[nearest, :, :2]).norm(dim=2)
            sides = (target.boxes[:, 2:] - target.boxes[:, :2]).amax(1)[nearest]
            assert bool((apart <= 0.05 * sides[:, None]).all()), apart / sides[:, None]
    return detector
