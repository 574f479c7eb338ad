"""``make_batch`` against a naive implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.base import Preprocessing
from detectors.batching import fit_size, make_batch

PREPROCESSING = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), size=64, divisor=32)


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Smooth, as photographs are: a coarse noise enlarged.
    coarse = torch.rand(1, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0].byte()


def naive(images: list[Tensor], preprocessing: Preprocessing) -> Tensor:
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]
    resized = [
        F.interpolate(x[None].float(), size=fit_size(*x.shape[1:], preprocessing), mode="bilinear", antialias=True)[0]
        for x in images
    ]
    longest = [max(x.shape[i] for x in resized) for i in (1, 2)]
    height, width = (-(-side // preprocessing.divisor) * preprocessing.divisor for side in longest)
    return torch.stack(
        [F.pad((x.round() - mean) / std, (0, width - x.shape[2], 0, height - x.shape[1])) for x in resized]
    )


def test_equals_a_naive_implementation() -> None:
    images = [image(100, 150, 1), image(480, 200, 2), image(20, 30, 3)]
    batch = make_batch(images, PREPROCESSING)
    expected = naive(images, PREPROCESSING)
    assert batch.images.shape == expected.shape == (3, 3, 64, 64)
    # uint8 resizing rounds once, float resizing not at all: one grey level of 255, in units of the norm.
    assert (batch.images - expected).abs().max() <= 1.01 / 57
    assert (batch.images - expected).abs().mean() <= 0.2 / 57
    assert batch.sizes.tolist() == [[43, 64], [64, 27], [43, 64]]
    assert batch.original_sizes.tolist() == [[100, 150], [480, 200], [20, 30]]


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    pixels = image(48, 64)
    batch = make_batch([pixels], PREPROCESSING)
    torch.testing.assert_close(batch.images[:, :, :48], naive([pixels], PREPROCESSING)[:, :, :48])


def test_padding_is_zero_and_memory_is_channels_last() -> None:
    batch = make_batch([image(64, 20), image(20, 64)], PREPROCESSING)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images[0, :, :, 20:].abs().max() == 0 and batch.images[1, :, 20:].abs().max() == 0


def test_strided_images_are_welcome() -> None:
    pixels = image(48, 64)
    turned = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as decoders leave them
    assert torch.equal(make_batch([turned], PREPROCESSING).images, make_batch([pixels], PREPROCESSING).images)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_shapes_keep_a_pixel(shape: tuple[int, int]) -> None:
    height, width = fit_size(*shape, PREPROCESSING)
    assert max(height, width) == 64 and min(height, width) >= 1
    assert make_batch([torch.zeros(3, *shape, dtype=torch.uint8)], PREPROCESSING).images.isfinite().all()


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8).byte(), torch.zeros(8, 8).byte(), torch.zeros(3, 0, 8).byte()]
)
def test_other_tensors_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"image 1 of the batch is torch\."):
        make_batch([image(8, 8), bad], PREPROCESSING)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        make_batch([], PREPROCESSING)
