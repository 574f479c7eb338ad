from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import open_dataset
from pipelines.importing import StrictIngestError
from pipelines.ledger import LedgerEntry
from pipelines.sources import SourceItem, open_source
from pipelines.versions import CategoryMismatch, EmptyDataset
from tests.making import coco_document, coco_images, encoded, write_coco
from workers.ingest import ingest


def _items(source: Any) -> list[SourceItem]:
    return [f for f in source.scan() if isinstance(f, SourceItem)]


def _entries(source: Any) -> list[LedgerEntry]:
    return [f for f in source.scan() if isinstance(f, LedgerEntry)]


def test_images_come_in_the_files_order_with_their_annotations(tmp_path: Path) -> None:
    document = coco_document(3)
    document["annotations"].reverse()  # COCO does not group or sort them
    source = open_source("coco", **write_coco(tmp_path, "train", document, coco_images(3)))
    items = _items(source)
    assert [(i.image_id, i.coco_image_id, i.split) for i in items] == [
        ("1.jpg", 1, "train"),
        ("2.jpg", 2, "train"),
        ("3.jpg", 3, "train"),
    ]
    assert [i.annotations.ids.tolist() for i in items if i.annotations] == [[101, 100], [201, 200], [301, 300]]
    assert source.label_map.names == ("ball", "person")
    again = open_source(source.kind, **source.options)
    assert again == source


def test_the_same_name_in_other_folders_stays_two_images(tmp_path: Path) -> None:
    document = coco_document(2)
    document["images"][0]["file_name"], document["images"][1]["file_name"] = "a/x.jpg", "b/x.jpg"
    images = {"a/x.jpg": encoded(seed=1), "b/x.jpg": encoded(seed=2)}
    source = open_source("coco", **write_coco(tmp_path, "train", document, images))
    assert [i.image_id for i in _items(source)] == ["a/x.jpg", "b/x.jpg"]


def test_splits_with_the_same_names_and_ids_stay_apart(tmp_path: Path) -> None:
    splits = {s: write_coco(tmp_path, s, coco_document(2), coco_images(2)) for s in ("train", "val")}
    version = ingest(open_source("coco", splits=splits), str(tmp_path / "out"))
    records = list(open_dataset(version.reference).records())
    assert [(r.image_id, r.split) for r in records] == [
        ("train/1.jpg", "train"),
        ("train/2.jpg", "train"),
        ("val/1.jpg", "val"),
        ("val/2.jpg", "val"),
    ]
    assert [r.coco_image_id for r in records] == [1, 2, 3, 4]
    assert [r.extra["id"] for r in records] == [1, 2, 1, 2]


