"""Selective search against loops that do what the papers say, one pixel and one pair at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from detectors.blocks.proposals_grouping import Segments, boxes_of_hierarchy, merge_all
from detectors.blocks.proposals_search import (
    COLOURS,
    SelectiveSearch,
    colour_bins,
    describe,
    segment,
    texture_bins,
    to_colour,
)


def a_picture(seed: int, height: int = 30, width: int = 26) -> NDArray[np.uint8]:
    """Smooth noise: no two neighbours differ by the same."""
    noise = gaussian_filter(np.random.default_rng(seed).random((height, width, 3)), (1.5, 1.5, 0))
    return ((noise - noise.min()) / np.ptp(noise) * 255).round().astype(np.uint8)


def segmented_by_loops(channels: NDArray[np.float32], scale: float, least: int) -> NDArray[np.int64]:
    """Felzenszwalb & Huttenlocher: edges by ascending weight, each against what its two components hold already."""
    height, width, _ = channels.shape
    pixels = channels.astype(np.float64)
    edges = []
    for y, x in np.ndindex(height, width):
        for v, u in ((y, x + 1), (y + 1, x), (y + 1, x + 1), (y + 1, x - 1)):
            if v < height and 0 <= u < width:
                weight = math.sqrt(((pixels[y, x] - pixels[v, u]) ** 2).sum())
                edges.append((weight, y * width + x, v * width + u))
    component = {i: {i} for i in range(height * width)}
    inside = dict.fromkeys(component, 0.0)
    for weight, a, b in sorted(edges):
        one, other = component[a], component[b]
        limit = min(inside[min(c)] + scale / 255 / len(c) for c in (one, other))
        if one is not other and weight <= limit:
            join(component, one, other)
            inside[min(component[a])] = weight
    for _, a, b in sorted(edges):
        one, other = component[a], component[b]
        if one is not other and min(len(one), len(other)) < least:
            join(component, one, other)
    return np.array([min(component[i]) for i in range(height * width)]).reshape(height, width)


def join(component: dict[int, set[int]], one: set[int], other: set[int]) -> None:
    both = one | other
    for i in both:
        component[i] = both


@pytest.mark.parametrize(("scale", "least"), [(3.0, 1), (12.0, 12), (25.0, 25)])
def test_segments_against_a_loop(scale: float, least: int) -> None:
    channels = to_colour(a_picture(0, 22, 18), "rgb")
    found = segment(channels, scale if least > 1 else 1.0, 0.0)
    expected = segmented_by_loops(channels, scale if least > 1 else 1.0, least)
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == found.max() + 1 == len(np.unique(expected)) > 2


def described_by_loops(
    mask: NDArray[np.bool_], channels: NDArray[np.float32]
) -> tuple[list[float], list[float], list[int]]:
    """Colours, textures and box of the pixels of a group, counted from nothing."""
    colours, textures = [], []
    for channel in np.moveaxis(channels, 2, 0):
        counts = [0.0] * 25
        for value in channel[mask]:
            counts[min(int(value * 25), 24)] += 1
        colours += counts
        down, right = gaussian_filter(channel, 1.0, order=(1, 0)), gaussian_filter(channel, 1.0, order=(0, 1))
        for degrees in (0, 180, 45, 225, 90, 270, 135, 315):
            along = math.cos(math.radians(degrees)) * right + math.sin(math.radians(degrees)) * down
            counts = [0.0] * 10
            for value in along[mask]:
                counts[min(int(max(value, 0) / along.max() * 10), 9)] += 1
            textures += counts
    ys, xs = np.nonzero(mask)
    box = [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
    return [c / sum(colours) for c in colours], [t / sum(textures) for t in textures], box


@pytest.mark.parametrize("colour", ["hsv", "lab", "grey"])
def test_what_segments_are_compared_by_against_a_loop(colour: str) -> None:
    channels = to_colour(a_picture(1), colour)
    labels = segment(channels, 20.0, 0.8)
    segments = describe(labels, colour_bins(channels), texture_bins(channels))
    assert len(segments) > 3
    moved = 0.0
    for i in range(len(segments)):
        colours, textures, box = described_by_loops(labels == i, channels)
        assert segments.sizes[i] == (labels == i).sum() and segments.boxes[i].tolist() == box
        np.testing.assert_allclose(segments.colours[i], colours, atol=1e-12)
        # A rise at the border of a bin may be rounded into the next one.
        moved += np.abs(segments.textures[i] - textures).sum() * segments.sizes[i]
    assert moved <= 0.002 * labels.size
    beside = {
        tuple(sorted((labels[y, x], labels[v, u])))
        for y, x in np.ndindex(*labels.shape)
        for v, u in ((y + 1, x), (y, x + 1))
        if v < labels.shape[0] and u < labels.shape[1] and labels[y, x] != labels[v, u]
    }
    assert [tuple(pair) for pair in segments.neighbours.tolist()] == sorted(beside)


def grouped_by_loops(segments: Segments, measures: str) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Uijlings et al., algorithm 1: every pair is compared anew, from the segments within, before each merge."""
    parts = {i: [i] for i in range(len(segments))}
    touching = {frozenset(pair) for pair in segments.neighbours.tolist()}
    image, merges, boxes = int(segments.sizes.sum()), [], segments.boxes.tolist()

    def histogram(of: list[int], kind: NDArray[np.float64]) -> NDArray[np.float64]:
        return (kind[of] * segments.sizes[of][:, None]).sum(0) / segments.sizes[of].sum()

    def around(of: list[int]) -> list[int]:
        low, high = segments.boxes[of, :2].min(0), segments.boxes[of, 2:].max(0)
        return [*low.tolist(), *high.tolist()]

    def likeness(a: int, b: int) -> float:
        one, other = parts[a], parts[b]
        size = int(segments.sizes[one].sum() + segments.sizes[other].sum())
        x1, y1, x2, y2 = around(one + other)
        each = {
            "c": sum(min(p, q) for p, q in zip(histogram(one, segments.colours), histogram(other, segments.colours))),
            "t": sum(min(p, q) for p, q in zip(histogram(one, segments.textures), histogram(other, segments.textures))),
            "s": 1 - size / image,
            "f": 1 - ((x2 - x1) * (y2 - y1) - size) / image,
        }
        return sum(each[letter] for letter in measures)

    while len(parts) > 1:
        pairs = sorted(
            (a, b)
            for a in parts
            for b in parts
            if a < b and any(frozenset((p, q)) in touching for p in parts[a] for q in parts[b])
        )
        a, b = max(pairs, key=lambda pair: likeness(*pair))
        parts[len(boxes)] = parts.pop(a) + parts.pop(b)
        merges.append((a, b))
        boxes.append(around(parts[len(boxes)]))
    return merges, boxes


