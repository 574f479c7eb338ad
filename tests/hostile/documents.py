"""COCO JSON and VOC XML that is cut, too deep, of the wrong types, or an attack on its parser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, coco_of, jpeg


def _coco(*annotations: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Two images; ``a.jpg`` has one sound annotation with id 1."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 32, "height": 24},
            {"id": 2, "file_name": "b.jpg", "width": 32, "height": 24},
        ],
        "annotations": [_box(1), *annotations],
        "categories": [{"id": 3, "name": "cat"}],
        **changes,
    }


def _box(number: Any, **changes: Any) -> dict[str, Any]:
    box = {"id": number, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0}
    return {**box, **changes}


def _bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def _raw(old: str, new: str) -> bytes:
    """The sound file with a piece of its text replaced."""
    text = json.dumps(_coco(_box(2)))
    assert old in text
    return text.replace(old, new, 1).encode()


def _deep() -> bytes:
    return _raw('"area": 80', '"area": 80, "deep": ' + "[" * 100_000 + "]" * 100_000)


_ESCAPES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "../../../../etc/passwd"}]
_ABSOLUTE = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "/etc/passwd"}]
_TWICE = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
_SURROGATE = [{"id": 1, "file_name": "a.jpg", "note": "\udc00"}, {"id": 2, "file_name": "b\ud800.jpg"}]
_BOTH = ("a.jpg", "b.jpg")


def _json(name: str, content: bytes | Mapping[str, Any], **expected: Any) -> Case:
    return Case(name=f"json-{name}", kind="coco", build=coco_of(content), **expected)


def _bad_object(name: str, annotation: Mapping[str, Any], says: str) -> Case:
    """One annotation is left out with a word, the images and the other annotation stay."""
    return _json(name, _coco(annotation), images=_BOTH, objects=1, says=says)


_ANY_ERROR = "instances_train.json|categor|image|JSON"

JSON_CASES: list[Case] = [
    _json("cut", _bytes(_coco())[:-60], error=True, says="instances_train.json"),
    _json("cut-in-images", _bytes(_coco())[:40], error=True, says="instances_train.json"),
    _json("empty", b"", error=True, says="instances_train.json"),
    _json("not-json", b"\xff\xd8\xff\xe0JFIF", error=True, says="instances_train.json"),
    _json("list", b"[1, 2, 3]", error=True, says="instances_train.json"),
    _json("null", b"null", error=True, says="instances_train.json"),
    _json("utf-16", json.dumps(_coco()).encode("utf-16"), error=True, says="instances_train.json"),
    _json("utf-8-bom", b"\xef\xbb\xbf" + _bytes(_coco()), images=_BOTH, objects=1),
    _json("latin-1", _bytes(_coco()).replace(b'"cat"', b'"c\xe9t"'), error=True, says="instances_train.json"),
    _json("deep", _deep(), error=True, says="instances_train.json"),
    _json("no-categories", {k: v for k, v in _coco().items() if k != "categories"}, error=True, says="categor"),
    _json("categories-null", _coco(categories=None), error=True, says=_ANY_ERROR),
    _json("categories-twice", _coco(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]), error=True, says="3"),
    _json("category-name-twice", _coco(categories=[{"id": i, "name": "a"} for i in (3, 4)]), error=True, says="name"),
    _json("category-without-id", _coco(categories=[{"name": "cat"}]), error=True, says=_ANY_ERROR),
    _json("category-id-text", _coco(categories=[{"id": "x", "name": "cat"}]), error=True, says=_ANY_ERROR),
    _json("images-object", _coco(images={"1": "a.jpg"}), error=True, says=_ANY_ERROR),
    _json("annotations-object", _coco(annotations={"1": _box(1)}), error=True, says=_ANY_ERROR),
    _json("images-of-wrong-type", _coco(images=[*_coco()["images"], 7, None, "x"]), images=_BOTH, left_out=3),
    _json("image-ids-as-text", _coco(images=[{"id": "1", "file_name": "a.jpg"}]), error=True, says="id"),
    _json("image-without-name", _coco(images=[*_coco()["images"], {"id": 9}]), images=_BOTH, left_out=1),
    _json("image-dotdot", _coco(images=_ESCAPES), images=("a.jpg",), left_out=1, says="missing|leads out"),
    _json("image-absolute", _coco(images=_ABSOLUTE), images=("a.jpg",), left_out=1, says="missing|absolute"),
    _json(
        "image-id-list", _coco(images=[*_coco()["images"], {"id": [1], "file_name": "c.jpg"}]), images=_BOTH, left_out=1
    ),
    _json(
        "image-id-object",
        _coco(images=[*_coco()["images"], {"id": {}, "file_name": "c.jpg"}]),
        images=_BOTH,
        left_out=1,
    ),
    _json(
        "license-list",
        _coco(images=[{**i, "license": [1]} for i in _coco()["images"]], licenses=[{"id": [1]}]),
        images=_BOTH,
    ),
    _json("half-a-surrogate", _coco(images=_SURROGATE), images=("a.jpg",), left_out=1, says=r"missing"),
    _json("image-id-twice", _coco(images=_TWICE), images=("a.jpg",), left_out=1, says="twice"),
    _json("keys-twice", _raw('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 0'), images=_BOTH, objects=2),
    _json("nan-box", _raw("[1, 2, 10, 8]", "[1, NaN, 10, 8]"), images=_BOTH, objects=1, says="finite|NaN"),
    _json("infinite-box", _raw("[1, 2, 10, 8]", "[1, 2, Infinity, 8]"), images=_BOTH, objects=1, says="finite|Inf"),
    _json("overflowing-box", _raw("[1, 2, 10, 8]", "[1, 2, 1e999, 8]"), images=_BOTH, objects=1, says="finite"),
    _bad_object("box-of-three", _box(2, bbox=[1, 2, 3]), "box"),
    _bad_object("box-of-text", _box(2, bbox=["a", "b", "c", "d"]), "box"),
    _bad_object("box-null", _box(2, bbox=None), "box"),
    _bad_object("box-huge-integer", _box(2, bbox=[10**400, 2, 3, 4]), "box"),
    _bad_object("box-without-area", _box(2, bbox=[5, 5, 0, 9]), "no area"),
    _bad_object("box-negative", _box(2, bbox=[5, 5, -3, 9]), "no area"),
    _bad_object("box-outside", _box(2, bbox=[500, 500, 5, 5]), "outside"),
    _bad_object("category-unknown", _box(2, category_id=77), "category"),
    _bad_object("category-text", _box(2, category_id="3"), "category"),
    _bad_object("category-huge", _box(2, category_id=10**30), "category"),
    _bad_object("image-unknown", _box(2, image_id=77), "image"),
    _bad_object("image-null", _box(2, image_id=None), "annotation"),
    _bad_object("image-huge", _box(2, image_id=10**30), "annotation"),
    _bad_object("object-is-a-number", 7, "annotation"),  # type: ignore[arg-type]
    _json("id-huge", _coco(_box(10**30)), images=_BOTH, says="id"),
    _json("id-text", _coco(_box("two")), images=_BOTH, says="id"),
    _json("id-zero", _coco(_box(0)), images=_BOTH, objects=2),
    _json("id-twice", _coco(_box(1)), images=_BOTH, objects=1, says="word for word"),
    _json("id-twice-for-two", _coco(_box(1, bbox=[3, 3, 9, 9])), images=_BOTH, objects=2, says="new id"),
    _json("area-text", _coco(_box(2, area="big")), images=_BOTH),
    _json("crowd-text", _coco(_box(2, iscrowd="yes")), images=_BOTH),
    _json("polygon-text", _coco(_box(2, segmentation=[["x"]])), images=_BOTH, says="segmentation|polygon"),
    _json("polygon-odd", _coco(_box(2, segmentation=[[1, 2, 3]])), images=_BOTH, says="segmentation|polygon"),
    _json(
        "rle-of-another-size",
        _coco(_box(2, segmentation={"size": [4, 4], "counts": [16]})),
        images=_BOTH,
        says="segmentation|RLE|rle",
    ),
    _json(
        "rle-bomb",
        _coco(_box(2, segmentation={"size": [10**9, 10**9], "counts": [10**18]})),
        images=_BOTH,
        says="segmentation|RLE|rle",
    ),
    _json("keypoints-text", _coco(_box(2, keypoints=["a", 1, 2])), images=_BOTH, says="keypoint"),
    _json("keypoints-of-four", _coco(_box(2, keypoints=[1, 2, 2, 1])), images=_BOTH, says="keypoint"),
]

_VOC = """<?xml version="1.0" encoding="UTF-8"?>{doctype}
<annotation><filename>a.jpg</filename><size><width>32</width><height>24</height><depth>3</depth></size>
<object><name>{name}</name><bndbox><xmin>{xmin}</xmin><ymin>3</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object>
</annotation>"""


def voc_text(*, doctype: str = "", name: str = "cat", xmin: str = "2") -> bytes:
    return _VOC.format(doctype=doctype, name=name, xmin=xmin).encode()


_LAUGHS = (
    "<!DOCTYPE l [<!ENTITY a '"
    + "ha" * 50
    + "'>"
    + "".join(f"<!ENTITY {new} '{('&' + old + ';') * 10}'>" for old, new in zip("abcdefgh", "bcdefghi"))
    + "]>"
)
_EXTERNAL = "<!DOCTYPE l [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
_REMOTE = "<!DOCTYPE l SYSTEM 'http://127.0.0.1:9/evil.dtd'>"


def _voc_of(content: bytes) -> Any:
    """``VOCdevkit`` layout with a sound image ``b`` and the hostile one ``a``."""

    def build(folder: Path) -> Mapping[str, Any]:
        for name, text in (("a", content), ("b", voc_text().replace(b"a.jpg", b"b.jpg"))):
            for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
                (folder / sub).mkdir(parents=True, exist_ok=True)
            (folder / "Annotations" / f"{name}.xml").write_bytes(text)
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(ord(name)))
        (folder / "ImageSets/Main/train.txt").write_text("a\nb\n")
        return {"root": str(folder)}

    return build


_VOC_BOTH = ("JPEGImages/a.jpg", "JPEGImages/b.jpg")


def _xml(name: str, content: bytes, **expected: Any) -> Case:
    return Case(name=f"xml-{name}", kind="voc", build=_voc_of(content), **expected)


def _refused_xml(name: str, content: bytes, says: str) -> Case:
    """The image with the bad file is left out, the other stays."""
    return _xml(name, content, images=("JPEGImages/b.jpg",), left_out=1, objects=1, says=says)


XML_CASES: list[Case] = [
    _refused_xml("billion-laughs", voc_text(doctype=_LAUGHS, name="&i;"), "DTD|entit|Entit"),
    _refused_xml("external-entity", voc_text(doctype=_EXTERNAL, name="&x;"), "DTD|entit|Entit"),
    _refused_xml("remote-dtd", voc_text(doctype=_REMOTE), "DTD"),
    _refused_xml("plain-dtd", voc_text(doctype="<!DOCTYPE annotation>"), "DTD"),
    _refused_xml("cut", voc_text()[:-40], "a.xml"),
    _refused_xml("empty", b"", "a.xml"),
    _refused_xml("not-xml", b"\xff\xd8\xff\xe0JFIF", "a.xml"),
    _refused_xml("wrong-encoding", voc_text(name="café").decode().encode("latin-1"), "a.xml"),
    _refused_xml("unknown-encoding", voc_text().replace(b"UTF-8", b"klingon"), "a.xml"),
    _refused_xml("other-root", b"<html><body/></html>", "annotation"),
    _xml("no-size", voc_text().replace(b"<size>", b"<sizes>").replace(b"</size>", b"</sizes>"), images=_VOC_BOTH),
    _xml("size-huge", voc_text().replace(b"<width>32", b"<width>99999999999"), images=_VOC_BOTH, objects=2),
    _xml("no-box", voc_text().replace(b"bndbox", b"box"), images=_VOC_BOTH, objects=1, says="box"),
    _xml("no-name", voc_text().replace(b"<name>cat</name>", b""), images=_VOC_BOTH, objects=1, says="category"),
    _xml("box-text", voc_text(xmin="left"), images=_VOC_BOTH, objects=1, says="box"),
    _xml("box-nan", voc_text(xmin="nan"), images=_VOC_BOTH, objects=1, says="box"),
    _xml("box-huge", voc_text(xmin="9" * 400), images=_VOC_BOTH, objects=1, says="box"),
    _xml("huge-text", voc_text().replace(b"<depth>", b"<x>" + b"y" * 5_000_000 + b"</x><depth>"), images=_VOC_BOTH),
    _xml(
        "deep",
        voc_text().replace(b"<depth>", b"<d>" * 20_000 + b"</d>" * 20_000 + b"<depth>"),
        images=None,  # type: ignore[arg-type]  # read or refused, both are right; expat must not overflow the stack
        left_out=-1,
    ),
]


def _panoptic_of(folder: Path) -> Mapping[str, Any]:
    """A sound image and one whose id no column holds."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for name in ("a", "b"):
        (folder / f"images/{name}.jpg").write_bytes(jpeg(ord(name)))
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2**70, "file_name": "b.jpg"}, {"id": [3], "file_name": "c.jpg"}]
    values = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "panoptic.json").write_text(json.dumps(values))
    return {"annotations": str(folder / "panoptic.json"), "masks": str(folder / "masks")}


PANOPTIC_CASES = [
    Case(
        name="panoptic-image-id-huge",
        kind="panoptic",
        build=_panoptic_of,
        images=["a.jpg"],
        left_out=2,
        says="integer id",
    )
]
CASES = JSON_CASES + XML_CASES + PANOPTIC_CASES
