"""Anchors by k-means: clusters with a known answer, a naive loop, and what is read of a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detectors.base import Preprocessing
from detectors.batching import fit_size
from pipelines import anchors
from pipelines.anchors import find_anchors, fit_of, read_sizes, size_iou
from pipelines.records import Annotations, FloatArray
from pipelines.versions import open_dataset
from tests.making import commit_records, record


def naive_iou(size: FloatArray, anchor: FloatArray) -> float:
    """Of two boxes around the origin, by their corners."""
    inside = 1.0
    for axis in (0, 1):
        low = max(-size[axis] / 2, -anchor[axis] / 2)
        high = min(size[axis] / 2, anchor[axis] / 2)
        inside *= high - low
    return inside / (size[0] * size[1] + anchor[0] * anchor[1] - inside)


def random_sizes(count: int, *, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).lognormal(3.0, 0.8, (count, 2))


def test_iou_of_sizes_equals_that_of_corners() -> None:
    sizes, found = random_sizes(30), random_sizes(4, seed=1)
    expected = [[naive_iou(size, anchor) for anchor in found] for size in sizes]
    np.testing.assert_allclose(size_iou(sizes, found), expected, rtol=1e-12)
    best = np.array(expected).max(1)
    fit = fit_of(found, sizes)
    assert fit.mean_iou == pytest.approx(best.mean()) and fit.recall == pytest.approx((best >= 0.5).mean())
    assert fit.boxes == tuple(sum(np.argmax(row) == a for row in expected) for a in range(4))


def test_rounds_equal_a_naive_loop() -> None:
    sizes = random_sizes(200)
    start = sizes[:5].copy()
    expected = start.copy()
    for _ in range(300):
        groups: list[list[FloatArray]] = [[] for _ in expected]
        for size in sizes:
            groups[int(np.argmax([naive_iou(size, anchor) for anchor in expected]))].append(size)
        moved = np.array([np.mean(group, 0) if group else old for group, old in zip(groups, expected)])
        if np.allclose(moved, expected, rtol=0, atol=1e-12):
            break
        expected = moved
    np.testing.assert_allclose(anchors._cluster(sizes, start), expected, rtol=1e-9)


def test_clusters_far_apart_are_found_whatever_the_seed() -> None:
    centres = np.array([[10.0, 12.0], [30.0, 90.0], [200.0, 50.0]])
    rng = np.random.default_rng(3)
    noise = rng.uniform(-0.5, 0.5, (3, 40, 2))
    noise -= noise.mean(1, keepdims=True)  # so that the mean of each cluster is its centre
    sizes = rng.permutation((centres[:, None] + noise).reshape(-1, 2))
    by_area = centres[np.argsort(centres.prod(1))]
    for seed in range(5):
        np.testing.assert_allclose(find_anchors(sizes, 3, seed=seed), by_area, rtol=1e-9)
    assert fit_of(by_area, sizes).boxes == (40, 40, 40)


def test_as_many_anchors_as_different_sizes_fit_all() -> None:
    sizes = np.array([[5.0, 5.0], [5.0, 5.0], [9.0, 3.0], [40.0, 2.0]])
    found = find_anchors(sizes, 3)
    assert fit_of(found, sizes).mean_iou == pytest.approx(1.0)
    for num in (0, 4):
        with pytest.raises(ValueError, match=f"{num} anchors cannot be found among 3 different"):
            find_anchors(sizes, num)


def test_the_seed_decides_and_more_starts_are_never_worse() -> None:
    sizes = random_sizes(300)
    assert np.array_equal(find_anchors(sizes, 6, seed=4), find_anchors(sizes, 6, seed=4))
    one, many = (fit_of(find_anchors(sizes, 6, restarts=n), sizes).mean_iou for n in (1, 6))
    assert many >= one
    areas = find_anchors(sizes, 6).prod(1)
    assert (np.diff(areas) >= 0).all()


def test_of_many_boxes_a_sample_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = random_sizes(2000)
    whole = fit_of(find_anchors(sizes, 5), sizes).mean_iou
    monkeypatch.setattr(anchors, "MOST_BOXES", 400)
    sampled = find_anchors(sizes, 5)
    assert np.array_equal(sampled, find_anchors(sizes, 5))
    assert fit_of(sampled, sizes).mean_iou == pytest.approx(whole, abs=0.02)


def boxes(*sizes: tuple[float, float], crowd: int | None = None) -> Annotations:
    xywh = np.array([[0.0, 0.0, width, height] for width, height in sizes]).reshape(-1, 4)
    found = Annotations.from_boxes(xywh, np.zeros(len(sizes), np.int64))
    if crowd is not None:
        found.iscrowd[crowd] = True
    return found


def test_sizes_are_those_of_the_resized_images(tmp_path: Path) -> None:
    shapes = [(640, 480), (333, 1000), (20, 31)]
    objects = [boxes((64.0, 48.0), (0.0, 10.0)), boxes((30.0, 40.0), (300.0, 300.0), crowd=1), boxes()]
    records = [
        replace(record(i), width=w, height=h, annotations=a) for i, ((w, h), a) in enumerate(zip(shapes, objects))
    ]
    records += [
        replace(record(7), annotations=None),  # nobody has looked at it
        replace(record(8, split="val"), width=100, height=100, annotations=boxes((50.0, 25.0))),
        replace(record(9, split="test"), annotations=boxes()),
    ]
    dataset = open_dataset(commit_records(tmp_path / "d", records, plan_id="a").reference)
    found = read_sizes(dataset, ("train",), image_size=416)
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=416, divisor=32)
    expected = []
    for (width, height), box in zip(shapes, [(64.0, 48.0), (30.0, 40.0)]):
        resized = fit_size(height, width, preprocessing)
        expected.append([box[0] * resized[1] / width, box[1] * resized[0] / height])
    np.testing.assert_allclose(found.sizes, expected)
    assert (found.num_images, found.num_left_out) == (3, 2)
    assert read_sizes(dataset, None, image_size=200).sizes[-1].tolist() == [100.0, 50.0]
    with pytest.raises(ValueError, match=r"has no split \['dev'\]; it has \['test', 'train', 'val'\]"):
        read_sizes(dataset, ("dev",), image_size=416)
    with pytest.raises(ValueError, match=r"split test of .* has no boxes \(1 images\)"):
        read_sizes(dataset, ("test",), image_size=416)
