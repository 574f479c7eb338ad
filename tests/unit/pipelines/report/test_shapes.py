"""Masks and skeletons of the gallery: where they are drawn, what is left out, how the page shows them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from pipelines.metrics.matches import match_images
from pipelines.metrics.pairing import PairedImage
from pipelines.records import Annotations, Category, Rle
from pipelines.report.gallery import gallery
from pipelines.report.shapes import outline_path, skeleton
from pipelines.sources.drawn import encode_mask
from tests.evaluated import synthetic_records, write_dataset

PERSON = Category(category_id=1, name="person", keypoints=("head", "hip", "foot"), skeleton=((0, 1), (1, 2)))


def corners(path: str) -> list[list[tuple[int, int]]]:
    """Of each closed part."""
    return [
        [(int(x), int(y)) for x, y in re.findall(r"(-?\d+) (-?\d+)", part)] for part in path.split("Z") if part.strip()
    ]


def test_polygons_are_thinned_to_the_pixels_of_the_picture() -> None:
    turns = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    circle = tuple((np.stack([np.cos(turns), np.sin(turns)], 1) * 300 + 500).ravel().tolist())
    (fine,) = corners(outline_path((circle,), None, 1.0))
    (coarse,) = corners(outline_path((circle,), None, 20.0))
    assert 900 < len(fine) < 2000
    assert 60 < len(coarse) < 110
    assert all(abs(np.hypot(x - 500, y - 500) - 300) < 1 for x, y in coarse)
    # Smaller than a pixel of the picture, or no area at all: nothing to draw.
    assert outline_path(((1.0, 1.0, 2.0, 1.0, 2.0, 2.0),), None, 20.0) == ""
    assert outline_path(None, None, 1.0) == ""


def test_bitmaps_are_traced_where_they_lie() -> None:
    mask = np.zeros((100, 160), np.bool_)
    mask[20:60, 30:120] = True
    mask[80:90, 4:14] = True
    paths = corners(outline_path(None, encode_mask(mask), 1.0))
    assert [sorted(p) for p in paths] == [
        [(30, 20), (30, 60), (120, 20), (120, 60)],
        [(4, 80), (4, 90), (14, 80), (14, 90)],
    ]
    (coarse, small) = corners(outline_path(None, encode_mask(mask), 2.0))
    assert sorted(coarse) == [(30, 20), (30, 60), (120, 20), (120, 60)]
    assert len(small) == 4
    runs = Rle(size=(10, 10), counts=(0, 50, 50))
    assert corners(outline_path(None, runs, 1.0)) == [[(0, 0), (5, 0), (5, 10), (0, 10)]]
    assert outline_path(None, encode_mask(np.zeros((9, 9), np.bool_)), 1.0) == ""


def test_skeletons_have_what_is_labelled() -> None:
    points = np.array([[5.0, 5, 2], [5, 20, 1], [9, 40, 0]])
    drawn = skeleton(points, PERSON)
    assert drawn is not None
    assert drawn.joints == ((5.0, 5.0, False), (5.0, 20.0, True))
    assert drawn.bones == ((5.0, 5.0, 5.0, 20.0),)
    assert skeleton(points * [1, 1, 0], PERSON) is None
    assert skeleton(None, PERSON) is None


def test_the_gallery_carries_them(tmp_path) -> None:
    records, label_map = synthetic_records(0, 1)
    dataset = write_dataset(tmp_path / "d", records, label_map)
    record = records[0]
    truth = record.annotations
    assert truth is not None
    found: Annotations = replace(truth, scores=np.full(len(truth), 0.9))
    image = PairedImage(
        image_id=record.image_id,
        coco_image_id=record.coco_image_id,
        width=record.width,
        height=record.height,
        truth=truth,
        found=found,
    )
    table = match_images([(image.image_id, truth)], [(image.image_id, found)], label_map)
    (picture,) = gallery(dataset, [image], label_map, table, threshold=0.5, count=1)
    with_mask = sum(p is not None or r is not None for p, r in zip(truth.polygons, truth.rles, strict=True))
    assert with_mask > 0
    for marks in (picture.truth, picture.found):
        assert sum(mark.outline != "" for mark in marks) == with_mask
        assert sum(mark.skeleton is not None for mark in marks) == sum(
            points is not None and bool((points[:, 2] > 0).any()) for points in truth.keypoints
        )
