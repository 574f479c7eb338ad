"""A dataset's summary against counts made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.records import Annotations
from pipelines.summary import size_buckets, summarise
from tests.evaluated import synthetic_records, write_dataset


def test_counts(tmp_path: Path) -> None:
    records, label_map = synthetic_records(3, 2)
    records[0] = replace(records[0], annotations=Annotations.empty())
    records[1] = replace(records[1], annotations=None)
    objects = Annotations.from_boxes(
        np.array([[0.0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 200, 100]]), np.array([1, 1, 6])
    )
    objects.iscrowd[2] = True
    records[2] = replace(records[2], annotations=objects)
    summary = summarise(write_dataset(tmp_path / "dataset", records, label_map))
    val = [r.annotations for r in records[3:]]
    in_val = sum(len(a) for a in val if a is not None)

    assert summary.num_images == 5
    assert summary.num_unlabelled == 1
    assert summary.num_objects == 3 + in_val
    assert [(s.name, s.images, s.objects, s.images_without_objects) for s in summary.splits] == [
        ("train", 2, 3, 1),
        ("val", 2, in_val, 0),
    ]
    stars = sum(int((a.category_ids == 1).sum()) for a in val if a is not None)
    star, figure = summary.classes[0], summary.classes[5]
    assert (star.name, star.objects, star.splits) == ("star", 2 + stars, {"train": 2, "val": stars})
    assert figure.crowds == 1
    assert figure.sizes["large"] >= 1
    assert sum(summary.objects_per_image) == 4
    assert summary.objects_per_image[0] == 1
    assert sum(n for _, n in summary.box_sides) == summary.num_objects
    assert sum(summary.sizes.values()) == summary.num_objects
    assert summary.image_sizes == ((256, 256, 4),)
    assert summary.num_crowds == 1
    assert summary.num_with_rle == 0
    assert summary.num_with_polygons == in_val
    assert summary.ledger["annotations"]["dropped"] == 1
    assert [(v.version, v.images) for v in summary.history] == [(1, 5)] or summary.history[0].images == 5
    assert json.loads(json.dumps(summary.to_json()))["kind"] == "truth"


@pytest.mark.parametrize(("area", "bucket"), [(1023.9, 0), (1024, 1), (9215.9, 1), (9216, 2), (float("nan"), 2)])
def test_size_buckets(area: float, bucket: int) -> None:
    objects = Annotations.from_boxes(np.array([[0.0, 0, 100, 100]]), np.array([1]))
    objects.area[:] = area
    assert size_buckets(objects).tolist() == [bucket]
