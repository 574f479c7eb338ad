"""Without hotcoco pycocotools measures masks: one warning, the same numbers."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines.metrics import rles, slow_masks
from pipelines.metrics.coco import evaluate
from pipelines.metrics.rles import BrokenMask, RleDict, decode_mask, mask_areas, mask_boxes, mask_ious
from pipelines.records import Annotations, LabelMap, Rle

SIZE = (40, 50)


@pytest.fixture
def without_hotcoco(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # an import of it fails
    rles._kernels.cache_clear()
    yield
    rles._kernels.cache_clear()


def random_masks(seed: int, number: int) -> list[RleDict]:
    rng = np.random.default_rng(seed)
    dense = np.zeros((*SIZE, number), np.uint8, order="F")
    for at in range(number):
        y, x = rng.integers(0, 30, 2)
        dense[y : y + rng.integers(0, 25), x : x + rng.integers(1, 25), at] = 1
        dense[..., at] *= rng.random(SIZE) < rng.choice([0.6, 1.0])
    made: list[RleDict] = coco_mask.encode(dense)
    return made


def test_numbers_are_hotcoco_s(without_hotcoco: None) -> None:
    found, truths = random_masks(0, 450), random_masks(1, 230)
    crowds = [at % 3 == 0 for at in range(len(truths))]
    with pytest.warns(RuntimeWarning, match="hotcoco cannot be loaded: pycocotools measures masks"):
        slow = mask_areas(found), mask_boxes(found), mask_ious(found, truths, crowds), decode_mask(found[7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert len(mask_areas([])) == len(mask_boxes([])) == 0
    sys.modules.pop("hotcoco")
    hotcoco = importlib.import_module("hotcoco")
    fast = hotcoco.mask.area(found), hotcoco.mask.to_bbox(found), hotcoco.mask.iou(found, truths, crowds)
    for one, other in zip(slow, (*fast, hotcoco.mask.decode(found[7])), strict=True):
        np.testing.assert_array_equal(one, other)
    assert slow[0].min() == 0 and slow[2].max() > 0.5


def test_runs_are_those_of_the_mask() -> None:
    for mask in random_masks(2, 60):
        dense = coco_mask.decode(mask).ravel(order="F")
        edges = np.flatnonzero(np.diff(dense, prepend=0, append=2))
        expected = np.diff(edges, prepend=0)
        np.testing.assert_array_equal(slow_masks.runs_of(mask["counts"])[: len(expected)], expected)


@pytest.mark.parametrize("counts", [b"Pl2", b"\x01", b"`", b"5O"])
def test_what_is_no_mask_is_refused_by_both(without_hotcoco: None, counts: bytes) -> None:
    good = random_masks(3, 1)[0]
    masks = [good, {"size": list(SIZE), "counts": counts}, good]
    with pytest.warns(RuntimeWarning), pytest.raises(BrokenMask) as slow:
        mask_areas(masks)
    sys.modules.pop("hotcoco")
    rles._kernels.cache_clear()
    with pytest.raises(BrokenMask) as fast:
        mask_areas(masks)
    assert slow.value.at == fast.value.at == 1


def test_masks_are_evaluated_without_it(without_hotcoco: None) -> None:
    label_map = LabelMap.from_json([{"id": 1, "name": "a"}])

    def objects(seed: int, scores: np.ndarray | None) -> Annotations:
        masks = random_masks(seed, 12)
        boxes = np.stack([coco_mask.toBbox(mask) for mask in masks])
        made = Annotations.from_boxes(boxes, np.ones(len(masks), np.int64), scores=scores)
        rle = tuple(Rle(size=SIZE, counts=mask["counts"].decode()) for mask in masks)
        return Annotations(**{**{name: getattr(made, name) for name in made.__slots__}, "rles": rle})

    truths = [("one", objects(4, None)), ("two", objects(5, None))]
    found = [("one", objects(4, np.linspace(1, 0.5, 12))), ("two", objects(6, np.full(12, 0.7)))]
    with pytest.warns(RuntimeWarning, match="hotcoco"):
        slow = evaluate(truths, found, label_map, iou_type="segm")
    expected = evaluate(truths, found, label_map, iou_type="segm", engine="pycocotools")
    np.testing.assert_array_equal(slow.precision, expected.precision)
    assert 0.2 < slow.stats["AP50"] < 0.9
    with pytest.raises(ValueError, match="engine 'hotcoco' is not installed or cannot be loaded"):
        evaluate(truths, found, label_map, iou_type="segm", engine="hotcoco")
