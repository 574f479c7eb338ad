"""LVIS, panoptic and captions: COCO's JSON with other things in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.exports import find_export
from pipelines.shards import read_labels
from pipelines.sources import open_source
from pipelines.sources.drawn import decode_mask
from pipelines.versions import open_dataset
from tests.hostile.case import encoded, jpeg, picture
from tests.scenes import read_source
from workers.ingest import ingest


def lvis_document(images: int) -> dict[str, Any]:
    """As LVIS v1 writes it: no file_name, no iscrowd, no supercategory; images of both of COCO's folders."""
    return {
        "info": {"version": "v1.0"},
        "licenses": [{"id": 1, "name": "CC", "url": "http://x"}],
        "images": [
            {
                "date_captured": "2013-11-14 11:18:45",
                "neg_category_ids": [3] if i % 2 else [],
                "id": 1000 + i,
                "license": 1,
                "height": 24,
                "width": 32,
                "flickr_url": f"http://farm/{i}.jpg",
                "coco_url": f"http://images.cocodataset.org/{'val' if i % 3 == 0 else 'train'}2017/{i:012d}.jpg",
                "not_exhaustive_category_ids": [1, 2] if i == 1 else [],
            }
            for i in range(images)
        ],
        "annotations": [
            {
                "id": 7 * i + k + 1,
                "image_id": 1000 + i,
                "category_id": 1 + k,
                "segmentation": [[1.5, 2, 11.25, 2, 11.25, 9.75], [20, 2, 25, 2, 25, 7]],
                "area": 61.03,
                "bbox": [1.5, 2.0, 23.5, 7.75],
            }
            for i in range(images)
            for k in range(i % 3)
        ],
        "categories": [
            {
                "id": n,
                "name": name,
                "synset": f"{name}.n.01",
                "synonyms": [name],
                "def": "a thing",
                "frequency": "rcf"[n - 1],
                "image_count": n,
                "instance_count": 2 * n,
            }
            for n, name in enumerate(("aerosol", "bat", "cup"), start=1)
        ],
    }


