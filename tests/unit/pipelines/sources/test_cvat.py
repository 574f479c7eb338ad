"""CVAT XML: every kind of shape, and files that are not what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.checks import BadImage
from pipelines.sources import SourceItem, open_source
from pipelines.sources.cvat import BadCvat
from pipelines.sources.drawn import decode_mask
from pipelines.versions import open_dataset
from tests.hostile.case import jpeg
from tests.hostile.documents import _LAUGHS
from tests.scenes import picture, read_source
from workers.ingest import ingest

_META = """<meta><task><labels>
<label><name>car</name><color>#fff</color><type>any</type><attributes></attributes></label>
<label><name>face</name><type>skeleton</type></label>
<label><name>left_eye</name><type>points</type><parent>face</parent></label>
<label><name>right_eye</name><type>points</type><parent>face</parent></label>
</labels></task></meta>"""


def make(
    root: Path, shapes: str, *, meta: str = _META, head: str = 'width="32" height="24"', name: str = "a.jpg"
) -> str:
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "images/a.jpg").write_bytes(jpeg(1))
    (root / "images/b.jpg").write_bytes(jpeg(2))
    text = (
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}'
        f'<image id="0" name="{name}" {head} subset="val">{shapes}</image>'
        '<image id="1" name="b.jpg" width="32" height="24"/></annotations>'
    )
    path = root / "annotations.xml"
    path.write_text(text)
    return str(path)


def read(tmp_path, shapes, **options):
    label_map, records, entries = read_source("cvat", annotations=make(tmp_path, shapes), **options)
    return label_map, records["a.jpg"].annotations, entries


def test_labels_splits_and_attributes(tmp_path):
    label_map, found, entries = read(
        tmp_path,
        '<box label="car" source="manual" occluded="1" xtl="1.5" ytl="2" xbr="11.5" ybr="8" z_order="3" group_id="7">'
        '<attribute name="colour">red &amp; blue</attribute></box>',
    )
    assert label_map.names == ("car", "face") and entries == []
    assert label_map.categories[1].keypoints == ("left_eye", "right_eye")
    assert found.boxes_xywh.tolist() == [[1.5, 2, 10, 6]]
    assert found.attributes == (
        {
            "source": "manual",
            "occluded": "1",
            "z_order": "3",
            "group_id": "7",
            "attributes": {"colour": "red & blue"},
        },
    )
    _, records, _ = read_source("cvat", annotations=str(tmp_path / "annotations.xml"), split="train")
    assert [(i, r.split, len(r.annotations)) for i, r in records.items()] == [
        ("a.jpg", "val", 1),
        ("b.jpg", "train", 0),
    ]


def test_polygons_ellipses_points_and_skeletons(tmp_path):
    _, found, _ = read(
        tmp_path,
        '<polygon label="car" points="1,1;11,1;11,6"/><ellipse label="car" cx="10" cy="10" rx="4" ry="2"/>'
        '<points label="car" points="1,1;5,7"/>'
        '<skeleton label="face"><points label="right_eye" outside="0" occluded="1" points="4,5"/>'
        '<points label="left_eye" outside="0" occluded="0" points="9,8"/></skeleton>'
        '<skeleton label="face"><points label="left_eye" outside="1" points="9,8"/>'
        '<points label="right_eye" points="3,3"/></skeleton>',
    )
    assert found.polygons[0] == ((1, 1, 11, 1, 11, 6),) and found.area[0] == 25
    np.testing.assert_allclose(found.boxes_xywh[1], [6, 8, 8, 4])
    np.testing.assert_allclose(found.area[1], np.pi * 8, rtol=0.01)
    assert found.keypoints[2].tolist() == [[1, 1, 2], [5, 7, 2]]
    assert found.keypoints[3].tolist() == [[9, 8, 2], [4, 5, 1]] and found.boxes_xywh[3].tolist() == [4, 5, 5, 3]
    assert found.keypoints[4].tolist() == [[0, 0, 0], [3, 3, 2]]


def test_masks_run_row_by_row_inside_their_box(tmp_path):
    _, found, _ = read(tmp_path, '<mask label="car" rle="1, 2, 1, 2" left="4" top="5" width="3" height="2"/>')
    expected = np.zeros((24, 32), np.bool_)
    expected[5, 5:7] = expected[6, 5:7] = True
    assert (decode_mask(found.rles[0]) == expected).all()
    assert found.boxes_xywh.tolist() == [[4, 5, 3, 2]] and found.area.tolist() == [4]


def test_a_rotated_box_becomes_its_hull_and_the_ledger_says_so(tmp_path):
    shape = '<box label="car" xtl="10" ytl="5" xbr="20" ybr="9" rotation="90"/>'
    version = ingest(open_source("cvat", annotations=make(tmp_path / "in", shape)), str(tmp_path / "out"))
    assert version.ledger["annotations"] == {"seen": 1, "imported": 0, "mended": 1, "dropped": 0, "quarantined": 0}
    assert list(version.ledger["reasons"]) == ["annotation mended: rotated box became the upright box around it"]
    found = {image_id: a for image_id, _, _, _, a in open_dataset(version.reference).annotations()}["a.jpg"]
    np.testing.assert_allclose(found.boxes_xywh, [[13, 2, 4, 10]], atol=1e-9)
    assert found.attributes[0]["rotation"] == 90 and found.area.tolist() == [40]


BAD_SHAPES = {
    '<box label="car" xtl="1" ytl="1" xbr="5"/>': "without its numbers",
    '<box label="car" xtl="x" ytl="1" xbr="5" ybr="5"/>': "without its numbers",
    '<box label="car" xtl="nan" ytl="1" xbr="5" ybr="5"/>': "without its numbers",
    '<box label="car" xtl="5" ytl="1" xbr="5" ybr="5"/>': "no area",
    '<box label="car" xtl="500" ytl="1" xbr="505" ybr="5"/>': "outside",
    '<box label="tree" xtl="1" ytl="1" xbr="5" ybr="5"/>': "unknown category",
    '<box xtl="1" ytl="1" xbr="5" ybr="5"/>': "unknown category",
    '<polygon label="car" points="1,1;2,2"/>': "three points",
    '<polygon label="car" points="1,1;2,2;3"/>': "numbers",
    '<polygon label="car" points=""/>': "numbers",
    '<polyline label="car" points="1,1;2,2"/>': "not an object",
    '<cuboid label="car" xtl1="1"/>': "not an object",
    '<skeleton label="face"/>': "without a point",
    '<points label="car" points="4,4"/>': "no area",
    '<mask label="car" rle="1,2" left="4" top="5" width="3" height="2"/>': "does not fit",
    '<mask label="car" rle="-1,7" left="4" top="5" width="3" height="2"/>': "does not fit",
    '<mask label="car" rle="6" left="4" top="5" width="3" height="2"/>': "empty",
    '<mask label="car" rle="0,6" left="30" top="5" width="3" height="2"/>': "does not fit",
    '<mask label="car" rle="9999999999999" left="0" top="0" width="9999999" height="9999999"/>': "does not fit",
}


@pytest.mark.parametrize(("shape", "why"), BAD_SHAPES.items(), ids=range(len(BAD_SHAPES)))
def test_a_bad_shape_is_dropped_with_a_reason(tmp_path, shape, why):
    good = '<box label="car" xtl="1" ytl="1" xbr="5" ybr="5"/>'
    version = ingest(open_source("cvat", annotations=make(tmp_path / "in", shape + good)), str(tmp_path / "out"))
    sums = version.ledger["annotations"]
    assert (sums["seen"], sums["imported"], sums["dropped"]) == (2, 1, 1)
    assert any(why in reason for reason in version.ledger["reasons"]), version.ledger["reasons"]


def test_labels_without_meta_and_given_classes(tmp_path):
    path = make(tmp_path, '<box label="b" xtl="1" ytl="1" xbr="5" ybr="5"/><tag label="night"/>', meta="")
    label_map, records, _ = read_source("cvat", annotations=path)
    assert label_map.names == ("b",) and records["a.jpg"].extra == {"tags": ["night"]}
    assert read_source("cvat", annotations=path, classes=["a", "b"])[1]["a.jpg"].annotations.category_ids.tolist() == [
        2
    ]


@pytest.mark.parametrize("name", ["missing.jpg", "../images/a.jpg", "/etc/passwd", ""])
def test_images_that_are_not_below_the_folder(tmp_path, name):
    path = make(tmp_path, '<box label="car" xtl="1" ytl="1" xbr="5" ybr="5"/>', name=name)
    _, records, (entry,) = read_source("cvat", annotations=path)
    assert list(records) == ["b.jpg"]
    assert (entry.fate, entry.annotations) == ("quarantined", 1)


def test_sizes_and_frames(tmp_path):
    box = '<box label="car" xtl="0" ytl="0" xbr="12" ybr="10"/>'
    path = make(tmp_path, box, head='width="24" height="32"')
    source = open_source("cvat", annotations=path)
    items = {item.image_id: item for item in source.scan() if isinstance(item, SourceItem)}
    with pytest.raises(BadImage, match="24x32"):
        source.load(items["a.jpg"])
    (tmp_path / "images/a.jpg").write_bytes(picture(1, 6, 32, 24))  # shown as 24 x 32
    found = read_source("cvat", annotations=path)[1]["a.jpg"].annotations
    np.testing.assert_allclose(found.boxes_xywh, [[0, 12, 10, 12]], atol=1e-9)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<annotations><image",
        b"<html/>",
        b"\xff\xd8\xff",
        f"<?xml version='1.0'?>{_LAUGHS}<annotations><image name='&i;'/></annotations>".encode(),
        b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotations/>",
        b"<?xml version='1.0' encoding='klingon'?><annotations/>",
    ],
    ids=range(7),
)
def test_files_that_are_not_cvat_are_refused(tmp_path, content):
    path = make(tmp_path, "")
    Path(path).write_bytes(content)
    with pytest.raises(BadCvat, match=r"annotations\.xml"):
        read_source("cvat", annotations=path, classes=["car"])


def test_a_cut_file_imports_nothing(tmp_path):
    path = make(tmp_path / "in", '<box label="car" xtl="1" ytl="1" xbr="5" ybr="5"/>')
    Path(path).write_text(Path(path).read_text()[:-20])
    with pytest.raises(BadCvat):
        ingest(open_source("cvat", annotations=path), str(tmp_path / "out"))
    assert not (tmp_path / "out/labels").exists()
