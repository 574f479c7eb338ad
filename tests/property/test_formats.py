"""Geometry, codecs and names of the formats, on whatever hypothesis thinks of."""

from __future__ import annotations

import contextlib
import io
import posixpath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from pipelines.exports.names import safe_names
from pipelines.exports.outlines import joined, outlines
from pipelines.sources.drawn import (
    Drawn,
    box_of_mask,
    box_of_points,
    decode_mask,
    encode_mask,
    gather,
    polygon_area,
    rotated,
    to_pixels,
)
from pipelines.sources.frames import stored_to_upright, upright_to_stored
from pipelines.sources.label_studio_brush import BadBrush, decode_brush, encode_brush
from pipelines.sources.mask_png import segment_masks
from pipelines.sources.yolo_labels import parse_labels

masks = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))
fraction = st.floats(0, 1, allow_nan=False)


@settings(deadline=None)
@given(masks)
def test_brush_round_trip(mask):
    assert (decode_brush(encode_brush(mask), mask.shape[1], mask.shape[0]) == mask).all()


@settings(deadline=None)
@given(st.lists(st.integers(-1, 256), max_size=60), st.integers(1, 6), st.integers(1, 6))
def test_any_bytes_are_a_brush_or_refused(packed, width, height):
    with contextlib.suppress(BadBrush):
        assert decode_brush(packed, width, height).shape == (height, width)


def test_brush_runs_longer_than_sixteen_bits():
    mask = np.zeros((300, 300), np.bool_)
    mask[100:250, 3:299] = True
    packed = encode_brush(mask)
    assert len(packed) < 5000
    assert (decode_brush(packed, 300, 300) == mask).all()
    with pytest.raises(BadBrush, match="cut"):
        decode_brush(packed[:40], 300, 300)
    with pytest.raises(BadBrush, match="size"):
        decode_brush(packed, 300, 299)


@settings(deadline=None)
@given(masks)
def test_outlines_enclose_the_mask_with_its_holes_filled(mask):
    from pycocotools import mask as coco_mask

    polygons = outlines(mask)
    assert bool(polygons) == mask.any()
    if not polygons:
        return
    height, width = mask.shape
    drawn = np.zeros(mask.shape, np.bool_)
    for polygon in polygons:
        assert polygon_area(polygon) >= 1
        points = np.array(polygon).reshape(-1, 2)
        assert (points >= 0).all() and (points <= [width, height]).all()
        drawn |= coco_mask.decode(coco_mask.frPyObjects([list(polygon)], height, width))[:, :, 0].astype(np.bool_)
    assert (drawn | ~mask).all()  # covers the mask; what is more are holes
    assert box_of_points([v for p in polygons for v in p]) == box_of_mask(mask)
    np.testing.assert_allclose(polygon_area(joined(polygons)), sum(map(polygon_area, polygons)), atol=1e-9)


def test_a_corner_touch_makes_two_outlines_and_a_hole_none():
    touch = np.array([[1, 0], [0, 1]], np.bool_)
    assert sorted(outlines(touch)) == sorted([(0, 0, 1, 0, 1, 1, 0, 1), (1, 1, 2, 1, 2, 2, 1, 2)])
    ring = np.ones((3, 3), np.bool_)
    ring[1, 1] = False
    assert [polygon_area(p) for p in outlines(ring)] == [9]


