from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.boxes import read_boxes
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from workers.ingest import ingest


def test_all_boxes_are_those_of_the_rows(tmp_path: Path) -> None:
    source = open_source("synthetic", num_train=20, num_val=10, seed=3)
    dataset = open_dataset(ingest(source, str(tmp_path / "dataset")).reference)
    for splits in (None, tuple(dataset.splits)[:1], ("nowhere",)):
        expected = list(dataset.annotations(splits))
        found = read_boxes(dataset, splits)
        assert found.image_ids.to_pylist() == [image_id for image_id, *_ in expected]
        assert len(found.offsets) == len(expected) + 1
        for i, (*_, objects) in enumerate(expected):
            own = slice(found.offsets[i], found.offsets[i + 1])
            np.testing.assert_array_equal(found.boxes_xywh[own], objects.boxes_xywh)
            np.testing.assert_array_equal(found.category_ids[own], objects.category_ids)
        assert found.boxes_xywh.shape == (found.offsets[-1], 4)
