"""Every transform against loops over pixels, objects and keypoints that say what it should do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from detectors.structures import Target
from detectors.transforms import flip_horizontally, flip_vertically, zoom_and_place
from detectors.transforms_copy_paste import choose_objects, paste_objects
from detectors.transforms_rotation import rotate
from detectors.transforms_view import keep_visible, select

FILL = (7, 130, 250)
PAIRS = [[(0, 1)], [], [(1, 2)]]
FIELDS = ("boxes", "labels", "iscrowd", "masks", "keypoints", "mask_valid")


@st.composite
def scenes(draw, *, most_objects=3):
    """Noise with objects whose masks are blobs of any shape, some unknown, and three keypoints anywhere."""
    height, width = draw(st.integers(4, 10)), draw(st.integers(4, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(0, most_objects))
    masks = np.zeros((n, height, width), bool)
    boxes = np.zeros((n, 4), np.float32)
    for i in range(n):
        x1, y1 = rng.integers(0, width - 1), rng.integers(0, height - 1)
        x2, y2 = rng.integers(x1 + 1, width) + 1, rng.integers(y1 + 1, height) + 1
        masks[i, y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.7
        boxes[i] = (x1, y1, x2, y2)
    known = rng.random(n) < 0.8
    masks[~known] = False
    keypoints = np.concatenate([rng.uniform(0, [width, height], (n, 3, 2)), rng.integers(0, 3, (n, 3, 1))], -1).astype(
        np.float32
    )
    keypoints[keypoints[..., 2] == 0] = 0
    target = Target(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(rng.integers(0, 3, n)),
        iscrowd=torch.from_numpy(rng.random(n) < 0.2),
        masks=torch.from_numpy(masks),
        keypoints=torch.from_numpy(keypoints),
        mask_valid=torch.from_numpy(known) if draw(st.booleans()) or not known.all() else None,
    )
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)), target


def known(target: Target, i: int) -> bool:
    return target.mask_valid is None or bool(target.mask_valid[i])


def as_arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    """Reading one pixel of a tensor takes ten times as long."""
    return [tensor.numpy() for tensor in tensors]


def pixels_of(mask: Tensor) -> list[tuple[int, int]]:
    return [(x, y) for y, row in enumerate(mask.tolist()) for x, inside in enumerate(row) if inside]


@given(scenes(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_flips(scene, vertical):
    image, target = scene
    height, width = image.shape[1:]
    flipped_image, flipped = (flip_vertically if vertical else flip_horizontally)(image, target, PAIRS)
    pixels, turned_over, masks, flipped_masks = as_arrays(image, flipped_image, target.masks, flipped.masks)
    for y in range(height):
        for x in range(width):
            from_y, from_x = (height - 1 - y, x) if vertical else (y, width - 1 - x)
            assert (turned_over[:, y, x] == pixels[:, from_y, from_x]).all()
            assert (flipped_masks[:, y, x] == masks[:, from_y, from_x]).all()
    for i in range(len(target)):
        x1, y1, x2, y2 = target.boxes[i].tolist()
        assert flipped.boxes[i].tolist() == (
            [x1, height - y2, x2, height - y1] if vertical else [width - x2, y1, width - x1, y2]
        )
        swapped = {a: b for pair in PAIRS[int(target.labels[i])] for a, b in (pair, pair[::-1])}
        for k in range(3):
            x, y, v = target.keypoints[i, swapped.get(k, k)].tolist()
            mirrored = torch.tensor([x, height - y, v] if vertical else [width - x, y, v])
            torch.testing.assert_close(flipped.keypoints[i, k], mirrored)
    assert torch.equal(flipped.labels, target.labels) and torch.equal(flipped.iscrowd, target.iscrowd)


@given(scenes(), st.floats(0.1, 2.0), st.floats(0, 1), st.floats(0, 1), st.integers(4, 12), st.integers(4, 12))
@settings(max_examples=30, deadline=None)
def test_large_scale_jitter(scene, zoom, place_x, place_y, height, width):
    """Every pixel of a mask comes from the nearest one, boxes and keypoints go where their pixels go."""
    image, target = scene
    zoomed_image, zoomed = zoom_and_place(
        image, target, size=(height, width), zoom=zoom, place=(place_x, place_y), fill=FILL
    )
    assert zoomed_image.shape == (3, height, width) and zoomed.masks.shape == (len(target), height, width)
    sides = []
    for stored, side, place in ((image.shape[2], width, place_x), (image.shape[1], height, place_y)):
        if zoom >= 1:
            crop = min(stored, max(1, round(stored / zoom)))
            first = min(int(place * (stored - crop + 1)), stored - crop)
            sides.append((side / crop, -first * side / crop, lambda at, s=crop / side, f=first: f + (at + 0.5) * s))
        else:
            small = max(1, round(side * zoom))
            first = min(int(place * (side - small + 1)), side - small)
            sides.append((small / stored, first, lambda at, s=stored / small, f=first: (at - f + 0.5) * s))
    (scale_x, shift_x, to_x), (scale_y, shift_y, to_y) = sides
    pixels, masks, zoomed_masks = as_arrays(zoomed_image, target.masks, zoomed.masks)
    for y in range(height):
        for x in range(width):
            from_x, from_y = to_x(x), to_y(y)
            if min(abs(v - round(v)) for v in (from_x, from_y)) < 1e-3:
                continue  # between two pixels: rounding decides
            inside = 0 <= from_x < image.shape[2] and 0 <= from_y < image.shape[1]
            if not inside:
                assert tuple(pixels[:, y, x]) == FILL
            expected = masks[:, int(from_y), int(from_x)] if inside else False
            assert (zoomed_masks[:, y, x] == expected).all()
    scale, shift = torch.tensor([scale_x, scale_y]), torch.tensor([shift_x, shift_y])
    torch.testing.assert_close(zoomed.boxes, target.boxes * scale.repeat(2) + shift.repeat(2), atol=1e-4, rtol=1e-5)
    moved = target.keypoints[..., :2] * scale + shift
    torch.testing.assert_close(zoomed.keypoints[..., :2], moved, atol=1e-4, rtol=1e-5)


@given(scenes(), st.floats(-45, 45))
@settings(max_examples=30, deadline=None)
def test_rotation(scene, degrees):
    image, target = scene
    height, width = image.shape[1:]
    turned_image, turned = rotate(image, target, degrees, fill=FILL)
    pixels, turned_pixels, masks, turned_masks = as_arrays(image, turned_image, target.masks, turned.masks)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(x: float, y: float, direction: int = 1) -> tuple[float, float]:
        x, y = x - width / 2, y - height / 2
        return cos * x - direction * sin * y + width / 2, direction * sin * x + cos * y + height / 2

    def colour(channel: int, x: int, y: int) -> float:
        inside = 0 <= x < width and 0 <= y < height
        return float(pixels[channel, y, x]) if inside else FILL[channel]

    for y in range(height):
        for x in range(width):
            from_x, from_y = turn(x + 0.5, y + 0.5, -1)
            if min(abs(v - round(v)) for v in (from_x, from_y)) > 1e-3:
                inside = 0 <= from_x < width and 0 <= from_y < height
                expected = masks[:, int(from_y), int(from_x)] if inside else False
                assert (turned_masks[:, y, x] == expected).all()
            left, top = math.floor(from_x - 0.5), math.floor(from_y - 0.5)
            right_part, lower_part = from_x - 0.5 - left, from_y - 0.5 - top
            for channel in range(3):
                mixed = sum(
                    part_x * part_y * colour(channel, left + dx, top + dy)
                    for dx, part_x in ((0, 1 - right_part), (1, right_part))
                    for dy, part_y in ((0, 1 - lower_part), (1, lower_part))
                )
                assert abs(float(turned_pixels[channel, y, x]) - mixed) <= 0.51
    for i in range(len(target)):
        x1, y1, x2, y2 = target.boxes[i].tolist()
        corners = [(x1, y1), (x2, y1), (x1, y2), (x2, y2)]
        if known(target, i) and pixels_of(target.masks[i]):
            corners = [(x + dx, y + dy) for x, y in pixels_of(target.masks[i]) for dx in (0, 1) for dy in (0, 1)]
        xs, ys = zip(*(turn(x, y) for x, y in corners))
        torch.testing.assert_close(
            turned.boxes[i], torch.tensor([min(xs), min(ys), max(xs), max(ys)]), atol=1e-4, rtol=0
        )
        for k in range(3):
            x, y, v = target.keypoints[i, k].tolist()
            torch.testing.assert_close(turned.keypoints[i, k], torch.tensor([*turn(x, y), v]), atol=1e-4, rtol=0)


@given(scenes(), st.floats(0, 1, width=32), st.floats(0, 3, width=32), st.integers(-6, 6), st.integers(-6, 6))
@settings(max_examples=30, deadline=None)
def test_one_filter(scene, min_visible, min_size, left, top):
    """What is seen in a view of 8 x 8 pixels, its corner anywhere, is kept with all its fields."""
    _, target = scene
    shift = torch.tensor([left, top], dtype=torch.float32)
    moved = Target(
        boxes=target.boxes + shift.repeat(2),
        labels=target.labels,
        iscrowd=target.iscrowd,
        masks=torch.zeros(len(target), 8, 8, dtype=torch.bool),
        keypoints=torch.cat([target.keypoints[..., :2] + shift, target.keypoints[..., 2:]], -1),
        mask_valid=target.mask_valid,
    )
    for at, x, y in ((n, *pixel) for n in range(len(target)) for pixel in pixels_of(target.masks[n])):
        if 0 <= x + left < 8 and 0 <= y + top < 8:
            moved.masks[at, y + top, x + left] = True
    kept = keep_visible(moved, height=8, width=8, min_visible=min_visible, min_size=min_size)
    expected = []
    for i in range(len(target)):
        x1, y1, x2, y2 = moved.boxes[i].tolist()
        inside = [min(max(x1, 0), 8), min(max(y1, 0), 8), min(max(x2, 0), 8), min(max(y2, 0), 8)]
        w, h = max(inside[2] - inside[0], 0), max(inside[3] - inside[1], 0)
        seen = w * h >= min_visible * (x2 - x1) * (y2 - y1)
        if w >= min_size and h >= min_size and (seen or moved.iscrowd[i]):
            expected.append((i, inside))
    assert kept.boxes.tolist() == [box for _, box in expected]
    for place, (i, _) in enumerate(expected):
        assert kept.labels[place] == moved.labels[i] and kept.iscrowd[place] == moved.iscrowd[i]
        assert torch.equal(kept.masks[place], moved.masks[i])
        assert known(kept, place) == (known(moved, i) and bool(moved.masks[i].any()))
        for k, (x, y, v) in enumerate(moved.keypoints[i].tolist()):
            visible = v > 0 and 0 <= x < 8 and 0 <= y < 8
            assert kept.keypoints[place, k].tolist() == ([x, y, v] if visible else [0, 0, 0])


@given(scenes(), scenes(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32), st.sampled_from([0.0, 2.0]))
@settings(max_examples=30, deadline=None)
def test_copy_paste(scene, donor, place_x, place_y, seed, min_size):
    (image, target), (other, objects) = scene, donor
    height, width = image.shape[1:]
    chosen = choose_objects(objects, np.random.default_rng(seed))
    assert all(known(objects, i) and not objects.iscrowd[i] for i in chosen.tolist())
    assert len(chosen) or not any(known(objects, i) and not objects.iscrowd[i] for i in range(len(objects)))
    pasted_image, pasted = paste_objects(
        image, target, other, select(objects, chosen), place=(place_x, place_y), min_size=min_size
    )
    left, top = int(place_x * (width - other.shape[2])), int(place_y * (height - other.shape[1]))
    over: dict[tuple[int, int], tuple[int, int]] = {}
    new: list[tuple[int, list[float], set[tuple[int, int]]]] = []
    for i in chosen.tolist():
        inside = {(x, y) for x, y in pixels_of(objects.masks[i]) if 0 <= x + left < width and 0 <= y + top < height}
        x1, y1, x2, y2 = objects.boxes[i].tolist()
        box = [max(x1 + left, 0), max(y1 + top, 0), min(x2 + left, width), min(y2 + top, height)]
        if inside and min(box[2] - box[0], box[3] - box[1]) >= min_size:
            new.append((i, box, {(x + left, y + top) for x, y in inside}))
            over.update({(x + left, y + top): (x, y) for x, y in inside})
    pixels, other_pixels, pasted_pixels = as_arrays(image, other, pasted_image)
    for y in range(height):
        for x in range(width):
            from_x, from_y = over.get((x, y), (None, None))
            expected = pixels[:, y, x] if from_x is None else other_pixels[:, from_y, from_x]
            assert (pasted_pixels[:, y, x] == expected).all()

    place = 0
    for i in range(len(target)):
        before = set(pixels_of(target.masks[i]))
        left_over = before - over.keys()
        box = target.boxes[i].tolist()
        if not known(target, i):
            x1, y1, x2, y2 = (int(v) for v in box)
            gone = all((x, y) in over for x in range(x1, x2) for y in range(y1, y2))
        elif left_over != before:
            gone = not left_over
            if left_over:
                xs, ys = zip(*left_over)
                box = [max(box[0], min(xs)), max(box[1], min(ys)), min(box[2], max(xs) + 1), min(box[3], max(ys) + 1)]
                gone = min(box[2] - box[0], box[3] - box[1]) < min_size
        else:
            gone = False
        if gone:
            continue
        assert pasted.boxes[place].tolist() == box and pasted.labels[place] == target.labels[i]
        assert set(pixels_of(pasted.masks[place])) == left_over
        assert known(pasted, place) == known(target, i) and pasted.iscrowd[place] == target.iscrowd[i]
        for k, (x, y, v) in enumerate(target.keypoints[i].tolist()):
            covered = (math.floor(x), math.floor(y)) in over
            assert pasted.keypoints[place, k].tolist() == [x, y, min(v, 1.0) if covered else v]
        place += 1
    for i, box, pixels in new:
        assert pasted.boxes[place].tolist() == box and pasted.labels[place] == objects.labels[i]
        assert set(pixels_of(pasted.masks[place])) == pixels and known(pasted, place) and not pasted.iscrowd[place]
        place += 1
    assert {len(getattr(pasted, name)) for name in FIELDS if getattr(pasted, name) is not None} == {place}
