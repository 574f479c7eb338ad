"""YOLO data sets: layouts, the three kinds of labels, and what goes wrong in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.checks import BadImage
from pipelines.sources import SourceItem, open_source
from pipelines.versions import open_dataset
from tests.hostile.case import jpeg
from workers.ingest import ingest

_YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, no, dog]\n"


def make(root: Path, files: dict[str, str | bytes], config: str = _YAML) -> Path:
    for name, content in {"data.yaml": config, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def images(*names: str) -> dict[str, str | bytes]:
    """JPEGs of 32 x 24."""
    return {name: jpeg(i) for i, name in enumerate(names)}


def read(root: Path, **options):
    source = open_source("yolo", uri=str(root / "data.yaml"), **options)
    items = [found for found in source.scan() if isinstance(found, SourceItem)]
    entries = [found for found in source.scan() if not isinstance(found, SourceItem)]
    return source, {item.image_id: source.load(item) for item in items}, entries


def test_detect_labels_become_pixels_and_a_missing_file_means_no_objects(tmp_path):
    make(
        tmp_path,
        images("images/train/a.jpg", "images/train/sub/b.jpg", "images/val/c.jpg")
        | {"labels/train/a.txt": "0 0.5 0.5 0.25 0.5\n2 0.25 0.25 0.5 0.5\n", "labels/train/sub/b.txt": ""},
    )
    source, records, entries = read(tmp_path)
    assert source.label_map.names == ("cat", "no", "dog")
    assert [c.category_id for c in source.label_map.categories] == [0, 1, 2]
    assert list(records) == ["images/train/a.jpg", "images/train/sub/b.jpg", "images/val/c.jpg"]
    assert [r.split for r in records.values()] == ["train", "train", "val"]
    np.testing.assert_allclose(
        records["images/train/a.jpg"].annotations.boxes_xywh, [[12, 6, 8, 12], [0, 0, 16, 12]], atol=1e-12
    )
    assert records["images/train/a.jpg"].annotations.area.tolist() == [96, 192]
    assert [len(r.annotations) for r in records.values()] == [2, 0, 0]
    assert entries == []


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ("train: images/train\nnames: {0: a, 2: b}", {"images/train/a.jpg": "labels/train/a.txt"}),
        ("train: [images/x, images/y]\nnames: [a]", {"images/x/a.jpg": "labels/x/a.txt", "images/y/b.jpg": None}),
        ("path: deep\ntrain: images\nnames: [a]", {"deep/images/a.jpg": "deep/labels/a.txt"}),
        ("train: ../train/images\nnames: [a]", {"train/images/a.jpg": "train/labels/a.txt"}),
        ("train: beside\nnames: [a]", {"beside/a.jpg": "beside/a.txt"}),
        ("path: /nowhere/else\ntrain: images\nnames: [a]", {"images/a.jpg": "labels/a.txt"}),
    ],
)
def test_layouts(tmp_path, config, files):
    make(
        tmp_path,
        images(*files) | {labels: "0 0.5 0.5 1 1" for labels in files.values() if labels is not None},
        config,
    )
    _, records, entries = read(tmp_path)
    assert not entries
    assert [len(r.annotations) for r in records.values()] == [int(labels is not None) for labels in files.values()]


def test_a_list_of_images(tmp_path):
    make(
        tmp_path,
        images("images/b.jpg", "images/a.jpg") | {"labels/a.txt": "0 0.5 0.5 1 1"},
        "train: train.txt\nnames: [a]",
    )
    (tmp_path / "train.txt").write_text(
        f"./images/b.jpg\n\n{tmp_path}/images/a.jpg\nimages/missing.jpg\nimages/b.jpg\n"
    )
    _, records, entries = read(tmp_path)
    assert {image_id: len(r.annotations) for image_id, r in records.items()} == {"images/b.jpg": 0, "images/a.jpg": 1}
    assert [(e.fate, e.reason) for e in entries] == [
        ("quarantined", "image file missing"),
        ("dropped", "image is listed twice"),
    ]


def test_segments_have_polygons_area_and_a_box(tmp_path):
    make(tmp_path, images("images/train/a.jpg", "images/val/v.jpg") | {"labels/train/a.txt": "1 0 0 0.5 0 0.5 0.5"})
    _, records, _ = read(tmp_path)
    found = records["images/train/a.jpg"].annotations
    assert found.polygons == (((0.0, 0.0, 16.0, 0.0, 16.0, 12.0),),)
    assert found.boxes_xywh.tolist() == [[0, 0, 16, 12]] and found.area.tolist() == [96]


def test_pose_with_two_and_three_numbers_a_keypoint(tmp_path):
    config = "train: images\nnames: [person]\nkpt_shape: [3, {}]\nflip_idx: [0, 2, 1]"
    make(tmp_path, images("images/a.jpg") | {"labels/a.txt": "0 .5 .5 1 1 .5 .5 2 0 0 0 .25 .5 1"}, config.format(3))
    source, records, _ = read(tmp_path)
    found = records["images/a.jpg"].annotations
    assert found.keypoints[0].tolist() == [[16, 12, 2], [0, 0, 0], [8, 12, 1]]
    assert found.num_keypoints.tolist() == [2]
    assert source.label_map.flip_pairs(0) == ((1, 2),)
    make(tmp_path, {"labels/a.txt": "0 .5 .5 1 1 .5 .5 0 0 -1 .5\n0 .5 .5 .5 .5"}, config.format(2))
    found = read(tmp_path)[1]["images/a.jpg"].annotations
    assert found.keypoints[0][:, 2].tolist() == [2, 0, 0] and found.keypoints[1] is None


def test_turned_images_are_labelled_as_a_viewer_shows_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(1, exif=exif)  # stored 32 x 24, shown 24 x 32
    make(tmp_path, {"images/a.jpg": turned, "labels/a.txt": "0 .25 .125 .5 .25"}, "train: images\nnames: [a]")
    _, records, _ = read(tmp_path)
    # The upper left of what is shown is the lower left of what is stored.
    np.testing.assert_allclose(records["images/a.jpg"].annotations.boxes_xywh, [[0, 12, 8, 12]], atol=1e-12)


BAD_LINES = {
    "0 0.5 0.5 0.5": "wrong number of columns",
    "0 0.5 0.5 0.5 0.5 0.9": "wrong number of columns",
    "0 nan 0.5 0.5 0.5": "not finite",
    "0 1e999 0.5 0.5 0.5": "not finite",
    "cat 0.5 0.5 0.5 0.5": "not numbers",
    "0.5 0.5 0.5 0.5 0.5": "whole number",
    "-1 0.5 0.5 0.5 0.5": "whole number",
    "99 0.5 0.5 0.5 0.5": "unknown category",
    "0 120 80 40 30": "fractions",
    "0 0.5 0.5 0 0.1": "no area",
    "0 0.5 0.5 -0.2 0.1": "no area",
    "0 1.5 0.5 0.2 0.1": "outside",
    "0 0.25 0.25 0.5 0.5": "given twice",
}


@pytest.mark.parametrize(("line", "why"), BAD_LINES.items(), ids=BAD_LINES.values())
def test_a_bad_line_is_dropped_with_a_reason_and_the_sums_are_right(tmp_path, line, why):
    root = make(
        tmp_path / "in",
        images("images/train/a.jpg", "images/val/v.jpg") | {"labels/train/a.txt": f"0 0.25 0.25 0.5 0.5\n{line}\n"},
    )
    version = ingest(open_source("yolo", uri=str(root)), str(tmp_path / "out"))
    assert version.num_objects == 1
    assert version.ledger["annotations"] == {"seen": 2, "imported": 1, "mended": 0, "dropped": 1, "quarantined": 0}
    assert [why in reason for reason in version.ledger["reasons"]] == [True]


def test_a_box_over_the_border_is_clipped_and_told_of(tmp_path):
    root = make(tmp_path / "in", images("images/train/a.jpg", "images/val/v.jpg"))
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text("0 0.9 0.5 0.5 0.5")
    version = ingest(open_source("yolo", uri=str(root)), str(tmp_path / "out"))
    assert version.ledger["annotations"]["mended"] == 1
    (_, _, width, _, found), _ = sorted(open_dataset(version.reference).annotations())
    assert found.boxes[0, 2] == width


def test_label_files_that_cannot_be_read_and_bad_images_are_quarantined(tmp_path):
    root = make(
        tmp_path / "in",
        images("images/train/a.jpg", "images/train/b.jpg", "images/val/v.jpg")
        | {"labels/train/a.txt": b"\xff\xfe0 0.5", "images/train/bad.jpg": b"no image"}
        | {"labels/train/bad.txt": "0 .5 .5 .5 .5"},
    )
    version = ingest(open_source("yolo", uri=str(root)), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 4, "imported": 2, "mended": 0, "dropped": 0, "quarantined": 2}
    assert version.ledger["annotations"]["quarantined"] == 1


def test_label_files_without_an_image_are_told_of(tmp_path):
    line = "0 .5 .5 .5 .5\n"
    root = make(
        tmp_path / "in",
        images("images/train/a.jpg", "images/val/v.jpg")
        | {"labels/train/a.txt": line, "labels/train/sub/gone.txt": 2 * line}
        | {"labels/train/empty.txt": "", "labels/train/classes.txt": "cat\ndog\n", "labels/other/b.txt": line},
    )
    _, records, entries = read(root)
    assert sorted(records) == ["images/train/a.jpg", "images/val/v.jpg"]
    assert [(e.fate, e.reason, e.image_id, e.annotations) for e in entries] == [
        ("quarantined", "image file missing", "labels/train/empty.txt", 0),
        ("quarantined", "image file missing", "labels/train/sub/gone.txt", 2),  # a line, and its copy
    ]
    version = ingest(open_source("yolo", uri=str(root)), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 4, "imported": 2, "mended": 0, "dropped": 0, "quarantined": 2}


def test_other_text_beside_images_is_no_label_file(tmp_path):
    config = "train: [beside, beside/deep, list.txt]\nnames: [a]"
    text = {"beside/README.txt": "about these", "beside/deep/gone.txt": "0 .5 .5 1 1", "list.txt": "beside/a.jpg"}
    make(tmp_path, images("beside/a.jpg", "beside/deep/b.jpg") | text, config)
    _, _, entries = read(tmp_path)
    assert [e.image_id for e in entries if e.fate == "quarantined"] == ["beside/deep/gone.txt"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("", "data.yaml"),
        ("[1, 2]", "data.yaml"),
        ("train: images/train", "names"),
        ("names: [a]", "train"),
        ("train: images/train\nnames: names.txt", "write the names out"),
        ("train: images/train\nnames: [[a], b]", "names"),
        ("train: images/nowhere\nnames: [a]", "no "),
        ("a: &x [1]\nb: *x\ntrain: images/train\nnames: [a]", "aliases"),
        ("train: images/train\nnames: [a]\nkpt_shape: [3, 5]", "kpt_shape"),
        ("train: images/train\nnames: [a]\nkpt_shape: [3, 2]\nflip_idx: [0, 0, 1]", "flip_idx"),
        ("train: {a: b}\nnames: [a]", "folder"),
        ("names: [a\n\t- b", "not YAML"),
        ("[" * 20_000, "nested more than 20 deep"),
        ("train: images/train\nnames: [a, a]", "more than once"),
    ],
)
def test_a_bad_data_yaml_is_a_clear_error(tmp_path, config, says):
    root = make(tmp_path / "in", images("images/train/a.jpg"), config)
    with pytest.raises(ValueError, match=says):
        ingest(open_source("yolo", uri=str(root)), str(tmp_path / "out"))


def test_bad_images_raise(tmp_path):
    root = make(tmp_path, {"images/train/a.jpg": b"no", "images/val/v.jpg": b"no"})
    source = open_source("yolo", uri=str(root))
    with pytest.raises(BadImage):
        source.load(next(iter(source.scan())))
