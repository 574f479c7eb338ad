"""From decoded images to the one padded tensor a detector takes.

Resizing is done on uint8; the cast, the normalisation and the padding are one write into the final, channels_last
buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.base import Preprocessing
from detectors.structures import Batch


def make_batch(images: Sequence[Tensor], preprocessing: Preprocessing, *, dtype: torch.dtype = torch.float32) -> Batch:
    """Resizes, normalises and pads images into a batch.

    An image that already has the size that ``fit_size`` gives it (an augmented one) is not resampled.

    Args:
        images: (3, H, W) uint8 RGB, of any sizes.
        preprocessing: the model's.
        dtype: of the batch.
    Returns:
        Channels_last batch; padding, at the right and the bottom, is 0 (the mean colour).
    Raises:
        ValueError: no images, or one that is not (3, H, W) uint8.
    """
    if not images:
        raise ValueError("a batch needs at least one image")
    for i, image in enumerate(images):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"image {i} of the batch is {image.dtype} {tuple(image.shape)}; need uint8 (3, H, W)")
    resized = [resize_image(image, fit_size(image.shape[1], image.shape[2], preprocessing)) for image in images]
    sizes = torch.tensor([image.shape[1:] for image in resized])
    height, width = (-(-int(longest) // preprocessing.divisor) * preprocessing.divisor for longest in sizes.amax(0))
    batch = torch.empty(
        (len(images), 3, height, width),
        dtype=dtype,
        device=images[0].device,
        memory_format=torch.channels_last,
    )
    scale = torch.tensor([1 / s for s in preprocessing.std], device=batch.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(preprocessing.mean, preprocessing.std)], device=batch.device)[
        :, None, None
    ]
    for canvas, image in zip(batch, resized):
        h, w = image.shape[1:]
        canvas[:, :h, :w].copy_(torch.addcmul(shift, image, scale))
        canvas[:, h:, :] = 0
        canvas[:, :h, w:] = 0
    return Batch(images=batch, sizes=sizes, original_sizes=torch.tensor([image.shape[1:] for image in images]))


def fit_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width that an image is resized to: see ``Preprocessing.size`` and ``resize``."""
    if preprocessing.resize == "stretch":
        return preprocessing.size, preprocessing.size
    scale = preprocessing.size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased resize of (3, H, W) uint8 to ``size`` (height, width)."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
