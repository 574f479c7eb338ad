"""Out in each format and in again: what the format carries is the same, what it does not is counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.exports import EXPORTS, find_export
from pipelines.versions import EmptyDataset, open_dataset
from tests.scenes import (
    LABELS,
    box_object,
    commit,
    mask_object,
    names_of,
    polygon_object,
    pose_object,
    read_source,
    record,
)

# Ids in folders, with spaces and letters beyond ASCII, the same name in two folders.
BOXES = [
    record("photos/a/one.jpg", [box_object(1), box_object(2, 90)], seed=1),
    record("photos/b/one.jpg", [], seed=2),
    record("photos/b/zwei drei é.jpg", [box_object(3)], seed=3, split="val"),
    record("photos/turned.jpg", [box_object(4), box_object(5)], seed=4, orientation=6),
    record("photos/mirrored.jpg", [box_object(6)], seed=5, orientation=4),
]
READERS = {
    "yolo": lambda out: {"uri": f"{out}/data.yaml"},
    "voc": lambda out: {"root": str(out)},
    "hf_parquet": lambda out: {"uri": str(out)},
    "label_studio": lambda out: {"annotations": f"{out}/tasks.json"},
    "cvat": lambda out: {"annotations": f"{out}/annotations.xml"},
    "coco": lambda out: {
        "splits": {
            s: {"annotations": f"{out}/annotations/instances_{s}.json", "images": f"{out}/{s}"}
            for s in ("train", "val")
        }
    },
}


def pairs(expected, records):
    """Records in and out by the bytes of their images."""
    by_sha = {r.sha256: r for r in records.values()}
    assert sorted(by_sha) == sorted(r.sha256 for r in expected)
    return [(before, by_sha[before.sha256]) for before in expected]


@pytest.mark.parametrize("kind", sorted(READERS))
def test_boxes_classes_splits_and_frames(tmp_path, kind):
    version = commit(tmp_path / "d", BOXES)
    out = tmp_path / "out"
    report = find_export(kind)(version.reference, str(out), images=True)
    assert (report.num_images, report.num_objects) == (5, 6)
    label_map, records, entries = read_source(kind, **READERS[kind](out))
    assert entries == []
    for before, after in pairs(BOXES, records):
        if kind != "label_studio":  # a task has no split
            assert after.split == before.split
        assert names_of(after.annotations, label_map) == names_of(before.annotations, LABELS)
        tolerance = 0.5 if kind == "voc" else 1e-6
        np.testing.assert_allclose(after.annotations.boxes, before.annotations.boxes, atol=tolerance, rtol=1e-6)


@pytest.mark.parametrize(("kind", "options"), [("yolo", {"task": "segment"}), ("label_studio", {}), ("cvat", {})])
def test_polygons(tmp_path, kind, options):
    scene = [record("a.jpg", [polygon_object(1), polygon_object(2)]), record("b.jpg", [polygon_object(3)], seed=1)]
    scene.append(record("c.jpg", [polygon_object(4)], seed=2, orientation=8))
    version = commit(tmp_path / "d", scene)
    report = find_export(kind)(version.reference, str(tmp_path / "out"), **options)
    assert report.losses == {}
    _, records, entries = read_source(kind, **READERS[kind](tmp_path / "out"))
    assert entries == []
    for before, after in pairs(scene, records):
        for one, other in zip(before.annotations.polygons, after.annotations.polygons, strict=True):
            np.testing.assert_allclose(other[0], one[0], atol=1e-6)
        np.testing.assert_allclose(after.annotations.area, before.annotations.area, rtol=1e-6)


@pytest.mark.parametrize("kind", ["label_studio", "cvat"])
@pytest.mark.parametrize("orientation", [1, 5])
def test_masks_are_equal_bit_by_bit(tmp_path, kind, orientation):
    scene = [record("a.jpg", [mask_object(1), mask_object(2)], orientation=orientation)]
    version = commit(tmp_path / "d", scene)
    find_export(kind)(version.reference, str(tmp_path / "out"))
    _, records, _ = read_source(kind, **READERS[kind](tmp_path / "out"))
    ((before, after),) = pairs(scene, records)
    assert after.annotations.rles == before.annotations.rles
    np.testing.assert_allclose(after.annotations.boxes_xywh, before.annotations.boxes_xywh, atol=1e-9)
    np.testing.assert_allclose(after.annotations.area, before.annotations.area)


@pytest.mark.parametrize(("kind", "options"), [("yolo", {"task": "pose"}), ("label_studio", {}), ("cvat", {})])
def test_keypoints(tmp_path, kind, options):
    scene = [
        record("a.jpg", [pose_object(1), pose_object(2)]),
        record("b.jpg", [pose_object(3)], seed=1, orientation=3),
    ]
    version = commit(tmp_path / "d", scene)
    find_export(kind)(version.reference, str(tmp_path / "out"), **options)
    label_map, records, entries = read_source(kind, **READERS[kind](tmp_path / "out"))
    assert entries == []
    person = label_map.categories[label_map.names.index("person")]
    # Label Studio knows only the points that occur.
    expected = LABELS.categories[1].keypoints[: 2 if kind == "label_studio" else 3]
    assert person.keypoints == expected
    if kind == "yolo":
        assert label_map.flip_pairs(1) == ((1, 2),)
    for before, after in pairs(scene, records):
        for one, other in zip(before.annotations.keypoints, after.annotations.keypoints, strict=True):
            np.testing.assert_allclose(other, one[: len(expected)], atol=1e-6)
        assert after.annotations.num_keypoints.tolist() == before.annotations.num_keypoints.tolist()


def test_cvat_keeps_the_box_where_keypoints_span_none(tmp_path):
    lone = pose_object(1).keypoints.copy()
    lone[1:] = 0
    nothing = np.zeros((3, 3))
    scene = [record("a.jpg", [box_object(i, 90, keypoints=k) for i, k in enumerate((lone, nothing))])]
    scene.append(record("b.jpg", [box_object(2, 90, keypoints=pose_object(3).keypoints)], seed=1))
    version = commit(tmp_path / "d", scene)
    report = find_export("cvat")(version.reference, str(tmp_path / "out"))
    assert report.losses == {"keypoints of an object without a skeleton": 2, "box of an object with keypoints": 1}
    _, records, entries = read_source("cvat", **READERS["cvat"](tmp_path / "out"))
    assert not entries
    np.testing.assert_allclose(records["a.jpg"].annotations.boxes_xywh, scene[0].annotations.boxes_xywh, atol=1e-9)


def test_what_a_format_cannot_carry_is_counted_and_named(tmp_path):
    scene = [
        record(
            "a.jpg",
            [
                box_object(1, iscrowd=True),
                polygon_object(2),
                mask_object(3),
                pose_object(4),
                box_object(5, attributes={"mood": "good"}),
            ],
        ),
        record("unseen.jpg", None, seed=1),
    ]
    version = commit(tmp_path / "d", scene)
    out = str(tmp_path / "out")
    yolo = find_export("yolo")(version.reference, out + "/yolo")
    assert yolo.losses == {
        "crowd flag": 1,
        "crowd left out": 1,
        "polygons": 1,
        "RLE mask": 1,
        "keypoints": 1,
        "attributes": 1,
        "image that nobody has looked at": 1,
    }
    assert (yolo.num_images, yolo.num_objects) == (1, 4)
    assert yolo.examples["RLE mask"] == ["a.jpg#3"]
    assert find_export("yolo")(version.reference, out + "/kept", crowd="keep").num_objects == 5
    hf = find_export("hf_parquet")(version.reference, out + "/hf")
    assert hf.losses["polygons"] == 1 and "crowd flag" not in hf.losses
    voc = find_export("voc")(version.reference, out + "/voc")
    assert voc.losses["keypoints"] == 1 and voc.num_images == 2
    _, records, _ = read_source("voc", root=out + "/voc")
    assert [records[f"JPEGImages/{name}.jpg"].annotations is None for name in ("a", "unseen")] == [False, True]
    _, records, _ = read_source("hf_parquet", uri=out + "/hf")
    assert [r.annotations is None for r in records.values()] == [False, True]


def test_scores_become_pre_annotations(tmp_path):
    version = commit(
        tmp_path / "d",
        [record("a.jpg", [box_object(1), box_object(2)], scores=True), record("b.jpg", [], seed=1, scores=True)],
        kind="predictions",
    )
    find_export("label_studio")(version.reference, str(tmp_path / "out"))
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    assert [set(t) for t in tasks] == [{"id", "data", "predictions"}] * 2
    assert [r["score"] for r in tasks[0]["predictions"][0]["result"]] == [0.9, 0.1]
    options = READERS["label_studio"](tmp_path / "out")
    _, records, entries = read_source("label_studio", read="predictions", **options)
    assert records["a.jpg"].annotations.scores.tolist() == [0.9, 0.1] and not entries
    _, records, entries = read_source("label_studio", classes=["ball & <bat>"], **options)
    assert records["a.jpg"].annotations is None
    assert [e.reason for e in entries] == ["the source reads annotations only"] * 2


def test_hostile_ids_stay_in_the_folder(tmp_path):
    ids = ["../../etc/a.jpg", "/abs/a.jpg", "x/a.jpg", "x/A.jpg", "x\\a.jpg", "con.jpg", "a:b*?.jpg", "no suffix", "."]
    scene = [record(image_id, [box_object(i)], seed=i) for i, image_id in enumerate(ids)]
    version = commit(tmp_path / "d", scene)
    before = {p for p in tmp_path.rglob("*") if "out" not in p.parts}
    for kind in sorted(READERS):
        out = tmp_path / "out" / kind
        find_export(kind)(version.reference, str(out), images=True)
        options = READERS[kind](out)
        if kind == "coco":
            options["splits"].pop("val")
        _, records, entries = read_source(kind, **options)
        assert entries == [] and len(records) == len(ids), kind
        pairs(scene, records)
    assert {p for p in tmp_path.rglob("*") if "out" not in p.parts} == before


def test_splits_that_are_not_there(tmp_path):
    version = commit(tmp_path / "d", BOXES)
    dataset = open_dataset(version.reference)
    for kind in EXPORTS:
        with pytest.raises(EmptyDataset, match="nope"):
            find_export(kind)(dataset, str(tmp_path / kind), splits=["nope"])
    assert find_export("yolo")(dataset, str(tmp_path / "y"), splits=["val"]).num_images == 1
    with pytest.raises(ValueError, match="did you mean 'yolo'"):
        find_export("yolov8")
