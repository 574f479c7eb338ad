"""What the synthetic scenes are made of: shapes told apart by outline, textures that two colours make.

Shapes live in a unit frame: x right, y down, the shape fills about -1..1. Textures are (h, w) float32 weights in
0..1 that mix an object's two colours. Colours are drawn by the scene and belong to no class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # (P, 2) x, y
Weights = NDArray[np.float32]
MaskImage = Image.Image

FIGURE_KEYPOINTS = (
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_hand",
    "right_hand",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_foot",
    "right_foot",
)
FIGURE_SKELETON = (
    (0, 1),
    (0, 2),
    (1, 2),
    (1, 3),
    (2, 4),
    (1, 5),
    (2, 6),
    (5, 6),
    (5, 7),
    (7, 9),
    (6, 8),
    (8, 10),
)
_SUPERSAMPLING = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """One object's geometry in the unit frame: closed polygons, thick strokes and discs, united.

    Attributes:
        polygons: closed outlines.
        strokes: point pairs, each drawn as a line of ``stroke_width`` with round ends.
        discs: (x, y, radius) each.
        keypoints: (K, 2) or None.
    """

    polygons: tuple[Points, ...] = ()
    strokes: tuple[Points, ...] = ()
    stroke_width: float = 0.0
    discs: tuple[tuple[float, float, float], ...] = ()
    keypoints: Points | None = None

    def rasterise(self, transform: NDArray[np.float64], size: tuple[int, int]) -> MaskImage:
        """Coverage 0..255 of the outline, antialiased.

        Args:
            transform: (2, 3) from the unit frame to pixels of the patch.
            size: width, height of the patch.
        """
        n = _SUPERSAMPLING
        mask = Image.new("L", (size[0] * n, size[1] * n), 0)
        draw = ImageDraw.Draw(mask)
        scale = n * math.sqrt(abs(float(np.linalg.det(transform[:, :2]))))

        def to_pixels(points: Points) -> list[tuple[float, float]]:
            moved = points @ transform[:, :2].T + transform[:, 2]
            return [(float(x) * n, float(y) * n) for x, y in moved]

        for polygon in self.polygons:
            draw.polygon(to_pixels(polygon), fill=255)
        half = self.stroke_width * scale / 2
        for stroke in self.strokes:
            ends = to_pixels(stroke)
            draw.line(ends, fill=255, width=max(1, round(2 * half)))
            for x, y in ends:
                draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
        for x, y, radius in self.discs:
            ((cx, cy),) = to_pixels(np.array([[x, y]]))
            r = radius * scale
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
        return mask.reduce(n)


def _star(rng: np.random.Generator) -> Outline:
    inner = rng.uniform(0.38, 0.46)
    turns = np.arange(10) * math.pi / 5 - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return Outline(polygons=(np.stack([radii * np.cos(turns), radii * np.sin(turns)], 1),))


def _cross(rng: np.random.Generator) -> Outline:
    a = rng.uniform(0.28, 0.36)
    corners = [
        (-a, -1),
        (a, -1),
        (a, -a),
        (1, -a),
        (1, a),
        (a, a),
        (a, 1),
        (-a, 1),
        (-a, a),
        (-1, a),
        (-1, -a),
    ]
    return Outline(polygons=(np.array([*corners, (-a, -a)], np.float64),))


def _gear(rng: np.random.Generator) -> Outline:
    teeth = int(rng.integers(8, 11))
    turns = np.arange(teeth * 4) * math.pi / (2 * teeth)
    radii = np.tile([1.0, 1.0, 0.74, 0.74], teeth)
    return Outline(polygons=(np.stack([radii * np.cos(turns), radii * np.sin(turns)], 1),))


def _crescent(rng: np.random.Generator) -> Outline:
    shift, inner = rng.uniform(0.5, 0.58), 0.8
    # The two circles meet where x solves x² + y² = 1 and (x - shift)² + y² = inner².
    x = (1 + shift * shift - inner * inner) / (2 * shift)
    outer_turn, inner_turn = math.acos(x), math.acos((x - shift) / inner)
    far = np.linspace(outer_turn, 2 * math.pi - outer_turn, 36)
    near = np.linspace(2 * math.pi - inner_turn, inner_turn, 30)
    arc = np.stack([np.cos(far), np.sin(far)], 1)
    bite = np.stack([shift + inner * np.cos(near), inner * np.sin(near)], 1)
    return Outline(polygons=(np.concatenate([arc, bite]) + np.array([0.15, 0.0]),))


def _arrow(rng: np.random.Generator) -> Outline:
    shaft, neck = rng.uniform(0.24, 0.32), rng.uniform(-0.05, 0.15)
    points = [(-1, -shaft), (neck, -shaft), (neck, -0.8), (1, 0), (neck, 0.8), (neck, shaft), (-1, shaft)]
    return Outline(polygons=(np.array(points, np.float64),))


def _figure(rng: np.random.Generator) -> Outline:
    """A stick figure facing the viewer: its left is at the right of the image."""
    reach = rng.uniform(0.42, 0.62, 2)
    lift = rng.uniform(-0.75, 0.25, 2)
    stride = rng.uniform(0.18, 0.42, 2)
    bend = rng.uniform(-0.06, 0.06, 2)
    keypoints = np.array(
        [
            (0.0, -0.76),
            (0.2, -0.44),
            (-0.2, -0.44),
            (reach[0], lift[0]),
            (-reach[1], lift[1]),
            (0.12, 0.14),
            (-0.12, 0.14),
            ((0.12 + stride[0]) / 2 + bend[0], 0.54),
            (-(0.12 + stride[1]) / 2 + bend[1], 0.54),
            (stride[0], 0.94),
            (-stride[1], 0.94),
        ]
    )
    torso = keypoints[[1, 2, 6, 5]]
    limbs = [(1, 3), (2, 4), (5, 7), (7, 9), (6, 8), (8, 10)]
    neck = np.array([(0.0, -0.76), (0.0, -0.4)])
    return Outline(
        polygons=(torso,),
        strokes=(neck, *(keypoints[[a, b]] for a, b in limbs)),
        stroke_width=0.17,
        discs=((0.0, -0.76, 0.22),),
        keypoints=keypoints,
    )


def _gradient(rng: np.random.Generator, h: int, w: int) -> Weights:
    turn = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    ramp = math.cos(turn) * (x / max(w, 1) - 0.5) + math.sin(turn) * (y / max(h, 1) - 0.5)
    return np.clip(ramp + 0.5, 0, 1).astype(np.float32)


def _phase(rng: np.random.Generator, h: int, w: int, turn: float, period: float) -> Weights:
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    along = (math.cos(turn) * x + math.sin(turn) * y) / period + rng.uniform(0, 1)
    return (along % 1 < 0.5).astype(np.float32)


def _period(h: int, w: int) -> float:
    return max(4.0, max(h, w) / 5)


def _stripes(rng: np.random.Generator, h: int, w: int) -> Weights:
    return _phase(rng, h, w, rng.uniform(0, math.pi), _period(h, w))


def _checks(rng: np.random.Generator, h: int, w: int) -> Weights:
    turn, period = rng.uniform(0, math.pi), 1.3 * _period(h, w)
    other = _phase(rng, h, w, turn + math.pi / 2, period)
    return np.abs(_phase(rng, h, w, turn, period) - other).astype(np.float32)


def _speckles(rng: np.random.Generator, h: int, w: int) -> Weights:
    cell = max(2, round(max(h, w) / 14))
    coarse = rng.random((h // cell + 1, w // cell + 1), np.float32)
    grain = np.repeat(np.repeat(coarse, cell, 0), cell, 1)[:h, :w]
    return (grain > 0.6).astype(np.float32)


def _plain(rng: np.random.Generator, h: int, w: int) -> Weights:
    return np.full((h, w), rng.uniform(0.0, 0.15), np.float32)


TEXTURES: tuple[Callable[[np.random.Generator, int, int], Weights], ...] = (
    _gradient,
    _stripes,
    _checks,
    _speckles,
    _plain,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A class of drawn objects.

    Attributes:
        tilt: largest rotation to either side, radians.
        smallest: least diameter as a multiple of the scene's smallest.
    """

    name: str
    outline: Callable[[np.random.Generator], Outline]
    texture: Callable[[np.random.Generator, int, int], Weights]
    tilt: float
    smallest: float = 1.0
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()


KINDS: tuple[Kind, ...] = (
    Kind(name="star", outline=_star, texture=_gradient, tilt=math.pi / 5),
    Kind(name="cross", outline=_cross, texture=_stripes, tilt=math.pi / 4),
    Kind(name="gear", outline=_gear, texture=_checks, tilt=math.pi),
    Kind(name="crescent", outline=_crescent, texture=_speckles, tilt=math.pi),
    Kind(name="arrow", outline=_arrow, texture=_plain, tilt=math.pi),
    Kind(
        name="figure",
        outline=_figure,
        texture=_plain,
        tilt=0.3,
        smallest=1.4,
        keypoints=FIGURE_KEYPOINTS,
        skeleton=FIGURE_SKELETON,
    ),
)
