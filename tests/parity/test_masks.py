"""Masks from crops against torchvision's pasted ones and pycocotools's run lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detectors.blocks.masks import mask_rles
from detectors.blocks.pasting import paste_masks
from detectors.structures import Prediction

SIZES = [(97, 131), (64, 40), (33, 200)]


def random_masks(size: tuple[int, int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of blobs, of noise and of nothing, in boxes of all sizes: in the image, at its border, beyond it."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(
        torch.rand(count, 1, 5, 5, generator=generator), size=(28, 28), mode="bicubic"
    )[:, 0].clamp(0, 1)
    noise = torch.rand(count, 28, 28, generator=generator)
    crops = torch.where(torch.arange(count)[:, None, None] % 4 == 0, noise, smooth)
    crops[1::50] = 0
    crops[2::50] = 1
    extent = torch.tensor([size[1], size[0]])
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.2) * extent
    side = torch.rand(count, 2, generator=generator) ** 2 * extent * 1.2
    # Something of each is inside: torchvision fails on what is not.
    boxes = torch.cat([torch.minimum(corner, extent - 4.0), (corner + side).clamp(min=4)], 1)
    clipped = torch.minimum(boxes.clamp(min=0), extent.repeat(2).float())
    boxes = torch.where(torch.arange(count)[:, None] % 3 == 0, boxes, clipped)  # ours are clipped, others' may not be
    boxes[3::50] = torch.tensor([0.0, 0.0, size[1], size[0]])  # run lengths go on from column to column
    boxes[4::50] = clipped[4::50][:, [0, 1, 0, 1]]  # no area
    return crops, boxes


@pytest.mark.parametrize("size", SIZES)
def test_run_lengths_and_pasted_masks(size: tuple[int, int]) -> None:
    crops, boxes = random_masks(size, 400, seed=size[0])
    expected = paste_masks_in_image(crops[:, None], boxes, size)[:, 0]
    assert torch.equal(paste_masks(crops, boxes, size), expected)
    filled = 0
    for counts, mask in zip(mask_rles(crops, boxes, size), expected > 0.5):
        ours = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
        assert ours == coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert counts.sum() == size[0] * size[1] and (counts[1:] > 0).all()
        filled += bool(mask.any())
    assert filled > 250


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
def test_other_thresholds(threshold: float) -> None:
    size = SIZES[0]
    crops, boxes = random_masks(size, 60, seed=1)
    expected = paste_masks_in_image(crops[:, None], boxes, size)[:, 0] > threshold
    for counts, mask in zip(mask_rles(crops, boxes, size, threshold), expected):
        runs = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(runs.reshape(size[::-1]).T, mask.numpy())


@pytest.mark.parametrize("cells", [3, 7, 28])
def test_boxes_with_fewer_pixels_than_cells_and_values_at_the_threshold(cells: int) -> None:
    size, generator = (40, 30), torch.Generator().manual_seed(cells)
    crops = torch.rand(200, cells, cells, generator=generator)
    crops[::2] = crops[::2].round(decimals=1)  # many are the threshold itself
    crops[::3] = (crops[::3] > 0.5).float()
    corners = torch.rand(200, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 20 * torch.rand(200, 2, generator=generator) ** 3], 1)
    expected = paste_masks_in_image(crops[:, None], boxes, size)[:, 0] > 0.5
    assert expected.any(2).any(1).sum() > 100
    for counts, mask in zip(mask_rles(crops, boxes, size), expected, strict=True):
        runs = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(runs.reshape(size[::-1]).T, mask.numpy()) and (counts[1:] > 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_no_numbers_are_those_of_the_pasted_mask(value: float) -> None:
    size = SIZES[0]
    crops, boxes = random_masks(size, 20, seed=4)
    crops[::2, 5, 9] = value
    dense = paste_masks(crops, boxes, size) > 0.5
    for counts, mask in zip(mask_rles(crops, boxes, size), dense, strict=True):
        runs = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(runs.reshape(size[::-1]).T, mask.numpy())


def test_of_a_prediction() -> None:
    size = (50, 60)
    crops, boxes = random_masks(size, 6, seed=2)
    found = Prediction(boxes=boxes, labels=torch.zeros(6).long(), scores=torch.ones(6), size=size, masks=crops)
    assert torch.equal(found.dense(), paste_masks(crops, boxes, size))
    for ours, expected in zip(found.rle(threshold=0.4), mask_rles(crops, boxes, size, 0.4), strict=True):
        assert np.array_equal(ours, expected)
    without = Prediction(boxes=boxes, labels=torch.zeros(6).long(), scores=torch.ones(6), size=size)
    for method in (without.dense, without.rle):
        with pytest.raises(ValueError, match="no masks"):
            method()


def test_a_box_beside_the_image() -> None:
    for box in ([48.0, -90.0, 60.0, -70.0], [48.0, 70.0, 60.0, 99.0], [-50.0, 3.0, -40.0, 9.0], [80.0, 3.0, 90.0, 9.0]):
        crops, boxes = torch.ones(1, 28, 28), torch.tensor([box])
        assert not paste_masks(crops, boxes, (30, 60)).any()
        assert mask_rles(crops, boxes, (30, 60))[0].tolist() == [1800]


def test_nothing_found() -> None:
    assert mask_rles(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)) == []
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold is 1"):
        mask_rles(torch.zeros(1, 28, 28), torch.zeros(1, 4), (5, 6), 1.0)
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\)"):
        paste_masks(torch.zeros(1, 28, 28), torch.zeros(2, 4), (5, 6))