def test_what_cannot_be_offered_is_accounted_for(tmp_path: Path) -> None:
    document = coco_document(6)
    images = coco_images(6)
    del images["2.jpg"]  # missing file
    images["3.jpg"] = images["3.jpg"][:-30]  # cut off
    images["4.jpg"] = b"<html>404</html>"
    document["images"].append({"id": 5, "file_name": "5.jpg"})  # the same id again
    document["images"].append({"id": 77, "file_name": "6.jpg"})  # the same file again
    document["images"].append({"file_name": "1.jpg"})
    document["annotations"] += [
        {"id": 900, "image_id": 999, "category_id": 0, "bbox": [1, 1, 2, 2]},  # no such image
        {"id": 901, "image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2]},  # no such category
        {"id": 902, "image_id": 1, "category_id": 0, "bbox": [1, 1, 0, 2]},
        {"id": 903, "image_id": 1, "category_id": 0, "bbox": [1, float("nan"), 2, 2]},
        {"id": 904, "image_id": 1, "category_id": 0},
        {"id": 905, "image_id": 1, "category_id": 0, "bbox": [20, 1, 20, 2]},  # leaves the image
        {"id": 906, "image_id": 77, "category_id": 0, "bbox": [1, 1, 2, 2]},
        "nonsense",
    ]
    options = write_coco(tmp_path, "train", document, images)
    version = ingest(open_source("coco", **options), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 9, "imported": 3, "mended": 0, "dropped": 3, "quarantined": 3}
    # 3 images with 2 objects each are left out, 906 goes with its image.
    assert version.ledger["annotations"] == {
        "seen": 20, "imported": 6, "mended": 1, "dropped": 7, "quarantined": 6
    }  # fmt: skip
    assert set(version.ledger["reasons"]) == {
        "annotation dropped: box has no area",
        "annotation dropped: box is not finite",
        "annotation dropped: its image is not in the file",
        "annotation dropped: not a COCO annotation",
        "annotation dropped: unknown category",
        "annotation mended: box clipped to the image",
        "image dropped: image file already used by another entry",
        "image dropped: image id given twice in one file",
        "image dropped: image without an integer id or a file_name",
        "image quarantined: image cannot be read",
        "image quarantined: image file missing",
    }
    assert version.num_images == 3
    found = {r.image_id: r for r in open_dataset(version.reference).records()}
    assert found["1.jpg"].annotations is not None
    assert found["1.jpg"].annotations.boxes_xywh.tolist()[-1] == [20, 1, 4, 2]

    with pytest.raises(StrictIngestError, match="strict"):
        ingest(open_source("coco", **options), str(tmp_path / "out"), strict=True)
    with pytest.raises(StrictIngestError, match=r"2\.jpg"):
        ingest(open_source("coco", **options), str(tmp_path / "strict"), strict=True)
    assert not list((tmp_path / "strict").rglob("_delta_log"))


def test_declared_size_yields_to_the_header(tmp_path: Path) -> None:
    document = coco_document(1)
    document["images"][0] |= {"width": 99, "height": 16}
    version = ingest(
        open_source("coco", **write_coco(tmp_path, "train", document, coco_images(1))), str(tmp_path / "out")
    )
    assert version.ledger["images"]["mended"] == 1
    (found,) = open_dataset(version.reference).annotations()
    assert found[2:4] == (24, 16)


def test_a_person_only_the_keypoint_file_knows_is_kept(tmp_path: Path) -> None:
    document = coco_document(2, 1)
    person = {"category_id": 7, "bbox": [0, 0, 9, 9], "num_keypoints": 1}
    points: dict[str, Any] = {
        "images": document["images"],
        "categories": [{"id": 7, "name": "person", "keypoints": ["nose", "eye"], "skeleton": [[1, 2]]}],
        "annotations": [
            {**person, "id": 100, "image_id": 1, "keypoints": [1, 2, 2, 0, 0, 0]},
            {**person, "id": 555, "image_id": 2, "keypoints": [4, 4, 1, 0, 0, 0]},
        ],
    }
    extra = write_coco(tmp_path, "points", points, {})
    options = write_coco(tmp_path, "train", document, coco_images(2))
    source = open_source("coco", **options, keypoints=extra["annotations"])
    assert source.label_map.categories[1].skeleton == ((0, 1),)
    one, two = (i.annotations for i in _items(source))
    assert one is not None and two is not None
    # Boxes and categories are those of the instances file; keypoints are merged by annotation id.
    assert (one.ids.tolist(), one.boxes_xywh.tolist()) == ([100], [[1, 2, 5.5, 6]])
    assert one.keypoints[0] is not None and one.keypoints[0].tolist() == [[1, 2, 2], [0, 0, 0]]
    assert two.ids.tolist() == [200, 555]


def test_images_without_any_annotations_are_unlabelled(tmp_path: Path) -> None:
    document = coco_document(2)
    document["annotations"] = []
    source = open_source("coco", **write_coco(tmp_path, "train", document, coco_images(2)))
    version = ingest(source, str(tmp_path / "out"))
    assert [r.annotations for r in open_dataset(version.reference).records()] == [None, None]


def test_clear_errors(tmp_path: Path) -> None:
    options = write_coco(tmp_path, "train", coco_document(1), coco_images(1))
    with pytest.raises(ValueError, match=r"no COCO annotation file at .*gone\.json"):
        open_source("coco", annotations=str(tmp_path / "gone.json"), images=options["images"])
    with pytest.raises(ValueError, match="did you mean 'coco'"):
        open_source("cocos")
    with pytest.raises(ValueError, match="annotationz"):
        open_source("coco", annotationz="x")
    with pytest.raises(ValueError, match="no folder of images"):
        open_source("coco", annotations=options["annotations"], images=str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"none of the 1 images is there.*1\.jpg"):
        _items(open_source("coco", annotations=options["annotations"], images=str(tmp_path / "other")))
    (tmp_path / "broken.json").write_text('{"images": [{"id": 1,')
    with pytest.raises(ValueError, match=r"broken\.json"):
        ingest(
            open_source("coco", annotations=str(tmp_path / "broken.json"), images=options["images"]),
            str(tmp_path / "o"),
        )
    nothing = write_coco(tmp_path, "val", {**coco_document(1), "images": [], "annotations": []}, coco_images(1))
    with pytest.raises(EmptyDataset, match="not one image"):
        ingest(open_source("coco", **nothing), str(tmp_path / "o"))
    bad = write_coco(tmp_path, "test", coco_document(1), {"1.jpg": b"no image"})
    with pytest.raises(EmptyDataset, match=r"1\.jpg.*quarantined"):
        ingest(open_source("coco", **bad), str(tmp_path / "o"))
    assert list((tmp_path / "o/_quarantine").rglob("*.parquet"))


def test_categories_of_splits_must_agree(tmp_path: Path) -> None:
    other = coco_document(1)
    other["categories"] = [{"id": 0, "name": "cube"}]
    splits = {
        "train": write_coco(tmp_path, "train", coco_document(1), coco_images(1)),
        "val": write_coco(tmp_path, "val", other, coco_images(1)),
    }
    with pytest.raises(CategoryMismatch, match=r"'ball' and, in .*, 'cube'"):
        _ = open_source("coco", splits=splits).label_map


def test_a_changed_input_is_another_plan(tmp_path: Path) -> None:
    options = write_coco(tmp_path, "train", coco_document(2), coco_images(2))
    uri = str(tmp_path / "out")
    first = ingest(open_source("coco", **options), uri)
    assert ingest(open_source("coco", **options), uri).found
    (tmp_path / "train/1.jpg").write_bytes(encoded(seed=50))
    other = ingest(open_source("coco", **options), str(tmp_path / "other"))
    assert other.digest != first.digest
    with pytest.raises(ValueError, match="already has 2 of these images"):
        ingest(open_source("coco", **options), uri)


def test_further_splits_can_be_added_later(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    for number, split in enumerate(("train", "val")):
        first = 1 + 10 * number
        options = write_coco(tmp_path, split, coco_document(3, first_id=first), coco_images(3, first_id=first))
        version = ingest(open_source("coco", **options, split=split), uri)
    assert version.splits == {"train": 3, "val": 3}
    assert open_dataset(uri).metadata["ledger"]["images"]["imported"] == 6
    assert version.ledger["images"]["imported"] == 3
