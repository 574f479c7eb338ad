"""Masks as bitmaps at the image's size and at a smaller one, and how many there are."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines.bitmaps import count_masks, has_masks, rasterise
from pipelines.records import Annotations, Rle
from pipelines.schema import annotations_to_arrow
from pipelines.sources.drawn import encode_mask
from tests.evaluated import synthetic_records

SIZE = (256, 256)


@pytest.fixture(scope="module")
def scene() -> Annotations:
    (record,), _ = synthetic_records(1, 0, seed=11)
    assert record.annotations is not None
    return record.annotations


def as_rles(annotations: Annotations, masks: np.ndarray) -> Annotations:
    return replace(annotations, polygons=(None,) * len(annotations), rles=tuple(map(encode_mask, masks)))


def test_at_the_images_size_bitmaps_are_pycocotools_own(scene):
    masks, known = rasterise(scene, SIZE)
    drawn = [coco_mask.merge(coco_mask.frPyObjects([list(p) for p in outline], *SIZE)) for outline in scene.polygons]
    np.testing.assert_array_equal(masks, coco_mask.decode(drawn).transpose(2, 0, 1).astype(bool))
    assert known.all() and masks.any((1, 2)).all()
    again, _ = rasterise(as_rles(scene, masks), SIZE)
    np.testing.assert_array_equal(again, masks)


@pytest.mark.parametrize("form", ["polygons", "rles"])
def test_a_smaller_bitmap_is_where_most_of_each_cell_was_mask(scene, form):
    masks, _ = rasterise(scene, SIZE)
    small, _ = rasterise(scene if form == "polygons" else as_rles(scene, masks), SIZE, at=(64, 128))
    covered = masks.reshape(len(masks), 64, 4, 128, 2).mean((2, 4))
    # Where a cell is nearly full or nearly empty there is nothing to round.
    assert small[covered > 0.9].all() and not small[covered < 0.1].any()
    assert small.sum() == pytest.approx(covered.sum(), rel=0.05)


def test_an_uncompressed_crowd_is_a_mask_and_an_object_without_one_is_empty_and_unknown(scene):
    crowd = np.zeros(SIZE, bool)
    crowd[10:30, 40:90] = True
    counts = (40 * 256 + 10, *(20, 236) * 49, 20, 226 + 166 * 256)
    n = len(scene)
    mixed = replace(
        scene,
        iscrowd=np.arange(n) == 0,
        polygons=(None, None, ((1.0, 1.0, 5.0, 5.0),), *scene.polygons[3:]),
        rles=(Rle(size=SIZE, counts=counts), *(None,) * (n - 1)),
    )
    masks, known = rasterise(mixed, SIZE)
    np.testing.assert_array_equal(masks[0], crowd)
    assert known.tolist() == [True, False, False, *[True] * (n - 3)] and not masks[1:3].any()
    assert not has_masks(mixed) and has_masks(scene)
    rows = annotations_to_arrow([scene, None, mixed, Annotations.empty()])
    assert count_masks(rows) == n + n - 2
    assert count_masks(rows.slice(2)) == n - 2


def test_a_broken_mask_is_named(scene):
    broken = replace(scene, rles=(None, Rle(size=(9, 9), counts="11"), *scene.rles[2:]))
    with pytest.raises(ValueError, match=rf"object {scene.ids[1]}: its RLE is 9 x 9, the image is 256 x 256"):
        rasterise(broken, SIZE)
    overfull = replace(scene, rles=(Rle(size=SIZE, counts=(7, 70_000)), *scene.rles[1:]))
    with pytest.raises(ValueError, match=rf"object {scene.ids[0]}: the runs of its RLE fill 70007 pixels"):
        rasterise(overfull, SIZE)
