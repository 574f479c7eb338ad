"""Whatever a source can say survives Arrow, and what a source says badly survives parsing."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.checks import check_annotations
from pipelines.ledger import Ledger
from pipelines.records import Annotations, Rle
from pipelines.schema import OBJECTS, annotations_from_arrow, annotations_to_arrow
from pipelines.sources.coco_objects import annotations_to_json, parse_annotations
from tests.making import assert_same_annotations

_finite = st.floats(-1e6, 1e6, allow_nan=False)
_polygon = st.lists(_finite, max_size=8).map(tuple)
_rle = st.builds(
    Rle,
    size=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    counts=st.one_of(st.text(max_size=10), st.lists(st.integers(0, 10**6), max_size=5).map(tuple)),
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def annotations(draw: st.DrawFn) -> Annotations:
    n = draw(st.integers(0, 4))

    def each(strategy):
        return tuple(draw(st.lists(strategy, min_size=n, max_size=n)))

    points = hnp.arrays(np.float64, st.tuples(st.integers(0, 3), st.just(3)), elements=_finite)
    return Annotations(
        ids=np.array(each(st.integers(-(2**62), 2**62)), np.int64),
        boxes_xywh=np.array(each(st.tuples(*[_finite] * 4)), np.float64).reshape(n, 4),
        category_ids=np.array(each(st.integers(0, 2**40)), np.int64),
        area=np.array(each(_finite | st.just(math.nan)), np.float64),
        iscrowd=np.array(each(st.booleans()), np.bool_),
        polygons=each(st.none() | st.lists(_polygon, max_size=3).map(tuple)),
        rles=each(st.none() | _rle),
        keypoints=each(st.none() | points),
        num_keypoints=np.array(each(st.integers(-1, 17)), np.int64),
        scores=np.array(each(st.floats(0, 1)), np.float64) if draw(st.booleans()) else None,
        attributes=each(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=2)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | annotations(), max_size=5), st.integers(0, 5))
def test_annotations_survive_arrow_and_parquet(images: list[Annotations | None], skipped: int) -> None:
    array = annotations_to_arrow(images)
    assert array.type == OBJECTS
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"objects": array}), sink)
    stored = pq.read_table(pa.BufferReader(sink.getvalue()))["objects"]
    for found in (annotations_from_arrow(array), annotations_from_arrow(stored)):
        for one, other in zip(found, images, strict=True):
            assert_same_annotations(one, other)
    # A slice shares its parent's buffers; offsets must be honoured.
    for one, other in zip(annotations_from_arrow(array[skipped:]), images[skipped:], strict=True):
        assert_same_annotations(one, other)


_keys = st.sampled_from(
    ["id", "bbox", "category_id", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints", "x"]
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.dictionaries(_keys, _json, max_size=6), max_size=3))
def test_no_annotation_object_breaks_the_parser(objects: list[dict]) -> None:
    parsed = parse_annotations(json.loads(json.dumps(objects)))
    assert len(parsed) == len(objects)
    ledger = Ledger()
    kept = check_annotations(parsed, width=10, height=10, category_ids=frozenset({1}), ledger=ledger, image_id="a")
    assert ledger.seen("annotation") == len(objects)
    assert ledger.kept("annotation") == len(kept)
    (back,) = annotations_from_arrow(annotations_to_arrow([parsed]))
    assert back is not None and len(back) == len(objects)


@st.composite
def coco_objects(draw: st.DrawFn) -> dict:
    number = st.integers(-(10**6), 10**6) | _finite
    values = {
        "id": draw(st.integers(0, 2**50)),
        "image_id": 3,
        "category_id": draw(st.integers(0, 2**31)),
        "bbox": draw(st.lists(number, min_size=4, max_size=4)),
        "area": draw(number),
        "iscrowd": draw(st.integers(0, 1)),
        "segmentation": draw(
            st.lists(st.lists(number, min_size=6, max_size=8), max_size=2)
            | st.fixed_dictionaries({"size": st.just([4, 5]), "counts": st.lists(st.integers(0, 20), max_size=4)})
            | st.fixed_dictionaries({"size": st.just([4, 5]), "counts": st.text(max_size=6)})
        ),
    }
    if draw(st.booleans()):
        values["keypoints"] = draw(st.lists(st.integers(0, 99), min_size=6, max_size=6))
        values["num_keypoints"] = draw(st.integers(0, 2))
    if draw(st.booleans()):
        values["attributes"] = draw(_json.filter(lambda v: "nan" not in repr(v)))
    return values


@settings(max_examples=80, deadline=None)
@given(st.lists(coco_objects(), max_size=4))
def test_coco_objects_come_back_equal(objects: list[dict]) -> None:
    (through,) = annotations_from_arrow(annotations_to_arrow([parse_annotations(objects)]))
    assert through is not None
    assert json.loads(json.dumps(annotations_to_json(through, 3))) == objects
