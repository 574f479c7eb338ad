"""Labels are added and replaced without touching an image; what the source and the dataset do not share is told."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.ledger_listing import read_ledger
from pipelines.maintenance import verify
from pipelines.references import CategoryMismatch, DuplicateImages, EmptyDataset
from pipelines.relabelling import add_labels, coco_labels
from pipelines.revisions import diff, remove_images, roll_back
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, write_coco
from workers.ingest import ingest


@pytest.fixture
def uri(tmp_path: Path) -> str:
    ingest(open_source("coco", **write_coco(tmp_path, "train", coco_document(4), coco_images(4))), str(tmp_path / "d"))
    return str(tmp_path / "d")


def labels(folder: Path, ids: list[int], box: list[float], **change) -> str:
    """A COCO file with one box for each of these images, and one of an image that the dataset does not have."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 24, "height": 16} for i in [*ids, 99]],
        "annotations": [{"id": i, "image_id": i, "category_id": 7, "bbox": box} for i in [*ids, 99]],
        "categories": [{"id": 0, "name": "ball"}, {"id": 7, "name": "person"}],
    } | change
    path = folder / "labels.json"
    path.write_text(json.dumps(document))
    return str(path)


def boxes(reference: str) -> dict[str, list]:
    return {i: a.boxes_xywh.tolist() for i, *_, a in open_dataset(reference).annotations()}


def images(uri: str) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in Path(uri).rglob("images/**/*.parquet")}


def test_a_further_label_set(tmp_path: Path, uri: str):
    before, gt = images(uri), boxes(uri)
    file = labels(tmp_path, [2, 4], [1, 1, 3, 3])
    version = add_labels(uri, coco_labels(uri, file), label_set="second")
    assert version.reference == f"{uri}@labels/second:1" and images(uri) == before and boxes(uri) == gt
    assert boxes(version.reference) == {"2.jpg": [[1, 1, 3, 3]], "4.jpg": [[1, 1, 3, 3]]}
    assert version.ledger["images"] == {"seen": 3, "imported": 2, "mended": 0, "dropped": 1, "quarantined": 0}
    assert version.ledger["annotations"]["dropped"] == 1
    (told,) = read_ledger(version.reference).entries()
    assert (told.image_id, told.reason) == ("99.jpg", "the dataset has no such image")
    assert {r.image_id: r.sha256 for r in open_dataset(version.reference).records()}.keys() == {"2.jpg", "4.jpg"}
    again = add_labels(uri, coco_labels(uri, file), label_set="second")
    assert again.found and again.reference == version.reference
    whole = add_labels(uri, coco_labels(uri, file), label_set="third", others="unlabelled")
    assert whole.num_images == 4 and whole.num_objects == 2
    with pytest.raises(DuplicateImages):
        add_labels(uri, coco_labels(uri, labels(tmp_path, [1, 2], [1, 1, 2, 2])), label_set="second")
    assert verify(version.reference) == []


def test_labels_replaced_in_place(tmp_path: Path, uri: str):
    before, gt = images(uri), boxes(uri)
    source = coco_labels(uri, labels(tmp_path, [1, 3], [2, 2, 40, 4]))
    version = add_labels(uri, source)
    clipped = [[2, 2, 22, 4]]
    assert boxes(uri) == gt | {"1.jpg": clipped, "3.jpg": clipped}
    assert images(uri) == before and version.ledger["annotations"]["mended"] == 2
    assert diff(f"{uri}@labels/gt:1", uri).relabelled == ("1.jpg", "3.jpg")
    assert (version.num_images, version.num_objects) == (4, 6)
    again = add_labels(uri, source)
    assert again.found and again.reference == version.reference
    assert boxes(roll_back(f"{uri}@labels/gt:1").reference) == gt
    whole = add_labels(uri, source, others="leave out")
    assert boxes(whole.reference) == {"1.jpg": clipped, "3.jpg": clipped}
    assert len(read_ledger(whole.reference).plans) == 1


def test_other_categories_only_where_no_old_labels_stay(tmp_path: Path, uri: str):
    file = labels(tmp_path, [1, 2, 3, 4], [1, 1, 3, 3], categories=[{"id": 7, "name": "cat"}])
    with pytest.raises(CategoryMismatch, match="leave the others out"):
        add_labels(uri, coco_labels(uri, file))
    version = add_labels(uri, coco_labels(uri, file), others="unlabelled")
    assert open_dataset(version.reference).label_map.names == ("cat",) and version.num_objects == 4


def test_what_is_refused(tmp_path: Path, uri: str):
    file = labels(tmp_path, [1], [1, 1, 3, 3])
    with pytest.raises(ValueError, match=r"strict: .*the dataset has no such image"):
        add_labels(uri, coco_labels(uri, file), strict=True)
    turned = [{"id": 1, "file_name": "1.jpg", "width": 16, "height": 24}]
    with pytest.raises(EmptyDataset, match="another size"):
        add_labels(uri, coco_labels(uri, labels(tmp_path, [1], [1, 1, 3, 3], images=turned)))
    with pytest.raises(ValueError, match="none of the 1 images is there"):
        other = [{"id": 1, "file_name": "x.jpg", "width": 24, "height": 16}]
        add_labels(uri, coco_labels(uri, labels(tmp_path, [1], [1, 1, 3, 3], images=other)))
    with pytest.raises(ValueError, match="no COCO annotation file"):
        coco_labels(uri, str(tmp_path / "no.json"))
    with pytest.raises(ValueError, match="choose one of"):
        add_labels(uri, coco_labels(uri, file), others="all")  # type: ignore[arg-type]
    assert open_dataset(uri).version == 1


def test_any_source_can_give_labels(tmp_path: Path, uri: str):
    document = coco_document(3)
    for annotation in document["annotations"]:
        annotation["bbox"] = [4, 4, 5, 5]
    other = open_source("coco", **write_coco(tmp_path / "again", "train", document, coco_images(3)))
    version = add_labels(uri, other, label_set="again")
    assert boxes(version.reference) == {f"{i}.jpg": [[4, 4, 5, 5]] * 2 for i in (1, 2, 3)}


def test_beside_other_changes(tmp_path: Path, uri: str):
    source = coco_labels(uri, labels(tmp_path, [1, 3], [2, 2, 4, 4]))
    more = write_coco(tmp_path, "val", coco_document(2, first_id=11), coco_images(2, first_id=11))
    with ThreadPoolExecutor(3) as pool:
        done = [
            pool.submit(add_labels, uri, source),
            pool.submit(remove_images, uri, ["2.jpg"]),
            pool.submit(ingest, open_source("coco", **more), uri),
        ]
        for future in done:
            future.result()
    found = boxes(uri)
    assert found["1.jpg"] == found["3.jpg"] == [[2, 2, 4, 4]]
    assert sorted(found) == ["1.jpg", "11.jpg", "12.jpg", "3.jpg", "4.jpg"]
    assert open_dataset(uri).num_objects == sum(map(len, found.values()))
