"""Lay out, draw and measure one synthetic scene: pure functions of a random generator.

A scene has two steps: ``layout`` places objects (cheap), ``draw`` renders them in order, later ones over earlier
ones. Truth is what can be seen: boxes, areas and polygons are of an object's visible pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipelines.records import BoolArray, FloatArray, IntArray
from pipelines.sources.synthetic_shapes import KINDS, TEXTURES, Outline, Weights

SCALE_RANGE = 8.0  # largest over smallest diameter
_SMALLEST_SHARE = 18 / 256  # of the image's shorter side
_MOST_HIDDEN = 0.7
_LARGEST_COVER = 0.5  # of the smaller of two boxes
_BESIDE = 0.4  # share of objects placed where another one is
OBJECTS = (4, 15)
"""Fewest and most that are placed; a scene has room for fewer where they are large."""

Colour = NDArray[np.float32]  # (3,) RGB, 0..255


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """One object before it is drawn.

    Attributes:
        label: index into ``KINDS``.
        box: (4,) xyxy of the whole object in pixels; it may reach a little over the image's border.
        transform: (2, 3) from the shape's unit frame to image pixels.
    """

    label: int
    outline: Outline
    box: FloatArray
    transform: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """One object's visible part.

    Attributes:
        label: index into ``KINDS``.
        origin: x, y of ``mask`` in the image.
        mask: (h, w) bool, tight around the visible pixels.
        keypoints: (K, 3) x, y, visibility (0 outside the image, 1 hidden, 2 visible) or None.
        hidden: share of the whole object's pixels that cannot be seen, 0..1.
    """

    label: int
    origin: tuple[int, int]
    mask: BoolArray
    keypoints: FloatArray | None
    hidden: float


def layout(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    objects: tuple[int, int] = OBJECTS,
    diameters: tuple[float, float] | None = None,
) -> tuple[Placement, ...]:
    """Place objects, back to front.

    Args:
        size: width, height in pixels.
        objects: fewest and most.
        diameters: smallest and largest in pixels; None takes them from the image's shorter side.
    """
    smallest, largest = diameters or (_SMALLEST_SHARE * min(size), SCALE_RANGE * _SMALLEST_SHARE * min(size))
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    room = 0.6 * size[0] * size[1]
    placed: list[Placement] = []
    for _ in range(wanted * 12):
        if len(placed) == wanted:
            break
        label = int(rng.integers(len(KINDS)))
        # Log-uniform, so that each octave of size has its share.
        least = min(smallest * KINDS[label].smallest, largest)
        diameter = least * (largest / least) ** rng.random()
        # Crowding is drawn on purpose: by chance alone few objects of this many would cover each other.
        beside = placed[int(rng.integers(len(placed)))] if placed and rng.random() < _BESIDE else None
        candidate = _place(rng, label, diameter, size, beside)
        w, h = candidate.box[2:] - candidate.box[:2]
        if w * h <= room and all(_cover(candidate.box, other.box) <= _LARGEST_COVER for other in placed):
            placed.append(candidate)
            room -= w * h
    return tuple(placed)


def _place(
    rng: np.random.Generator, label: int, diameter: float, size: tuple[int, int], beside: Placement | None
) -> Placement:
    kind = KINDS[label]
    outline = kind.outline(rng)
    turn = rng.uniform(-kind.tilt, kind.tilt)
    stretch = math.exp(rng.uniform(-0.16, 0.16))
    spin = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = spin @ np.diag([stretch, 1 / stretch])
    points = [*outline.polygons, *outline.strokes]
    points += [np.array([[x - r, y - r], [x + r, y + r]]) for x, y, r in outline.discs]
    extent = np.concatenate(points) @ linear.T
    low, high = extent.min(0) - outline.stroke_width / 2, extent.max(0) + outline.stroke_width / 2
    linear *= diameter / float(np.max(high - low))
    low, high = low * diameter / float(np.max(high - low)), high * diameter / float(np.max(high - low))
    # One in eight may be cut by the image's border.
    slack = 0.25 * diameter if rng.random() < 1 / 8 else -1.0
    span = np.array(size) + 2 * slack - (high - low)
    corner = -slack + rng.random(2) * np.maximum(span, 0)
    if beside is not None:
        centre = beside.box[:2] + rng.uniform(-0.1, 1.1, 2) * (beside.box[2:] - beside.box[:2])
        corner = np.clip(centre - (high - low) / 2, -slack, -slack + np.maximum(span, 0))
    transform = np.concatenate([linear, (corner - low)[:, None]], 1)
    return Placement(
        label=label, outline=outline, box=np.concatenate([corner, corner + high - low]), transform=transform
    )


def _cover(a: FloatArray, b: FloatArray) -> float:
    """Intersection over the smaller box."""
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    smaller = min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2]))
    return float(np.prod(sides) / smaller)


def draw(
    rng: np.random.Generator, placements: tuple[Placement, ...], size: tuple[int, int]
) -> tuple[Image.Image, tuple[Seen, ...]]:
    """Render a scene; objects hidden by more than 70 % are drawn but not in the truth.

    Args:
        size: width, height in pixels.
    Returns:
        The RGB image and what can be seen, in drawing order.
    """
    canvas = _background(rng, size)
    owner = np.full((size[1], size[0]), -1, np.int64)
    whole = [_paint(rng, canvas, owner, number, placement) for number, placement in enumerate(placements)]
    seen = [_look(owner, number, placement, whole[number]) for number, placement in enumerate(placements)]
    kept = tuple(s for s in seen if s is not None and s.hidden <= _MOST_HIDDEN)
    return _light(rng, canvas), kept


def _paint(rng: np.random.Generator, canvas: Image.Image, owner: IntArray, number: int, placement: Placement) -> int:
    """Draw one object onto the canvas and its number into ``owner``; returns its count of pixels, also unseen."""
    x0, y0 = (math.floor(v) - 1 for v in placement.box[:2])
    x1, y1 = (math.ceil(v) + 1 for v in placement.box[2:])
    transform = placement.transform - np.array([[0, 0, x0], [0, 0, y0]])
    coverage = placement.outline.rasterise(transform, (x1 - x0, y1 - y0))
    behind = np.asarray(canvas.crop((x0, y0, x1, y1)).resize((1, 1), Image.Resampling.BOX))[0, 0]
    weights = KINDS[placement.label].texture(rng, y1 - y0, x1 - x0)
    canvas.paste(_mix(weights, *_contrasting(rng, behind)), (x0, y0), coverage)
    solid = np.asarray(coverage) >= 128
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x1, canvas.width), min(y1, canvas.height)
    inside = solid[top - y0 : bottom - y0, left - x0 : right - x0]
    owner[top:bottom, left:right][inside] = number
    return int(solid.sum())


def _look(owner: IntArray, number: int, placement: Placement, whole: int) -> Seen | None:
    left, top = (max(0, math.floor(v) - 1) for v in placement.box[:2])
    right, bottom = (math.ceil(v) + 1 for v in placement.box[2:])
    mask = owner[top:bottom, left:right] == number
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    keypoints = None
    if placement.outline.keypoints is not None:
        points = placement.outline.keypoints @ placement.transform[:, :2].T + placement.transform[:, 2]
        keypoints = _keypoints(owner, number, points)
    return Seen(
        label=placement.label,
        origin=(left + int(columns[0]), top + int(rows[0])),
        mask=mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1],
        keypoints=keypoints,
        hidden=1 - float(mask.sum()) / whole,
    )


def _keypoints(owner: IntArray, number: int, points: FloatArray) -> FloatArray:
    found = np.zeros((len(points), 3))
    height, width = owner.shape
    for k, (x, y) in enumerate(points):
        if 0 <= x < width and 0 <= y < height:
            found[k] = round(float(x), 2), round(float(y), 2), 2 if owner[int(y), int(x)] == number else 1
    return found


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Soft blotches with clutter: strokes, and plain shapes that share colours and textures with the objects."""
    cells = rng.integers(40, 216, (4, 4, 3)).astype(np.float32)
    blotches = cells.mean((0, 1)) + (cells - cells.mean((0, 1))) * rng.uniform(0.2, 0.6)
    canvas = Image.fromarray(blotches.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    drawing = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(4, 14))):
        ends = rng.random((2, 2)) * size
        tint = tuple(int(v) for v in _any_colour(rng))
        drawing.line([tuple(e) for e in ends.tolist()], fill=tint, width=int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(5, 13))):
        _distract(rng, canvas)
    return canvas


