"""Two annotations of one id: both are kept under different ids, a word for word copy is not, and the ledger says so."""

from __future__ import annotations

from pathlib import Path

from pipelines.exports.coco import export_coco
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest


def test_shared_ids(tmp_path: Path):
    document = coco_document(3, 1)  # ids 100, 200, 300
    one, two, three = document["annotations"]
    document["annotations"] += [
        {**two, "id": 100},  # another image's id
        dict(three),  # a copy
        {**one, "id": 100, "bbox": [3, 3, 4, 4]},  # in the same image
        {**one, "id": "x"},
        {**two, "id": "x"},
    ]
    source = open_source("coco", **write_coco(tmp_path, "train", document, coco_images(3)))
    version = ingest(source, str(tmp_path / "d"))
    assert version.ledger["annotations"] == {"seen": 8, "imported": 3, "mended": 4, "dropped": 1, "quarantined": 0}
    assert version.ledger["reasons"]["annotation dropped: annotation given twice, word for word"] == 1
    assert version.ledger["reasons"]["annotation mended: annotation id given twice, this one gets a new id"] == 3
    found = {i: a for i, *_, a in open_dataset(version.reference).annotations()}
    assert found["2.jpg"].ids.tolist()[:2] == [200, 301]
    assert found["1.jpg"].ids.tolist()[:2] == [100, 302]
    assert found["1.jpg"].boxes_xywh.tolist()[1] == [3, 3, 4, 4]
    assert found["1.jpg"].attributes[1] == {"source_id": 100}
    ids = [i for a in found.values() for i in a.ids.tolist()]
    assert len(export_coco(version.reference, str(tmp_path / "out")).files) == 1 and len(ids) == 7


def test_ids_shared_within_an_image_of_any_source(tmp_path: Path):
    from pipelines.checks import check_annotations
    from pipelines.ledger import Ledger
    from tests.making import annotations

    found = annotations(3)
    found.ids[:] = [5, 5, 6]
    ledger = Ledger()
    kept = check_annotations(
        found, width=24, height=16, category_ids=frozenset({0, 7}), ledger=ledger, image_id="a", clip_tolerance=99
    )
    assert kept.ids.tolist() == [5, 7, 6] and kept.attributes[1] == {"source_id": 5}
    assert ledger.counts["annotation"] == {"imported": 2, "mended": 1, "dropped": 0, "quarantined": 0}
