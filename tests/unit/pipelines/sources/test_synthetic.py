"""The synthetic scenes: equal for equal seeds, exact truth, and not solved by colour."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.records import ImageRecord
from pipelines.sources import open_source
from pipelines.sources.synthetic import SyntheticSource
from pipelines.sources.synthetic_outline import mask_to_polygons
from pipelines.sources.synthetic_scene import SCALE_RANGE, draw, layout


def draw_all(source: SyntheticSource) -> list[ImageRecord]:
    return [source.load(item) for item in source.scan()]


@given(
    seed=st.integers(0, 2**32), index=st.integers(0, 10_000), size=st.sampled_from([(256, 256), (320, 200), (96, 130)])
)
@settings(max_examples=25, deadline=None)
def test_truth_is_inside_and_consistent(seed: int, index: int, size: tuple[int, int]) -> None:
    source = SyntheticSource(seed=seed, num_train=index + 1, num_val=0, size=size)
    item = next(item for item in source.scan() if item.payload["index"] == index)
    record, truth = source.load(item), source.load(item).annotations
    assert truth is not None
    assert Image.open(io.BytesIO(record.image)).size == size
    assert 3 <= len(truth) <= 15
    assert len(set(truth.ids.tolist())) == len(truth)
    assert not any(truth.rles)
    assert (truth.boxes >= 0).all()
    assert (truth.boxes <= np.array(size * 2)).all()
    assert (truth.boxes_xywh[:, 2:] >= 1).all()
    assert (truth.area <= truth.boxes_xywh[:, 2] * truth.boxes_xywh[:, 3]).all()
    for at in range(len(truth)):
        polygons = truth.polygons[at]
        assert polygons
        # The outline rasterises to exactly the area and the box that the truth gives.
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], *size[::-1])))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = truth.boxes_xywh[at]
        assert mask.sum() == truth.area[at]
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x, y, x + w, y + h)
        points = truth.keypoints[at]
        category = source.label_map.categories[source.label_map.to_labels(truth.category_ids[[at]])[0]]
        assert (points is not None) == bool(category.keypoints)
        if points is not None:
            assert points.shape == (len(category.keypoints), 3)
            assert ((points[:, :2] >= 0) & (points[:, :2] <= np.array(size))).all()
            assert set(points[:, 2]) <= {0, 1, 2}
            assert truth.num_keypoints[at] == (points[:, 2] > 0).sum()
            # A point on the far border lies in the last pixel.
            visible = np.minimum(points[points[:, 2] == 2, :2].astype(int), np.array(size) - 1)
            assert mask[visible[:, 1], visible[:, 0]].all()


def test_equal_seeds_draw_equal_bytes_and_others_do_not() -> None:
    source = SyntheticSource(seed=5, num_train=4, num_val=3, size=(128, 128))
    rebuilt = open_source(source.kind, **json.loads(json.dumps(source.options)))
    first, again = draw_all(source), [rebuilt.load(item) for item in rebuilt.scan()]
    assert [r.sha256 for r in first] == [r.sha256 for r in again]
    assert len({r.sha256 for r in first}) == 7
    other = draw_all(replace(source, seed=6))
    assert not {r.sha256 for r in first} & {r.sha256 for r in other}
    longer = draw_all(replace(source, num_train=6))
    assert [r.sha256 for r in longer[:4]] == [r.sha256 for r in first[:4]]
    assert [r.sha256 for r in longer[6:]] == [r.sha256 for r in first[4:]]
    assert [r.split for r in first] == ["train"] * 4 + ["val"] * 3
    assert len({r.coco_image_id for r in first}) == 7


def test_scenes_have_the_promised_variety() -> None:
    source = SyntheticSource(seed=1, num_train=80, num_val=0)
    truths = [r.annotations for r in draw_all(source)]
    assert all(t is not None for t in truths)
    classes = np.concatenate([t.category_ids for t in truths if t is not None])
    shares = np.bincount(classes)[1:] / len(classes)
    assert len(shares) == 6
    assert shares.min() > 0.1
    rng = np.random.default_rng(0)
    sides = [np.max(p.box[2:] - p.box[:2]) for _ in range(60) for p in layout(rng, (256, 256))]
    # Log-uniform over 8:1, so both ends are seen within a few per cent.
    assert SCALE_RANGE * 0.85 <= max(sides) / min(sides) <= SCALE_RANGE * 1.01
    assert min(sides) >= 18
    hidden = np.concatenate([[a["hidden"] for a in t.attributes] for t in truths if t is not None])
    assert hidden.max() <= 0.7
    assert (hidden > 0.1).mean() > 0.1
    visibilities = {v for t in truths if t is not None for k in t.keypoints if k is not None for v in k[:, 2].tolist()}
    assert visibilities >= {1.0, 2.0}


def test_covered_objects_leave_the_truth() -> None:
    rng = np.random.default_rng(2)
    placements = layout(rng, (200, 200))
    # The same object twice: the later one hides the earlier one but for its antialiased rim.
    _, seen = draw(rng, (placements[0], placements[0]), (200, 200))
    assert len(seen) == 1
    assert seen[0].hidden < 0.3


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_outlines_rasterise_to_their_mask(rows: list[list[bool]]) -> None:
    """Any mask: specks, holes, holes in holes, pixels that touch at a corner."""
    mask = np.array(rows, np.bool_)
    polygons = mask_to_polygons(mask)
    total = np.zeros(mask.shape, np.int64)
    for polygon in polygons:
        assert len(polygon) >= 8
        total += coco_mask.decode(coco_mask.frPyObjects([list(polygon)], *mask.shape))[..., 0]
    np.testing.assert_array_equal(total, mask.astype(np.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (40, 40)}, "at least 96 x 96"),
        ({"num_train": -1}, "num_train=-1"),
        ({"size": [128]}, r"\[128\] must be width, height"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source("synthetic", **options)


def test_many_small_objects_in_a_large_scene() -> None:
    source = SyntheticSource(num_train=1, num_val=0, size=(1200, 900), objects=(150, 150), diameters=(16, 40))
    assert SyntheticSource(**source.options) == source
    (record,) = draw_all(source)
    truth = record.annotations
    assert truth is not None and 120 <= len(truth) <= 150
    assert len(set(truth.ids.tolist())) == len(truth)
    sides = truth.boxes_xywh[:, 2:].max(1)
    assert sides.max() <= 42 and np.percentile(sides, 20) < 24
    # Ids of the next image begin after these.
    assert truth.ids.max() < 2 * truth.ids.min()


def test_plans_of_usual_scenes_keep_their_ids() -> None:
    assert SyntheticSource().options.keys() == {"seed", "num_train", "num_val", "size"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objects": (3, 9)}, r"objects=\[3, 9\]"),
        ({"objects": (9, 8)}, r"objects=\[9, 8\]"),
        ({"diameters": (4, 20)}, r"diameters=\[4.*at least 8"),
        ({"diameters": (20, 200)}, "at most 0.6"),
    ],
)
def test_objects_that_no_scene_can_have_are_refused(changes, said) -> None:
    with pytest.raises(ValueError, match=said):
        SyntheticSource(**changes)