@pytest.mark.parametrize("measures", ["ctsf", "tsf", "c", "f", "s"])
def test_grouping_against_a_loop(measures: str) -> None:
    channels = to_colour(a_picture(2), "lab")
    segments = describe(segment(channels, 10.0, 0.5), colour_bins(channels), texture_bins(channels))
    assert 10 < len(segments) < 40
    merges = merge_all(segments, measures)
    expected, boxes = grouped_by_loops(segments, measures)
    assert [tuple(pair) for pair in merges.tolist()] == expected
    assert boxes_of_hierarchy(segments.boxes, merges).tolist() == boxes
    assert boxes[-1] == [0, 0, 26, 30]


def test_every_strategy_adds_its_boxes_and_none_comes_twice() -> None:
    image = a_picture(3, 48, 60)
    search = SelectiveSearch(colours=("hsv", "rgi"), scales=(10.0, 30.0), similarities=("ctsf", "f"), limit=10**6)
    every = search.propose(image)
    assert np.array_equal(search.propose(image.copy()), every)
    found = {tuple(box) for box in every.tolist()}
    assert len(found) == len(every) and (0, 0, 60, 48) in found
    expected = set()
    for colour in search.colours:
        channels = to_colour(image, colour)
        for scale in search.scales:
            segments = describe(segment(channels, scale, 0.8), colour_bins(channels), texture_bins(channels))
            for measures in search.similarities:
                boxes = boxes_of_hierarchy(segments.boxes, merge_all(segments, measures))
                expected |= {tuple(box) for box in boxes.tolist()}
    assert found == expected

    fewer = SelectiveSearch(colours=("hsv", "rgi"), scales=(10.0, 30.0), similarities=("ctsf", "f"), limit=30)
    assert np.array_equal(fewer.propose(image), every[:30])
    large = SelectiveSearch(
        colours=("hsv", "rgi"), scales=(10.0, 30.0), similarities=("ctsf", "f"), limit=10**6, min_side=9.0
    )
    sides = every[:, 2:] - every[:, :2]
    assert np.array_equal(large.propose(image), every[(sides >= 9).all(1)])


@pytest.mark.parametrize("colour", COLOURS)
def test_objects_on_plain_ground_are_found_in_every_colour_space(colour: str) -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    image[10:30, 15:45], image[35:50, 50:70] = (40, 200, 120), (30, 60, 220)
    boxes = SelectiveSearch(colours=(colour,), sigma=0.0).propose(image).tolist()
    assert [15, 10, 45, 30] in boxes and [50, 35, 70, 50] in boxes


def test_an_image_of_one_colour_is_one_proposal() -> None:
    assert SelectiveSearch().propose(np.full((20, 31, 3), 7, np.uint8)).tolist() == [[0, 0, 31, 20]]
    assert SelectiveSearch(min_side=25.0).propose(np.zeros((20, 31, 3), np.uint8)).shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colours": ("hvs",)}, "colour space 'hvs' is not known; choose of hsv, lab"),
        ({"similarities": ("ctx",)}, "similarity 'ctx': write it with letters of ctsf"),
        ({"similarities": ("cc",)}, "similarity 'cc'"),
        ({"scales": ()}, "at least one colour space, scale and similarity"),
        ({"scales": (0.5,)}, r"scales \(0.5,\) must be at least 1"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_bad_settings_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveSearch(**options)
