"""Selective search: Uijlings et al. 2013, "Selective search for object recognition", IJCV 104.

An image is cut into segments, which are grouped step by step by their likeness, and the box of every segment and group
is a proposal. This is done in several colour spaces, with several sizes of segments and several measures of likeness,
because no one of them finds all objects.

Shape legend: N pixels, R segments, D numbers of a histogram, P proposals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detectors.blocks.proposals_grouping import MEASURES, Segments, boxes_of_hierarchy, merge_all

Colour = Literal["hsv", "lab", "rgi", "hue", "grey", "rgb"]
COLOURS: tuple[Colour, ...] = get_args(Colour)

COLOUR_BINS, TEXTURE_BINS, DIRECTIONS = 25, 10, 8
"""Of each channel, of each channel and direction, and directions: section 3.2 of the paper."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveSearch:
    """What is searched in an image; the defaults are the paper's "fast" strategies, table 6.

    Attributes:
        colours: spaces that an image is segmented in: hsv, lab, rgi (normalised red and green, and intensity), hue,
            grey, rgb. The paper's "quality" takes the first five.
        scales: of the segmentation, Felzenszwalb's k: the larger, the fewer and larger the segments; also their least
            number of pixels.
        similarities: for each a grouping; the letters c, t, s, f are colour, texture, size and fill.
        sigma: of the Gaussian that smooths an image before it is segmented.
        min_side: proposals with a shorter side, pixels of the image given, are left out.
        limit: proposals an image.
    """

    colours: tuple[str, ...] = ("hsv", "lab")
    scales: tuple[float, ...] = (50.0, 100.0)
    similarities: tuple[str, ...] = ("ctsf", "tsf")
    sigma: float = 0.8
    min_side: float = 0.0
    limit: int = 2000

    def __post_init__(self) -> None:
        for colour in self.colours:
            if colour not in COLOURS:
                raise ValueError(f"colour space {colour!r} is not known; choose of {', '.join(COLOURS)}")
        for measures in self.similarities:
            if not measures or not set(measures) <= set(MEASURES) or len(set(measures)) < len(measures):
                raise ValueError(f"similarity {measures!r}: write it with letters of {MEASURES}, each once at most")
        if not self.colours or not self.scales or not self.similarities:
            raise ValueError("selective search needs at least one colour space, scale and similarity each")
        if min(self.scales) < 1 or self.sigma < 0 or self.min_side < 0 or self.limit < 1:
            raise ValueError(
                f"scales {self.scales} must be at least 1, sigma={self.sigma} and min_side={self.min_side} not "
                f"negative, limit={self.limit} at least 1"
            )

    def propose(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Boxes of one image, the likeliest first; the same image has the same ones every time.

        Args:
            image: (H, W, 3) RGB.
        Returns:
            (P, 4) xyxy, pixels; P is at most ``limit``, no box is there twice.
        """
        boxes, ranks = [], []
        for strategy, (segments, measures) in enumerate(self._strategies(image)):
            found = boxes_of_hierarchy(segments.boxes, merge_all(segments, measures))
            boxes.append(found)
            # Large groups come late and are few: mixed with chance, or the first thousand of many strategies would be
            # large boxes alone (section 4.3 of the paper).
            chance = np.random.default_rng(strategy).random(len(found))
            ranks.append(chance * np.arange(len(found), 0, -1))
        return _best_unique(np.concatenate(boxes), np.concatenate(ranks), self.min_side, self.limit)

    def _strategies(self, image: NDArray[np.uint8]) -> Iterator[tuple[Segments, str]]:
        for colour in self.colours:
            channels = to_colour(image, colour)
            bins = colour_bins(channels), texture_bins(channels)
            for scale in self.scales:
                segments = describe(segment(channels, scale, self.sigma), *bins)
                for measures in self.similarities:
                    yield segments, measures


def to_colour(image: NDArray[np.uint8], colour: str) -> Floats:
    """(H, W, 3) RGB to (H, W, C) of a colour space, each channel in 0..1."""
    from skimage import color  # here and below: a second, which only those who propose pay

    rgb = image.astype(np.float32) / 255
    channels: Any
    match colour:
        case "rgb":
            channels = rgb
        case "grey":
            channels = rgb.mean(2, keepdims=True)
        case "rgi":
            total = rgb.sum(2, keepdims=True)
            parts = np.divide(rgb, total, out=np.full_like(rgb, 1 / 3), where=total > 0)
            channels = np.concatenate([parts[..., :2], total / 3], 2)
        case "hsv":
            channels = color.rgb2hsv(rgb)
        case "hue":
            channels = color.rgb2hsv(rgb)[..., :1]
        case "lab":
            # L is 0..100, a and b are -128..127; each a byte, as usual.
            channels = color.rgb2lab(rgb) / np.array([100, 255, 255]) + np.array([0, 128 / 255, 128 / 255])
        case _:
            raise ValueError(f"colour space {colour!r} is not known; choose of {', '.join(COLOURS)}")
    return np.clip(channels, 0, 1).astype(np.float32)


def segment(channels: Floats, scale: float, sigma: float) -> NDArray[np.int64]:
    """(H, W) number of the segment of each pixel, 0 to R-1.

    Source: Felzenszwalb & Huttenlocher 2004, "Efficient graph-based image segmentation", IJCV 59.
    """
    from skimage.segmentation import felzenszwalb

    found: NDArray[np.int64] = felzenszwalb(channels, scale=scale, sigma=sigma, min_size=int(scale), channel_axis=-1)
    return found


def colour_bins(channels: Floats) -> NDArray[np.uint8]:
    """(C, N) bin of each pixel, 0 to COLOUR_BINS-1."""
    pixels = channels.reshape(-1, channels.shape[2]).T
    return np.minimum(pixels * COLOUR_BINS, COLOUR_BINS - 1).astype(np.uint8)


def texture_bins(channels: Floats) -> NDArray[np.uint8]:
    """(C * DIRECTIONS, N) bin of each pixel's rise in each direction, of TEXTURE_BINS up to the image's steepest.

    Rises are Gaussian derivatives (sigma 1) along directions 45 degrees apart; what falls in one rises in the opposite.
    """
    from scipy.ndimage import gaussian_filter

    bins = []
    for channel in np.moveaxis(channels, 2, 0):
        down, right = (gaussian_filter(channel, 1.0, order=order).ravel() for order in ((1, 0), (0, 1)))
        diagonal = np.float32(0.5**0.5)
        for slope in (right, diagonal * (right + down), down, diagonal * (down - right)):
            for rise in (slope, -slope):
                steepest = max(float(rise.max()), 1e-6)
                bins.append(np.clip(rise * (TEXTURE_BINS / steepest), 0, TEXTURE_BINS - 1).astype(np.uint8))
    return np.stack(bins)


def describe(labels: NDArray[np.int64], colours: NDArray[np.uint8], textures: NDArray[np.uint8]) -> Segments:
    """What likeness is measured by.

    Args:
        labels: (H, W) segment of each pixel.
        colours, textures: bins of each pixel, see ``colour_bins`` and ``texture_bins``.
    """
    from scipy.ndimage import find_objects

    flat = labels.ravel()
    sizes = np.bincount(flat)
    places = find_objects(labels + 1)
    boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in places], np.int64)
    histograms = [_histogram(flat, sizes, bins, n) for bins, n in ((colours, COLOUR_BINS), (textures, TEXTURE_BINS))]
    return Segments(
        sizes=sizes, boxes=boxes, colours=histograms[0], textures=histograms[1], neighbours=_neighbours(labels)
    )


def _histogram(
    flat: NDArray[np.int64], sizes: NDArray[np.int64], bins: NDArray[np.uint8], count: int
) -> NDArray[np.float64]:
    """(R, D) of each segment, of sum 1."""
    of_bins = [np.bincount(flat * count + one, minlength=len(sizes) * count).reshape(-1, count) for one in bins]
    return np.concatenate(of_bins, 1) / (len(bins) * sizes[:, None])


def _neighbours(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(E, 2) pairs of segments of which some pixels share a side; the lower number first, sorted."""
    count = int(labels.max()) + 1
    codes = []
    for one, other in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        differ = one != other
        a, b = one[differ], other[differ]
        codes.append(np.minimum(a, b) * count + np.maximum(a, b))
    pairs = np.unique(np.concatenate(codes))
    return np.stack([pairs // count, pairs % count], 1)


def _best_unique(
    boxes: NDArray[np.int64], ranks: NDArray[np.float64], min_side: float, limit: int
) -> NDArray[np.int64]:
    """The ``limit`` boxes of lowest rank, each once."""
    large = ((boxes[:, 2:] - boxes[:, :2]) >= min_side).all(1)
    boxes, ranks = boxes[large], ranks[large]
    order = np.argsort(ranks, kind="stable")
    _, first = np.unique(boxes[order], axis=0, return_index=True)
    return boxes[order[np.sort(first)[:limit]]]