def write_lvis(root: Path, document: dict[str, Any]) -> str:
    for number, image in enumerate(document["images"]):
        path = root / "/".join(image["coco_url"].split("/")[-2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (root / "annotations").mkdir()
    path = root / "annotations/lvis_v1_train.json"
    path.write_text(json.dumps(document))
    return str(path)


def by_id(values: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {v["id"]: v for v in values}


def test_lvis_round_trip_is_equal_in_value(tmp_path):
    document = lvis_document(9)
    source = open_source("lvis", annotations=write_lvis(tmp_path / "in", document))
    version = ingest(source, str(tmp_path / "out"))
    assert version.ledger["annotations"]["imported"] == len(document["annotations"])
    report = find_export("lvis")(version.reference, str(tmp_path / "back"), images=True)
    found = json.loads(Path(report.files["train"]).read_text())
    for part in ("images", "annotations", "categories"):
        assert by_id(found[part]) == by_id(document[part])
    assert found["info"] == document["info"] and found["licenses"] == document["licenses"]
    for image in document["images"]:
        name = "/".join(image["coco_url"].split("/")[-2:])
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    rows = {r.coco_image_id: r for s in open_dataset(version.reference).shards for r in read_labels(s)}
    assert rows[1001].neg == (3,) and rows[1001].not_exhaustive == (1, 2) and rows[1000].neg == ()
    assert open_dataset(version.reference).label_map.categories[1].extra["frequency"] == "c"
    again = ingest(
        open_source("lvis", annotations=report.files["train"], images=str(tmp_path / "back")), str(tmp_path / "twice")
    )
    assert (again.num_images, again.num_objects) == (version.num_images, version.num_objects)


def test_lvis_with_names_and_crowd_flags_of_its_own_gets_them_back(tmp_path):
    """Some who make files like LVIS's add what COCO has; some of it may be there on some images only."""
    document = lvis_document(9)
    path = write_lvis(tmp_path / "in", document)
    document["images"][1]["file_name"] = "train2017/000000000001.jpg"  # as the URL ends
    document["images"][2]["file_name"] = "other.jpg"
    (tmp_path / "in/other.jpg").write_bytes(jpeg(2))
    for annotation, flag in zip(document["annotations"], (0, False, 1, None)):
        annotation["iscrowd"] = flag
    assert "iscrowd" not in document["annotations"][4]
    Path(path).write_text(json.dumps(document))
    version = ingest(open_source("lvis", annotations=path), str(tmp_path / "out"))
    assert version.ledger["annotations"]["imported"] == len(document["annotations"])
    report = find_export("lvis")(version.reference, str(tmp_path / "back"), images=True)
    found = json.loads(Path(report.files["train"]).read_text())
    for part in ("images", "annotations"):
        assert by_id(found[part]) == by_id(document[part])
    assert [a.get("iscrowd", "none") is False for a in found["annotations"]].count(True) == 1
    for image in document["images"]:
        name = image.get("file_name", "/".join(image["coco_url"].split("/")[-2:]))
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_lvis_reads_as_coco_too_and_hostile_urls_do_not(tmp_path):
    document = lvis_document(4)
    document["images"][1]["coco_url"] = "http://x/../../etc/passwd"
    document["images"][2]["coco_url"] = 7
    (tmp_path / "etc").mkdir()
    path = write_lvis(tmp_path / "in", lvis_document(4))
    Path(path).write_text(json.dumps(document))
    for kind in ("coco", "lvis"):
        _, records, entries = read_source(kind, annotations=path, images=str(tmp_path / "in"))
        assert len(records) == 2 and [e.subject for e in entries] == ["image", "image"]
    assert "file_name" not in records["val2017/000000000000.jpg"].extra


def test_captions_are_counted_not_imported(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    image = {"id": 1, "file_name": "a.jpg", "width": 32, "height": 24}
    instances = {
        "images": [image],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    captions = {"images": [image], "annotations": [{"id": i, "image_id": 1, "caption": "a cat"} for i in range(5)]}
    for name, document in (("instances_train", instances), ("captions_train", captions)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    source = open_source(
        "coco",
        annotations=str(tmp_path / "instances_train.json"),
        keypoints=str(tmp_path / "captions_train.json"),
        images=str(tmp_path),
    )
    version = ingest(source, str(tmp_path / "out"))
    assert version.ledger["annotations"] == {"seen": 6, "imported": 1, "mended": 0, "dropped": 5, "quarantined": 0}
    assert list(version.ledger["reasons"]) == ["annotation dropped: a caption is no object"]


def panoptic(root: Path, ids: np.ndarray, segments: list[Any], *, png: bytes | None = None, **changes: Any) -> str:
    for folder in ("images", "panoptic_train"):
        (root / folder).mkdir(parents=True)
    (root / "images/a.jpg").write_bytes(encoded(picture(1, ids.shape[1], ids.shape[0])))
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    mask = encoded(Image.fromarray(colours), "PNG") if png is None else png
    (root / "panoptic_train/a.png").write_bytes(mask)
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": ids.shape[1], "height": ids.shape[0]}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
            {"id": 200, "name": "sky", "supercategory": "stuff", "isthing": 0},
        ],
        **changes,
    }
    (root / "panoptic_train.json").write_text(json.dumps(document))
    return str(root / "panoptic_train.json")


def scene() -> np.ndarray:
    ids = np.zeros((24, 32), np.int64)
    ids[:10] = 5_000_000
    ids[4:20, 3:9] = 258
    ids[12:15, 20:30] = 258  # a segment of two parts
    ids[20:, 30:] = 99
    return ids


def test_panoptic_segments_become_masks(tmp_path):
    ids = scene()
    segments = [
        {"id": 258, "category_id": 1, "area": int((ids == 258).sum()), "bbox": [3, 4, 27, 16], "iscrowd": 0},
        {"id": 5_000_000, "category_id": 200, "iscrowd": 1},
    ]
    label_map, records, entries = read_source("panoptic", annotations=panoptic(tmp_path, ids, segments))
    assert [c.extra["isthing"] for c in label_map.categories] == [1, 0] and not entries
    found = records["a.jpg"].annotations
    for i, number in enumerate((258, 5_000_000)):
        assert (decode_mask(found.rles[i]) == (ids == number)).all()
    assert found.boxes_xywh.tolist() == [[3, 4, 27, 16], [0, 0, 32, 10]]
    assert found.area.tolist() == [(ids == 258).sum(), (ids == 5_000_000).sum()]
    assert found.iscrowd.tolist() == [False, True]
    assert records["a.jpg"].extra["unlisted_segments"] == [99]


def test_panoptic_ledger(tmp_path):
    segments = [
        {"id": 258, "category_id": 1},
        {"id": 4, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25},
        {"id": 99, "category_id": 77},
        "x",
    ]
    path = panoptic(tmp_path / "in", scene(), segments)
    document = json.loads(Path(path).read_text())
    document["annotations"] += [{"image_id": 9, "file_name": "z.png", "segments_info": [{"id": 1}] * 3}, 7]
    document["images"] += [{"id": 2, "file_name": "gone.jpg"}, {"id": 1, "file_name": "a.jpg"}]
    Path(path).write_text(json.dumps(document))
    version = ingest(open_source("panoptic", annotations=path), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 3, "imported": 1, "mended": 0, "dropped": 1, "quarantined": 1}
    assert version.ledger["annotations"] == {"seen": 8, "imported": 1, "mended": 0, "dropped": 7, "quarantined": 0}
    assert "annotation dropped: box has no area" in version.ledger["reasons"]


@pytest.mark.parametrize("png", [b"", b"no png", jpeg(1), encoded(picture(1, 9, 9), "PNG")], ids=range(4))
def test_a_bad_panoptic_png_quarantines_its_image(tmp_path, png):
    path = panoptic(tmp_path / "in", scene(), [{"id": 258, "category_id": 1}], png=png)
    with pytest.raises(ValueError, match="not one image could be imported"):
        ingest(open_source("panoptic", annotations=path), str(tmp_path / "out"))
