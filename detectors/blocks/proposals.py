"""Proposals that no network makes: where in an image an object may be, whatever it is.

Shape legend: B images, H x W pixels, P proposals of an image.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.base import Preprocessing
from detectors.batching import resize_image
from detectors.blocks.proposals_search import SelectiveSearch
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch

ProposalMethod = Literal["selective_search", "sliding_window"]

WINDOW_SCALES = (0.9, 0.64, 0.45, 0.32, 0.22, 0.16, 0.11)
WINDOW_RATIOS = (0.5, 1.0, 2.0)
WINDOW_STEP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow:
    """Windows of several sizes and shapes at regular places: what proposals are measured against.

    Attributes:
        scales: square root of a window's area relative to the image's.
        ratios: height / width.
        step: from window to window, in widths and heights of one; the last is always at the border.
        limit: proposals an image; of more windows every so-manieth is taken.
    """

    scales: tuple[float, ...] = WINDOW_SCALES
    ratios: tuple[float, ...] = WINDOW_RATIOS
    step: float = WINDOW_STEP
    limit: int = 2000

    def __post_init__(self) -> None:
        if not self.scales or not self.ratios or min(*self.scales, *self.ratios) <= 0 or self.step <= 0:
            raise ValueError(
                f"window scales {self.scales}, ratios {self.ratios} and step {self.step} must all be above 0, "
                "at least one of each"
            )
        check_at_least(self, limit=1)

    def propose(self, height: int, width: int) -> NDArray[np.float64]:
        """(P, 4) xyxy windows of an image, pixels; scale after scale, each row by row."""
        windows = [
            self._windows(height, width, scale * math.sqrt(height * width), ratio)
            for scale in self.scales
            for ratio in self.ratios
        ]
        every = np.concatenate(windows)
        chosen = np.linspace(0, len(every) - 1, min(self.limit, len(every))).round().astype(np.int64)
        return every[chosen]

    def _windows(self, height: int, width: int, side: float, ratio: float) -> NDArray[np.float64]:
        h, w = min(side * math.sqrt(ratio), height), min(side / math.sqrt(ratio), width)
        tops, lefts = self._places(height, h), self._places(width, w)
        y, x = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
        return np.stack([x, y, x + w, y + h], 1)

    def _places(self, length: int, window: float) -> NDArray[np.float64]:
        room = length - window
        return np.linspace(0, room, math.ceil(room / (self.step * window) - 1e-9) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalOptions:
    """Options of a detector that takes its proposals from outside the network.

    Attributes:
        proposal_method: ``selective_search`` or ``sliding_window``.
        proposals: the most an image.
        proposal_cache: images whose proposals are kept in memory, 16 bytes a proposal: in training without changes of
            scale and colour each image, flipped or not, is searched once; 0 keeps none.
        search_size: longer side to which an image is shrunk before it is searched, pixels.
        search_colours, search_scales, search_similarities, search_sigma: see ``SelectiveSearch``.
        search_min_side: of a proposal, pixels of the shrunk image.
        window_scales, window_ratios, window_step: see ``SlidingWindow``.
    """

    proposal_method: ProposalMethod = "selective_search"
    proposals: int = 2000
    proposal_cache: int = 4000
    search_size: int = 500
    search_colours: tuple[str, ...] = ("hsv", "lab")
    search_scales: tuple[float, ...] = (50.0, 100.0)
    search_similarities: tuple[str, ...] = ("ctsf", "tsf")
    search_sigma: float = 0.8
    search_min_side: float = 8.0
    window_scales: tuple[float, ...] = WINDOW_SCALES
    window_ratios: tuple[float, ...] = WINDOW_RATIOS
    window_step: float = WINDOW_STEP

    def __post_init__(self) -> None:
        check_choices(self, proposal_method=get_args(ProposalMethod))
        check_at_least(self, proposals=1, proposal_cache=0, search_size=32)
        self.selective_search(), self.sliding_window()  # they check their own

    def selective_search(self) -> SelectiveSearch:
        return SelectiveSearch(
            colours=self.search_colours,
            scales=self.search_scales,
            similarities=self.search_similarities,
            sigma=self.search_sigma,
            min_side=self.search_min_side,
            limit=self.proposals,
        )

    def sliding_window(self) -> SlidingWindow:
        return SlidingWindow(
            scales=self.window_scales, ratios=self.window_ratios, step=self.window_step, limit=self.proposals
        )


class Proposer:
    """The proposals of a batch's images, from their pixels alone."""

    def __init__(self, options: ProposalOptions, preprocessing: Preprocessing) -> None:
        self._options = options
        self._preprocessing = preprocessing
        self._search, self._window = options.selective_search(), options.sliding_window()
        self._kept: dict[bytes, Tensor] = {}
        self._keys: list[bytes] = []
        self._random = random.Random(0)

    @torch.no_grad()
    def propose(self, batch: Batch) -> list[Tensor]:
        """(P, 4) float32 xyxy of each image, model pixels, on the batch's device; the likeliest first."""
        device = batch.images.device
        sizes = [(int(h), int(w)) for h, w in batch.sizes.tolist()]
        match self._options.proposal_method:
            case "sliding_window":
                windows = [torch.from_numpy(self._window.propose(*size)) for size in sizes]
                return [boxes.float().to(device) for boxes in windows]
            case "selective_search":
                images = [image[:, :h, :w] for image, (h, w) in zip(batch.images, sizes)]
                return [self._searched(to_pixels(image, self._preprocessing).cpu()).to(device) for image in images]

    def _searched(self, image: Tensor) -> Tensor:
        """An image and its mirror image have mirrored proposals: which one is searched, their digests decide."""
        flipped = image.flip(2).contiguous()
        image_key, flipped_key = _digest(image), _digest(flipped)
        if image_key <= flipped_key:
            return self._remembered(image, image_key)
        x1, y1, x2, y2 = self._remembered(flipped, flipped_key).unbind(1)
        width = image.shape[2]
        return torch.stack([width - x2, y1, width - x1, y2], 1)

    def _remembered(self, image: Tensor, key: bytes) -> Tensor:
        found = self._kept.get(key)
        if found is None:
            found = self._search_boxes(image)
            self._keep(key, found)
        return found

    def _search_boxes(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        shrink = min(1.0, self._options.search_size / max(height, width))
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        boxes = self._search.propose(resize_image(image, size).permute(1, 2, 0).contiguous().numpy())
        scale = torch.tensor([width / size[1], height / size[0]]).repeat(2)
        return torch.from_numpy(boxes).float() * scale

    def _keep(self, key: bytes, boxes: Tensor) -> None:
        limit = self._options.proposal_cache
        if limit == 0:
            return
        if len(self._keys) < limit:
            self._keys.append(key)
        else:
            # By chance: epochs come round, and the oldest is the one that is needed next.
            place = self._random.randrange(limit)
            del self._kept[self._keys[place]]
            self._keys[place] = key
        self._kept[key] = boxes


def to_pixels(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(3, H, W) normalised to uint8 RGB; what was uint8 before ``make_batch`` comes back as it was."""
    mean = torch.tensor(preprocessing.mean, device=image.device)[:, None, None]
    std = torch.tensor(preprocessing.std, device=image.device)[:, None, None]
    return (image.float() * std + mean).round().clamp(0, 255).to(torch.uint8)


def _digest(image: Tensor) -> bytes:
    pixels = image.contiguous().numpy()
    return hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()
