"""NMS against a naive loop and torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops import box_iou

from detectors.blocks.nms import batched_nms, nms_of_images


def naive(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> list[int]:
    kept: list[int] = []
    iou = box_iou(boxes.double(), boxes.double()).tolist()
    score, label = scores.tolist(), labels.tolist()
    for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
        if all(label[i] != label[j] or iou[i][j] <= iou_threshold for j in kept):
            kept.append(i)
    return kept[:limit]


def crowd(n: int, seed: int, classes: int = 4, spread: float = 200.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * spread
    size = 20 + torch.rand(n, 2, generator=generator) * 60
    scores = torch.rand(n, generator=generator)
    return torch.cat([corner, corner + size], 1), scores, torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_equals_a_naive_loop(seed: int, limit: int) -> None:
    boxes, scores, labels = crowd(300, seed)
    assert batched_nms(boxes, scores, labels, 0.5, limit).tolist() == naive(boxes, scores, labels, 0.5, limit)


@pytest.mark.parametrize("limit", [5, 100, 5000])
def test_equals_torchvision_when_the_prefix_has_to_grow(limit: int) -> None:
    # All boxes in a heap: few survive of each prefix, so it doubles several times.
    boxes, scores, labels = crowd(3000, 7, classes=2, spread=40.0)
    expected = torchvision_batched_nms(boxes, scores, labels, 0.5)[:limit]
    assert torch.equal(batched_nms(boxes, scores, labels, 0.5, limit), expected)


def test_ties_keep_the_lower_index() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    scores, labels = torch.full((4,), 0.5), torch.tensor([1, 0, 1, 0])
    assert batched_nms(box.expand(4, 4), scores, labels, 0.5, 10).tolist() == [0, 1]


def test_boxes_outside_the_image_do_not_meet_those_of_other_classes() -> None:
    boxes = torch.tensor([[-50.0, -50, 10, 10], [-50, -50, 10, 10], [-49, -50, 10, 10]])
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]), 0.5, 10)
    assert kept.tolist() == [0, 1]


def test_iou_at_the_threshold_survives() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU is 0.5 exactly
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert batched_nms(boxes, scores, labels, 0.5, 10).tolist() == [0, 1]
    assert batched_nms(boxes, scores, labels, 0.49, 10).tolist() == [0]


def test_nothing_in_nothing_out() -> None:
    none = torch.zeros(0)
    assert batched_nms(torch.zeros(0, 4), none, none.long(), 0.5, 10).shape == (0,)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 boxes, 3 scores"):
        batched_nms(torch.zeros(2, 4), torch.zeros(3), torch.zeros(3).long(), 0.5, 10)


def test_images_do_not_see_each_other() -> None:
    counts = [120, 0, 60, 1]
    sets = [crowd(n, seed) for seed, n in enumerate(counts)]
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*sets))
    kept = nms_of_images(boxes, scores, labels, counts, 0.5, 20)
    first = 0
    for of_image, found in zip(sets, kept):
        assert (found - first).tolist() == naive(*of_image, 0.5, 20)
        first += len(of_image[0])
