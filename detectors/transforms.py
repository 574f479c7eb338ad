"""Joint augmentation of an image and its objects, on uint8 pixels and before batching.

Shape legend: N objects of an image, K keypoints, H x W pixels. Images are (3, H, W) uint8 RGB; coordinates are
continuous pixels (the left edge of the first pixel is 0, the right edge of the last is W), so a horizontal flip
maps x to W - x for boxes and keypoints alike. Randomness comes from the given generator alone: the same generator
state gives the same result in any thread of any process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detectors.structures import Target
from detectors.transforms_copy_paste import choose_objects, paste_objects
from detectors.transforms_rotation import rotate
from detectors.transforms_view import keep_visible, move, select

FlipPairs = Sequence[Sequence[tuple[int, int]]]
"""For each label the pairs of keypoint indices that a mirror image swaps."""

Donor = Callable[[], tuple[Tensor, Target]]
"""Another image, (3, H, W) uint8, with its objects."""

_LUMA = np.array([0.299, 0.587, 0.114])
# ITU-R BT.601: rows are Y, I and Q; a turn in the I-Q plane is a change of hue that keeps the brightness.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        size: the longer side of the result, pixels; the shorter follows, and every result has the size that a
            plain resize of its image would have.
        resize: ``stretch`` makes every result size x size instead; see ``Preprocessing.resize``.
        horizontal_flip, vertical_flip: probabilities in [0, 1].
        scale: (low, high) zoom, drawn log-uniformly; above 1 a random crop is enlarged, below 1 the whole image is
            shrunk and placed at random on ``fill``. (1, 1) leaves the geometry alone, (0.1, 2) is the large-scale
            jitter of Ghiasi et al. 2020, 2012.07177.
        rotation: a turn in degrees drawn from [-x, x], 0 to 45; a few are best, see ``rotate``.
        copy_paste: probability that objects of another image are pasted over this one, see ``paste_objects``.
        brightness, contrast, saturation: a factor is drawn from [1 - x, 1 + x]; 0 is none.
        hue: a turn of the colour circle drawn from [-x, x], 0.5 is half of it.
        min_visible: an object with less than this part of its box left in view is removed.
        min_size: an object with a side shorter than this many pixels of the result is removed.
        fill: colour of what lies outside the image, 0 to 255; the mean of the model's preprocessing is neutral.
    """

    size: int
    resize: Literal["fit", "stretch"] = "fit"
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    copy_paste: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    min_visible: float = 0.25
    min_size: float = 2.0
    fill: tuple[int, int, int] = (127, 127, 127)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale {self.scale} must be (low, high) with 0 < low <= high, such as (0.7, 1.4)")
        for name in ("horizontal_flip", "vertical_flip", "copy_paste", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0..1")
        for name, limit in (
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
            ("rotation", 45.0),
        ):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0..{limit}")
        if self.resize not in ("fit", "stretch"):
            raise ValueError(f"resize={self.resize!r} is not known; choose fit or stretch")
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least one pixel")

    @property
    def needs_masks(self) -> bool:
        """Whether targets should have their masks whatever a detector learns.

        Objects are pasted by their masks, and a turned object's box is exact with its mask alone.
        """
        return self.copy_paste > 0 or self.rotation > 0


def augment(
    image: Tensor,
    target: Target,
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    flip_pairs: FlipPairs = (),
    donor: Donor | None = None,
) -> tuple[Tensor, Target]:
    """One random variation of an image with its objects.

    Args:
        image: (3, H, W) uint8.
        target: in pixels of ``image``; masks, where given, are (N, H, W). ``augmentation.needs_masks`` says whether
            they are wanted here, whatever the detector learns.
        augmentation: what to vary and how far.
        rng: consumed by the same number of draws whatever the image, and by more where another one is pasted.
        flip_pairs: keypoint swaps by label; empty where there are no keypoints.
        donor: gives another image of the same dataset with its objects, to paste some of them; it is called, once
            at most, where the die says so.
    Returns:
        The (3, h, w) uint8 image with max(h, w) == augmentation.size, and the objects still in view.
    Raises:
        ValueError: ``augmentation.copy_paste`` is above 0 and there is no donor, or a target has no masks.
    """
    if augmentation.copy_paste > 0 and donor is None:
        raise ValueError(f"copy_paste={augmentation.copy_paste} needs a donor of other images; give one, or 0")
    image, target = _vary(image, target, augmentation, rng, flip_pairs)
    if donor is None or rng.random() >= augmentation.copy_paste:
        return image, target
    other, objects = _vary(*donor(), augmentation, rng, flip_pairs)
    chosen = choose_objects(objects, rng)
    return paste_objects(
        image,
        target,
        other,
        select(objects, chosen),
        place=(rng.random(), rng.random()),
        min_visible=augmentation.min_visible,
        min_size=augmentation.min_size,
    )


def _vary(
    image: Tensor, target: Target, augmentation: Augmentation, rng: np.random.Generator, flip_pairs: FlipPairs
) -> tuple[Tensor, Target]:
    # Always all draws, so that switching one variation off leaves the others as they were; new ones come last.
    chance = rng.random(10)
    if augmentation.rotation > 0:
        degrees = augmentation.rotation * (2 * chance[9] - 1)
        image, target = rotate(image, target, degrees, fill=augmentation.fill)
    size = (augmentation.size, augmentation.size)
    if augmentation.resize == "fit":
        size = fit_size(image.shape[1], image.shape[2], augmentation.size)
    low, high = augmentation.scale
    zoom = low * (high / low) ** chance[0]
    image, target = zoom_and_place(
        image, target, size=size, zoom=zoom, place=(chance[1], chance[2]), fill=augmentation.fill
    )
    if chance[3] < augmentation.horizontal_flip:
        image, target = flip_horizontally(image, target, flip_pairs)
    if chance[4] < augmentation.vertical_flip:
        image, target = flip_vertically(image, target, flip_pairs)
    brightness, contrast, saturation, hue = 2 * chance[5:9] - 1
    image = shift_colours(
        image,
        brightness=1 + augmentation.brightness * brightness,
        contrast=1 + augmentation.contrast * contrast,
        saturation=1 + augmentation.saturation * saturation,
        hue=augmentation.hue * hue,
    )
    target = keep_visible(
        target,
        height=image.shape[1],
        width=image.shape[2],
        min_visible=augmentation.min_visible,
        min_size=augmentation.min_size,
    )
    return image, target


def fit_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after a resize that makes the longer side ``size`` and keeps the aspect ratio."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: Tensor, target: Target, size: int) -> tuple[Tensor, Target]:
    """Resizes so that the longer side is ``size``; (3, H, W) uint8 in and out."""
    height, width = fit_size(image.shape[1], image.shape[2], size)
    scale_x, scale_y = width / image.shape[2], height / image.shape[1]
    target = move(target, scale_x, scale_y, 0.0, 0.0)
    if target.masks is not None:
        target = replace(target, masks=_resize_masks(target.masks, height, width))
    return _resize_pixels(image, height, width), target


def zoom_and_place(
    image: Tensor,
    target: Target,
    *,
    size: tuple[int, int],
    zoom: float,
    place: tuple[float, float],
    fill: tuple[int, int, int],
) -> tuple[Tensor, Target]:
    """Resizes by ``zoom`` more than a plain resize would, then crops or pads to the plain resize's size.

    Args:
        size: height and width of the result.
        zoom: 1 is a plain resize to ``size``.
        place: where the crop is taken or the shrunken image is put, (x, y) in [0, 1].
        fill: colour of what lies outside the image.
    Returns:
        The image and its objects, which may lie partly or wholly outside (see ``keep_visible``).
    """
    height, width = size
    if zoom >= 1:
        # Crop first: only pixels that stay are resized.
        crop_h = min(image.shape[1], max(1, round(image.shape[1] / zoom)))
        crop_w = min(image.shape[2], max(1, round(image.shape[2] / zoom)))
        left = int(place[0] * (image.shape[2] - crop_w + 1 - 1e-9))
        top = int(place[1] * (image.shape[1] - crop_h + 1 - 1e-9))
        scale_x, scale_y = width / crop_w, height / crop_h
        view = (slice(top, top + crop_h), slice(left, left + crop_w))
        target = move(target, scale_x, scale_y, -left * scale_x, -top * scale_y)
        if target.masks is not None:
            target = replace(target, masks=_resize_masks(target.masks[:, *view], height, width))
        return _resize_pixels(image[:, *view], height, width), target

    small_h, small_w = max(1, round(height * zoom)), max(1, round(width * zoom))
    left = int(place[0] * (width - small_w + 1 - 1e-9))
    top = int(place[1] * (height - small_h + 1 - 1e-9))
    canvas = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
    inside = (slice(top, top + small_h), slice(left, left + small_w))
    canvas[:, *inside] = _resize_pixels(image, small_h, small_w)
    target = move(target, small_w / image.shape[2], small_h / image.shape[1], float(left), float(top))
    if target.masks is not None:
        masks = target.masks.new_zeros((len(target), height, width))
        masks[:, *inside] = _resize_masks(target.masks, small_h, small_w)
        target = replace(target, masks=masks)
    return canvas, target


def flip_horizontally(image: Tensor, target: Target, flip_pairs: FlipPairs = ()) -> tuple[Tensor, Target]:
    """Mirrors left and right; keypoints change their sides too."""
    width = image.shape[2]
    boxes = target.boxes.clone()
    boxes[:, 0], boxes[:, 2] = width - target.boxes[:, 2], width - target.boxes[:, 0]
    masks = None if target.masks is None else target.masks.flip(-1)
    keypoints = _mirror_keypoints(target, flip_pairs, axis=0, length=width)
    return image.flip(-1), replace(target, boxes=boxes, masks=masks, keypoints=keypoints)


def flip_vertically(image: Tensor, target: Target, flip_pairs: FlipPairs = ()) -> tuple[Tensor, Target]:
    """Mirrors top and bottom. Any mirror image makes a left hand a right one, so keypoints are swapped here too."""
    height = image.shape[1]
    boxes = target.boxes.clone()
    boxes[:, 1], boxes[:, 3] = height - target.boxes[:, 3], height - target.boxes[:, 1]
    masks = None if target.masks is None else target.masks.flip(-2)
    keypoints = _mirror_keypoints(target, flip_pairs, axis=1, length=height)
    return image.flip(-2), replace(target, boxes=boxes, masks=masks, keypoints=keypoints)


def shift_colours(
    image: Tensor,
    *,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
) -> Tensor:
    """Changes colours by one affine map of RGB, which costs a single pass over the pixels.

    Args:
        image: (3, H, W) uint8.
        brightness, contrast, saturation: factors, 1 changes nothing; contrast turns about the image's mean grey.
        hue: turn of the colour circle, 0.5 is half of it.
    """
    if (brightness, contrast, saturation, hue) == (1.0, 1.0, 1.0, 0.0):
        return image
    angle = 2 * math.pi * hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    hue_map = np.linalg.inv(_RGB_TO_YIQ) @ turn @ _RGB_TO_YIQ
    saturation_map = saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * _LUMA
    colour_map = brightness * contrast * (saturation_map @ hue_map)
    pixels = image.flatten(1).float()
    mean_grey = float(_LUMA @ pixels.mean(dim=1).double().numpy())
    offset = brightness * (1 - contrast) * mean_grey
    changed = torch.from_numpy(colour_map).float() @ pixels + offset
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


def _mirror_keypoints(target: Target, flip_pairs: FlipPairs, *, axis: int, length: int) -> Tensor | None:
    if target.keypoints is None:
        return None
    keypoints = target.keypoints.clone()
    keypoints[..., axis] = length - keypoints[..., axis]
    for label in target.labels.unique().tolist():
        of_label = target.labels == label
        order = torch.arange(keypoints.shape[1])
        for left, right in flip_pairs[label] if label < len(flip_pairs) else ():
            order[left], order[right] = right, left
        keypoints[of_label] = keypoints[of_label][:, order]
    return keypoints


def _resize_pixels(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[1:] == (height, width):
        return image.contiguous()
    # Antialiased: without it small objects of a much reduced image come and go with their place on the grid.
    # Torch's kernel for bytes fails on a result of one pixel.
    pixels = image[None].float() if height == width == 1 else image[None]
    resized = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)[0]
    return resized if resized.dtype == torch.uint8 else resized.round_().to(torch.uint8)


def _resize_masks(masks: Tensor, height: int, width: int) -> Tensor:
    if masks.shape[0] == 0:
        return masks.new_zeros((0, height, width))
    return interpolate(masks[None].to(torch.uint8), size=(height, width), mode="nearest-exact")[0].bool()