def _distract(rng: np.random.Generator, canvas: Image.Image) -> None:
    shorter = min(canvas.size)
    w, h = (int(shorter * 0.06 * 6 ** rng.random()) + 3 for _ in range(2))
    mask = Image.new("L", (w, h), 0)
    drawing = ImageDraw.Draw(mask)
    match int(rng.integers(3)):
        case 0:
            drawing.rectangle((0, 0, w, h), fill=255)
        case 1:
            drawing.ellipse((0, 0, w - 1, h - 1), fill=255)
        case _:
            drawing.polygon([(int(rng.integers(w)), 0), (w, h), (0, h)], fill=255)
    weights = TEXTURES[int(rng.integers(len(TEXTURES)))](rng, h, w)
    patch = _mix(weights, _any_colour(rng), _any_colour(rng))
    corner = (
        int(rng.integers(-w // 2, canvas.width - w // 2)),
        int(rng.integers(-h // 2, canvas.height - h // 2)),
    )
    canvas.paste(patch, corner, mask)


def _any_colour(rng: np.random.Generator) -> Colour:
    return rng.integers(10, 246, 3).astype(np.float32)


def _contrasting(rng: np.random.Generator, behind: NDArray[np.uint8]) -> tuple[Colour, Colour]:
    """Two colours: the first stands off from what is behind it, the second from the first; hue is free."""
    luma = np.array([0.3, 0.59, 0.11], np.float32)
    first = second = _any_colour(rng)
    for _ in range(30):
        if abs(float(luma @ (first - behind))) >= 55:
            break
        first = _any_colour(rng)
    for _ in range(30):
        if abs(float(luma @ (second - first))) >= 70:
            break
        second = _any_colour(rng)
    return first, second


def _mix(weights: Weights, first: Colour, second: Colour) -> Image.Image:
    mixed = first + weights[..., None] * (second - first)
    return Image.fromarray(mixed.astype(np.uint8))


def _light(rng: np.random.Generator, canvas: Image.Image) -> Image.Image:
    """Blur, a lighting ramp over the scene, a colour cast and sensor noise."""
    soft = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    width, height = canvas.size
    turn, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35)
    x = np.linspace(-1, 1, width, dtype=np.float32) * math.cos(turn)
    y = np.linspace(-1, 1, height, dtype=np.float32) * math.sin(turn)
    ramp = (1 + strength * (x[None] + y[:, None]) / 1.42) * rng.uniform(0.85, 1.1)
    noise = rng.standard_normal((height, width), np.float32) * rng.uniform(2, 9)
    cast = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    lit = np.asarray(soft, np.float32) * ramp[..., None] * cast + noise[..., None]
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
