"""Real images through a chain of formats: bccd -> YOLO -> boxmill -> VOC -> boxmill."""

from __future__ import annotations

import numpy as np

from pipelines.exports import find_export
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from workers.ingest import ingest


def by_image(version) -> dict[str, tuple[str, np.ndarray, list[str]]]:
    """sha256 of the image -> split, boxes and class names."""
    dataset = open_dataset(version.reference)
    names = {c.category_id: c.name for c in dataset.label_map.categories}
    return {
        r.sha256: (r.split, r.annotations.boxes, [names[int(i)] for i in r.annotations.category_ids])
        for r in dataset.records()
    }


def test_bccd_through_yolo_and_voc(boxmill_data, tmp_path):
    first = ingest(open_source("voc", root=str(boxmill_data / "bccd")), str(tmp_path / "a"))
    yolo = find_export("yolo")(first.reference, str(tmp_path / "yolo"))
    second = ingest(open_source("yolo", uri=str(tmp_path / "yolo")), str(tmp_path / "b"))
    voc = find_export("voc")(second.reference, str(tmp_path / "voc"))
    third = ingest(open_source("voc", root=str(tmp_path / "voc")), str(tmp_path / "c"))

    twins = yolo.losses.get("object equal to another one", 0)
    assert yolo.num_objects == first.num_objects - twins
    for version, images, objects in (
        (second, yolo.num_images, yolo.num_objects),
        (third, voc.num_images, voc.num_objects),
    ):
        sums = version.ledger
        assert sums["images"]["seen"] == sums["images"]["imported"] == images == first.num_images
        assert sums["annotations"]["seen"] == objects
        assert version.num_objects == objects - sums["annotations"]["dropped"]
        assert version.splits == first.splits
    before, between, after = by_image(first), by_image(second), by_image(third)
    assert before.keys() == between.keys() == after.keys()
    for sha256, (split, boxes, names) in before.items():
        # Equal objects of an image were written once.
        once = sorted(dict.fromkeys(zip(names, map(tuple, boxes.tolist()))))
        for found, tolerance in ((between[sha256], 1e-6), (after[sha256], 0.5)):
            assert found[0] == split
            other = sorted(zip(found[2], map(tuple, found[1].tolist())))
            assert [n for n, _ in other] == [n for n, _ in once]
            _assert_near([b for _, b in once], [b for _, b in other], [n for n, _ in once], tolerance)


def _assert_near(boxes, others, names, tolerance: float) -> None:
    """Each box has its own partner of its class within the tolerance; rounding may change their order."""
    left = list(zip(names, others))
    for name, box in zip(names, boxes):
        partner = min((o for o in left if o[0] == name), key=lambda o: np.abs(np.subtract(o[1], box)).max())
        assert np.abs(np.subtract(partner[1], box)).max() <= tolerance + 1e-9
        left.remove(partner)
