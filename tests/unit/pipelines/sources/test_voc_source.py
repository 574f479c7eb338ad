from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import open_dataset
from pipelines.ledger import LedgerEntry
from pipelines.sources import SourceItem, open_source
from pipelines.sources.voc import BadXml, parse_voc
from tests.making import encoded
from workers.ingest import ingest


def _object(name: str, box: tuple, extra: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def _write(root: Path, name: str, *objects: str, size: tuple[int, int] = (24, 16), split: str = "train") -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"JPEGImages/{name}.jpg").write_bytes(encoded(seed=len(name)))
    header = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{header}{''.join(objects)}</annotation>")
    with (root / f"ImageSets/Main/{split}.txt").open("a") as lines:
        lines.write(name + "\n")


def test_boxes_count_from_one_and_include_both_ends(tmp_path: Path) -> None:
    flags = "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult>"
    _write(tmp_path, "a", _object("dog", (1, 1, 24, 16), flags), _object("cat", (5, 6, 7.5, 9)))
    version = ingest(open_source("voc", root=str(tmp_path)), str(tmp_path / "out"))
    dataset = open_dataset(version.reference)
    assert dataset.label_map.names == ("cat", "dog")
    (found,) = dataset.records()
    assert found.annotations is not None
    assert found.annotations.boxes_xywh.tolist() == [[0, 0, 24, 16], [4, 5, 3.5, 4]]
    assert found.annotations.category_ids.tolist() == [2, 1]
    assert found.annotations.attributes[0] == {"pose": "Left", "truncated": 1, "difficult": 1}
    assert found.annotations.iscrowd.tolist() == [False, False]
    assert version.ledger["annotations"]["imported"] == 2


def test_broken_boxes_and_files_are_accounted_for(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "a",
        _object("dog", (5, 5, 5, 9)),  # no width
        _object("dog", (9, 5, 5, 9)),  # turned round
        _object("dog", (0, 0, 10, 10)),  # counts from 0
        _object("dog", (5, 5, 30, 10)),  # beyond the right border
        _object("dog", ("x", 5, 30, 10)),
        _object("dog", (2, 2, 4, 4)),
        size=(99, 16),
    )
    _write(tmp_path, "bb", _object("dog", (2, 2, 4, 4)))
    (tmp_path / "Annotations/bb.xml").write_text("<annotation><object>")
    _write(tmp_path, "ccc", _object("dog", (2, 2, 4, 4)), split="val")
    (tmp_path / "JPEGImages/ccc.jpg").unlink()
    _write(tmp_path, "dddd", _object("dog", (2, 2, 4, 4)), split="val")
    with (tmp_path / "ImageSets/Main/val.txt").open("a") as lines:
        lines.write("a\n")
    version = ingest(open_source("voc", root=str(tmp_path)), str(tmp_path / "out"))
    assert version.splits == {"train": 1, "val": 1}
    assert version.ledger["images"] == {"seen": 5, "imported": 1, "mended": 1, "dropped": 1, "quarantined": 2}
    assert version.ledger["annotations"] == {
        "seen": 14, "imported": 2, "mended": 2, "dropped": 9, "quarantined": 1
    }  # fmt: skip
    first = next(open_dataset(version.reference).records())
    assert first.annotations is not None
    assert first.annotations.boxes_xywh.tolist() == [[0, 0, 10, 10], [4, 4, 20, 6], [1, 1, 3, 3]]


def test_an_image_without_xml_is_unlabelled(tmp_path: Path) -> None:
    _write(tmp_path, "a", _object("dog", (2, 2, 4, 4)))
    _write(tmp_path, "bb")
    (tmp_path / "Annotations/bb.xml").unlink()
    version = ingest(open_source("voc", root=str(tmp_path)), str(tmp_path / "out"))
    found = {r.image_id: r.annotations for r in open_dataset(version.reference).records()}
    assert found["JPEGImages/bb.jpg"] is None
    assert found["JPEGImages/a.jpg"] is not None


def test_lists(tmp_path: Path) -> None:
    _write(tmp_path, "a", _object("dog", (2, 2, 4, 4)))
    _write(tmp_path, "bb", _object("dog", (2, 2, 4, 4)), split="trainval")
    _write(tmp_path, "ccc", _object("dog", (2, 2, 4, 4)), split="dog_train")
    assert open_source("voc", root=str(tmp_path)).options["splits"] == ["train"]
    assert open_source("voc", root=str(tmp_path), splits=["dog_train"]).options["splits"] == ["dog_train"]
    with pytest.raises(ValueError, match=r"no list \['nope'\]"):
        open_source("voc", root=str(tmp_path), splits=["nope"])
    with pytest.raises(ValueError, match="JPEGImages"):
        open_source("voc", root=str(tmp_path / "nowhere"))
    source = open_source("voc", root=str(tmp_path), classes=["zebra", "dog"])
    assert source.label_map.names == ("zebra", "dog")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<annotation>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
    ],
)
def test_bad_xml_is_refused(text: bytes) -> None:
    with pytest.raises(BadXml):
        parse_voc(text)


def _fates(root: Path, **options) -> tuple[list[str], list[tuple[str, str, str, int]]]:
    source = open_source("voc", root=str(root), **options)
    found = list(source.scan())
    entries = [f for f in found if isinstance(f, LedgerEntry)]
    return (
        [f.image_id for f in found if isinstance(f, SourceItem)],
        [(e.subject, e.fate, e.image_id, e.annotations) for e in entries],
    )


def test_files_that_share_a_name_and_files_without_an_image_have_a_fate(tmp_path: Path) -> None:
    for name in ("x/a", "y/a", "b"):
        (tmp_path / "JPEGImages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "JPEGImages" / f"{name}.jpg").write_bytes(encoded(seed=len(name)))
    (tmp_path / "JPEGImages/b.json").write_text("{}")  # no image: it must not stand for b.jpg
    box = _object("dog", (2, 2, 4, 4))
    for name in ("a", "b", "orphan", "deep/b"):
        (tmp_path / "Annotations" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{box}{box}</annotation>")
    assert _fates(tmp_path) == (
        ["JPEGImages/x/a.jpg", "JPEGImages/b.jpg"],
        [
            ("image", "dropped", "JPEGImages/y/a.jpg", 0),
            ("annotation", "dropped", "Annotations/deep/b.xml", 1),
            ("image", "quarantined", "JPEGImages/orphan.jpg", 2),
        ],
    )
    version = ingest(open_source("voc", root=str(tmp_path)), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 4, "imported": 2, "mended": 0, "dropped": 1, "quarantined": 1}
    assert version.ledger["annotations"] == {"seen": 8, "imported": 4, "mended": 0, "dropped": 2, "quarantined": 2}


def test_a_name_in_a_list_is_whole_but_for_the_column_of_a_class(tmp_path: Path) -> None:
    for name in ("my photo", "other 1", "c", "d", "e"):
        _write(tmp_path, name, _object("dog", (2, 2, 4, 4)))
    lines = "my photo\nother 1\nc  1\nd -1\n\ne\t 0 \nmy photo  1\nnone 7\n"
    (tmp_path / "ImageSets/Main/train.txt").write_text(lines)
    items, entries = _fates(tmp_path)
    assert items == [f"JPEGImages/{name}.jpg" for name in ("my photo", "other 1", "c", "d", "e")]
    assert entries == [
        ("image", "dropped", "JPEGImages/my photo.jpg", 1),  # listed twice
        ("image", "quarantined", "JPEGImages/none 7.jpg", 0),
    ]
