"""Label Studio's JSON: which annotation counts, where images are, every kind of region."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.sources import open_source
from pipelines.sources.drawn import decode_mask
from pipelines.sources.json_stream import BadJson
from pipelines.sources.label_studio_brush import encode_brush
from tests.hostile.case import jpeg
from tests.scenes import read_source
from workers.ingest import ingest


def region(kind: str, value: dict[str, Any], label: str | None = "car", **more: Any) -> dict[str, Any]:
    labels = {} if label is None else {kind: [label]}
    return {"id": "r", "type": kind, "original_width": 32, "original_height": 24, "value": value | labels, **more}


def box(x=0.0, y=0.0, w=50.0, h=50.0, label: str | None = "car", **more: Any) -> dict[str, Any]:
    return region("rectanglelabels", {"x": x, "y": y, "width": w, "height": h, "rotation": 0}, label, **more)


def task(*results: Any, image: str = "/data/upload/1/a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 5, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results)}], **more}


def make(root: Path, *tasks: Any) -> str:
    (root / "images/sub").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "sub/c d.jpg")):
        (root / "images" / name).write_bytes(jpeg(number))
    (root / "tasks.json").write_text(json.dumps(list(tasks)))
    return str(root / "tasks.json")


def read(root: Path, *results: Any):
    label_map, records, entries = read_source("label_studio", annotations=make(root, task(*results)))
    return label_map, records["a.jpg"].annotations, entries


def test_percent_become_pixels(tmp_path):
    label_map, found, entries = read(tmp_path, box(25, 50, 50, 25), box(label="bus"))
    assert label_map.names == ("bus", "car") and not entries
    np.testing.assert_allclose(found.boxes_xywh, [[8, 12, 16, 6], [0, 0, 16, 12]])
    assert found.category_ids.tolist() == [2, 1] and found.area.tolist() == [96, 192]


def test_polygons_brushes_ellipses_keypoints(tmp_path):
    mask = np.zeros((24, 32), np.bool_)
    mask[3:9, 4:20] = True
    parent = {**box(0, 0, 50, 50, "face"), "id": "p"}

    def point(name, x, y):
        return region("keypointlabels", {"x": x, "y": y, "width": 1}, name, parentID="p")

    label_map, found, entries = read(
        tmp_path,
        region("polygonlabels", {"points": [[0, 0], [50, 0], [50, 50]]}),
        region("brushlabels", {"format": "rle", "rle": encode_brush(mask)}),
        region("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0}),
        parent,
        point("nose", 10, 20),
        point("ear", 50, 50),
        {"type": "choices", "value": {"choices": ["night"]}},
        {"type": "relation", "from_id": "p", "to_id": "r"},
    )
    assert not entries and len(found) == 4
    assert found.polygons[0] == ((0, 0, 16, 0, 16, 12),) and found.area[0] == 96
    assert (decode_mask(found.rles[1]) == mask).all() and found.boxes_xywh[1].tolist() == [4, 3, 16, 6]
    np.testing.assert_allclose(found.boxes_xywh[2], [16 - 3.2, 12 - 4.8, 6.4, 9.6])
    assert label_map.categories[label_map.names.index("face")].keypoints == ("nose", "ear")
    np.testing.assert_allclose(found.keypoints[3], [[3.2, 4.8, 2], [16, 12, 2]])


def test_labels_that_stand_apart_from_the_region(tmp_path):
    labels = {"id": "r", "type": "labels", "value": {"labels": ["bus", "big"]}}
    region_ = {**box(label=None), "type": "rectangle"}
    label_map, found, entries = read(tmp_path, region_, labels)
    assert label_map.names == ("bus",) and found.attributes[0]["labels"] == ["bus", "big"] and not entries


def test_a_rotated_box_turns_about_its_corner_in_pixels(tmp_path):
    # 16 x 6 pixels at 16, 6, turned by a quarter: it hangs left of its corner.
    shape = box(50, 25, 50, 25)
    shape["value"]["rotation"] = 90
    version = ingest(open_source("label_studio", annotations=make(tmp_path / "in", task(shape))), str(tmp_path / "out"))
    assert version.ledger["annotations"]["mended"] == 1
    _, found, _ = read(tmp_path, shape)
    np.testing.assert_allclose(found.boxes_xywh, [[10, 6, 6, 16]], atol=1e-9)
    assert found.attributes[0]["rotated_percent"] == [50, 25, 50, 25]


def test_the_ground_truth_or_the_newest_counts_and_the_rest_is_accounted_for(tmp_path):
    old = {"id": 1, "result": [box(label="old")], "updated_at": "2024-01-01T00:00:00Z"}
    new = {"id": 2, "result": [box(label="new"), box(1)], "updated_at": "2024-02-01T00:00:00Z"}
    skipped = {"id": 3, "result": [box(label="x")], "updated_at": "2024-03-01T00:00:00Z", "was_cancelled": True}
    truth = {"id": 4, "result": [box(label="truth")], "updated_at": "2023-01-01T00:00:00Z", "ground_truth": True}
    prediction = {"id": 9, "result": [box(label="guess")], "score": 0.5}
    first = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [old, new, skipped], "predictions": [prediction]}
    second = {"id": 2, "data": {"image": "b.jpg"}, "annotations": [truth, new]}
    third = {"id": 3, "data": {"image": "sub/c d.jpg"}, "annotations": [skipped]}
    path = make(tmp_path / "in", first, second, third)
    _, records, entries = read_source("label_studio", annotations=path)
    assert [len(r.annotations or ()) for r in records.values()] == [2, 1, 0]
    assert records["sub/c d.jpg"].annotations is None  # somebody skipped it: nobody has looked
    assert sorted(e.reason for e in entries) == [
        *["another annotation of the task counts"] * 5,
        "the source reads annotations only",
    ]
    version = ingest(open_source("label_studio", annotations=path), str(tmp_path / "out"))
    assert version.ledger["annotations"]["seen"] == 9 and version.num_objects == 3
    _, records, _ = read_source("label_studio", annotations=path, read="predictions")
    assert records["a.jpg"].annotations.scores.tolist() == [0.5]


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("/data/upload/12/a.jpg", "a.jpg"),
        ("/data/local-files/?d=project/images/sub/c%20d.jpg", "sub/c d.jpg"),
        ("http://host:8080/data/local-files/?d=sub/c%20d.jpg", "sub/c d.jpg"),
        ("s3://bucket/sub/c d.jpg", "sub/c d.jpg"),
        ("s3://bucket/elsewhere/x.jpg", "bucket/elsewhere/x.jpg"),
        ("https://host/x.jpg?X-Amz-Signature=secret", None),
        ("https://user:secret@host/x.jpg", None),
        ("/etc/passwd", None),
        ("file:///etc/passwd", None),
        ("../images/a.jpg", None),
        ("/data/local-files/?d=../../images/a.jpg", None),
        ("", None),
    ],
)
def test_where_images_are(tmp_path, image, found):
    path = make(tmp_path, task(box(), image=image))
    items = list(open_source("label_studio", annotations=path).scan())
    if found is None:
        (entry,) = items
        assert entry.annotations == 1 and entry.subject == "image" and "secret" not in entry.detail
    else:
        assert [item.image_id for item in items] == [found]


BAD = {
    "no-numbers": (region("rectanglelabels", {"x": 1, "y": 2}), "without its numbers"),
    "text": (box("1"), "without its numbers"),
    "nan": (box(float("nan")), "without its numbers"),
    "huge": (box(10**400), "without its numbers"),
    "no-value": ({**box(), "value": None}, "without its numbers"),
    "no-area": (box(w=0), "no area"),
    "outside": (box(x=150), "outside"),
    "no-label": (box(label=None), "unknown category"),
    "two-points": (region("polygonlabels", {"points": [[0, 0], [1, 1]]}), "three points"),
    "bad-points": (region("polygonlabels", {"points": [[0, 0], [1, 1], [2]]}), "numbers"),
    "lone-keypoint": (region("keypointlabels", {"x": 1, "y": 1}), "belongs to"),
    "brush-of-nothing": (region("brushlabels", {"format": "rle", "rle": []}), "cut"),
    "brush-of-text": (region("brushlabels", {"format": "rle", "rle": ["a"]}), "not bytes"),
    "brush-of-other-size": (region("brushlabels", {"format": "rle", "rle": [0, 0, 0, 4] + [0] * 9}), "another size"),
    "brush-bomb": (
        region("brushlabels", {"format": "rle", "rle": [255] * 9}, original_width=2**30, original_height=2**30),
        "sound size",
    ),
}


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD.keys())
def test_a_bad_region_is_dropped_with_a_reason(tmp_path, bad, why):
    version = ingest(
        open_source("label_studio", annotations=make(tmp_path / "in", task(box(), bad))), str(tmp_path / "out")
    )
    sums = version.ledger["annotations"]
    assert (sums["seen"], sums["imported"], sums["dropped"]) == (2, 1, 1)
    assert any(why in reason for reason in version.ledger["reasons"]), version.ledger["reasons"]


@pytest.mark.parametrize("odd", [7, None, "x", [], {}, {"data": 3}, {"data": {"text": "no image"}}, {"image": "a.jpg"}])
def test_an_element_that_is_no_task_is_listed(tmp_path, odd):
    path = make(tmp_path, task(box()), odd)
    _, records, entries = read_source("label_studio", annotations=path)
    assert list(records) == ["a.jpg"] and [e.fate for e in entries] == ["dropped"]


@pytest.mark.parametrize("text", ["", "{}", "[", '[{"id": 1}', "[1 2]", "no"])
def test_files_that_are_not_an_array_are_refused(tmp_path, text):
    path = make(tmp_path, task(box()))
    Path(path).write_text(text)
    with pytest.raises(BadJson, match=r"tasks\.json"):
        read_source("label_studio", annotations=path)


def test_a_path_is_shortened_only_for_a_file_that_no_task_names_better(tmp_path):
    def local(path: str, label: str) -> dict[str, Any]:
        return task(box(label=label), image=f"/data/local-files/?d={path}")

    tasks = local("other/a.jpg", "bus"), local("a.jpg", "car"), local("x/y/b.jpg", "bus"), local("x/b.jpg", "car")
    label_map, records, entries = read_source("label_studio", annotations=make(tmp_path, *tasks))
    label_of = {name: label_map.names[r.annotations.category_ids[0] - 1] for name, r in records.items()}
    assert label_of == {"a.jpg": "car", "b.jpg": "car"}
    assert [(e.fate, e.reason, e.detail, e.annotations) for e in entries] == [
        ("quarantined", "image file missing", f"/data/local-files/?d={path}", 1)
        for path in ("other/a.jpg", "x/y/b.jpg")
    ]
