"""Labels say in which frame their boxes lie where EXIF turns the image; a frame that is not known is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.schema import UnknownFrame, labels_from_arrow, labels_to_arrow
from pipelines.shard_writing import label_rows
from pipelines.shards import read_labels
from pipelines.versions import open_dataset
from tests.making import commit_records, record


def test_turned_images_say_their_boxes_are_not(tmp_path: Path):
    records = [replace(record(i), exif_orientation=o) for i, o in enumerate((1, 3, 6))]
    dataset = open_dataset(commit_records(tmp_path, records, plan_id="p").reference)
    (shard,) = dataset.shards
    assert [row.box_frame for row in read_labels(shard)] == [None, "stored", "stored"]
    assert [r.exif_orientation for r in dataset.records()] == [1, 3, 6]
    assert [len(a) for *_, a in dataset.annotations()] == [0, 1, 2]


def test_an_unknown_frame_is_refused():
    table = labels_to_arrow(label_rows([record(1), record(2)]))
    frames = pa.array([None, "upright"], pa.string())
    table = table.set_column(table.schema.get_field_index("box_frame"), "box_frame", frames)
    with pytest.raises(UnknownFrame, match=r"'a/2\.jpg' lie in the frame 'upright'"):
        labels_from_arrow(table)