@settings(deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 256, 70_000])))
def test_segment_masks_equal_the_naive_ones(ids):
    found = segment_masks(ids)
    assert set(found) == set(np.unique(ids).tolist())
    for number, rle in found.items():
        assert rle == encode_mask(ids == number)
        assert (decode_mask(rle) == (ids == number)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_frames_agree_with_pillow(orientation, data):
    """A mask drawn on what Pillow shows, moved to the stored frame, marks the stored pixels; boxes go along."""
    height, width = data.draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    stored = np.zeros((height, width), np.uint8)
    y, x = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    h, w = data.draw(st.tuples(st.integers(1, height - y), st.integers(1, width - x)))
    stored[y : y + h, x : x + w] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(stored).save(sink, "PNG", exif=exif)
    shown = np.array(ImageOps.exif_transpose(Image.open(sink))) > 0
    box = box_of_mask(shown)
    corner = (box[0], box[1], 2.0)
    seen = gather(
        [
            Drawn(
                category_id=1,
                box_xywh=box,
                rle=encode_mask(shown),
                polygons=((box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]),),
                keypoints=np.array([corner, (0, 0, 0)]),
            )
        ]
    )
    fractions = to_pixels(seen, 1 / shown.shape[1], 1 / shown.shape[0])
    moved = upright_to_stored(fractions, orientation)
    found = to_pixels(moved, width, height)
    np.testing.assert_allclose(found.boxes_xywh, [[x, y, w, h]], atol=1e-9)
    assert (decode_mask(found.rles[0]) == (stored > 0)).all()
    np.testing.assert_allclose(box_of_points(found.polygons[0][0]), [x, y, w, h], atol=1e-9)
    assert found.keypoints[0][1].tolist() == [0, 0, 0]
    px, py = found.keypoints[0][0, :2]
    assert min(abs(px - x), abs(px - x - w)) < 1e-9 and min(abs(py - y), abs(py - y - h)) < 1e-9
    back = stored_to_upright(moved, orientation)
    np.testing.assert_allclose(back.boxes_xywh, fractions.boxes_xywh, atol=1e-12)
    assert back.rles == fractions.rles


@settings(deadline=None)
@given(st.integers(0, 99), fraction, fraction, st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_yolo_lines_keep_ten_digits(number, cx, cy, w, h):
    objects, bad = parse_labels(" ".join([str(number), *(format(v, ".10g") for v in (cx, cy, w, h))]))
    assert not bad
    (found,) = objects
    x, y, width, height = found.box_xywh
    assert found.category_id == number
    np.testing.assert_allclose([x + width / 2, y + height / 2, width, height], [cx, cy, w, h], rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from([None, (1, 2), (2, 3)]))
def test_every_line_of_any_text_is_an_object_or_a_bad_line(text, kpt_shape):
    objects, bad = parse_labels(text, kpt_shape)
    assert len(objects) + len(bad) == sum(bool(line.strip()) for line in text.splitlines())
    places = [o.annotation_id for o in objects] + [b.line for b in bad]
    assert len(set(places)) == len(places)


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0.1, 1e3), st.floats(0.1, 1e3), st.floats(0, 360))
def test_a_turned_box_keeps_area_and_center(x, y, w, h, degrees):
    center = (x + w / 2, y + h / 2)
    corners = rotated((x, y, w, h), degrees, about=center)
    np.testing.assert_allclose(polygon_area(corners), w * h, rtol=1e-6)
    np.testing.assert_allclose(np.array(corners).reshape(4, 2).mean(axis=0), center, atol=1e-6)


def test_a_quarter_turn_is_clockwise_on_the_screen():
    np.testing.assert_allclose(
        np.array(rotated((0, 0, 2, 1), 90, about=(0, 0))).reshape(4, 2), [[0, 0], [0, 2], [-1, 2], [-1, 0]], atol=1e-12
    )


ids = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.sampled_from(
        ["../a.jpg", "/a.jpg", "A.JPG", "a.jpg", "a.png", "a", "con.jpg", "x/../a.jpg", "x\\a.jpg", "é" * 200]
    ),
    unique=True,
    max_size=12,
)


@settings(deadline=None)
@given(ids, st.booleans(), st.booleans())
def test_names_are_safe_unique_and_stay_below(image_ids, flat, by_stem):
    names = safe_names(image_ids, flat=flat, by_stem=by_stem, without=("images",))
    assert set(names) == set(image_ids)
    folded = [n.casefold() for n in names.values()]
    assert len(set(folded)) == len(folded)
    for name in names.values():
        assert name and not name.startswith("/") and posixpath.normpath(name) == name
        parts = name.split("/")
        assert ".." not in parts and "" not in parts and "\\" not in name
        assert all(len(p.encode()) < 250 for p in parts) or flat
        assert not (flat and "/" in name)
    if by_stem:
        stems = [n.rpartition(".")[0] if n.endswith((".jpg", ".png", ".jpeg")) else n for n in folded]
        assert len(set(stems)) == len(stems)
