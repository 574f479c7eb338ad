from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from pipelines.checks import BadImage, check_annotations, probe_image
from pipelines.ledger import Ledger, LedgerMismatch
from pipelines.records import Annotations
from tests.making import encoded


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_header_of_every_format(format: str) -> None:
    header = probe_image(encoded(31, 17, format=format))
    assert (header.format, header.width, header.height, header.exif_orientation) == (format.lower(), 31, 17, 1)


def _jpeg_with_thumbnail(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    picture = Image.open(io.BytesIO(encoded(64, 48)))
    # A thumbnail's end marker lies in the header segment of the outer file.
    comment = b"\xff\xfe" + (2 + len(thumbnail := encoded(8, 8))).to_bytes(2, "big") + thumbnail
    picture.save(sink, "JPEG", exif=exif)
    whole = sink.getvalue()
    return whole[:2] + comment + whole[2:]


def test_size_is_the_stored_one_and_orientation_is_told() -> None:
    header = probe_image(_jpeg_with_thumbnail(6))
    assert (header.width, header.height, header.exif_orientation) == (64, 48, 6)


@pytest.mark.parametrize(
    "image",
    [
        encoded(format="JPEG")[:-20],
        encoded(format="PNG")[:-14],
        encoded(format="GIF")[:-1],
        encoded(format="WEBP")[:-3],
        _jpeg_with_thumbnail(1)[:-40],
        encoded(format="JPEG")[:3],
    ],
    ids=["jpeg", "png", "gif", "webp", "jpeg with a whole thumbnail", "jpeg start"],
)
def test_cut_images_are_bad(image: bytes) -> None:
    with pytest.raises(BadImage):
        probe_image(image)


def test_padding_behind_a_jpeg_is_no_cut() -> None:
    assert probe_image(encoded() + b"\x00" * 100).width == 24


@pytest.mark.parametrize("image", [b"", b"<html>not found</html>", b"%PDF-1.7", b"\x00" * 100])
def test_what_is_no_image_is_bad(image: bytes) -> None:
    with pytest.raises(BadImage):
        probe_image(image)


def test_a_bomb_is_bad_before_it_is_decoded() -> None:
    sink = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(sink, "PNG")
    with pytest.raises(BadImage, match="more pixels"):
        probe_image(sink.getvalue())


def _check(boxes: list[list[float]], *, tolerance: float = 1.0, categories: list[int] | None = None):
    ledger = Ledger()
    ids = np.array(categories or [1] * len(boxes))
    kept = check_annotations(
        Annotations.from_boxes(np.array(boxes, float), ids),
        width=100,
        height=50,
        category_ids=frozenset({0, 1}),
        ledger=ledger,
        image_id="a",
        clip_tolerance=tolerance,
    )
    return kept, ledger


def test_broken_boxes_are_dropped_with_their_reason() -> None:
    good, nan, flat = [1.0, 2, 3, 4], [math.nan, 0, 1, 1], [5, 5, 0, 3]
    kept, ledger = _check([nan, good, flat, [200, 5, 5, 5], good, [0, 0, math.inf, 1]], categories=[1, 0, 1, 1, 9, 1])
    assert kept.boxes_xywh.tolist() == [good]
    assert kept.ids.tolist() == [2]
    assert ledger.reasons == {
        "annotation dropped: box is not finite": 2,
        "annotation dropped: unknown category": 1,
        "annotation dropped: box has no area": 1,
        "annotation dropped: box lies outside the image": 1,
    }
    ledger.check(images=0, annotations=6)
    with pytest.raises(LedgerMismatch, match="7 annotations but 6"):
        ledger.check(images=0, annotations=7)


def test_boxes_are_clipped_beyond_the_tolerance_only() -> None:
    rounding, beyond = [90, 40, 11.0, 5], [-2, 10, 20, 45]
    kept, ledger = _check([rounding, beyond])
    assert kept.boxes_xywh.tolist() == [rounding, [0, 10, 18, 40]]
    assert ledger.counts["annotation"] == {"imported": 1, "mended": 1, "dropped": 0, "quarantined": 0}
    assert [e.annotation_id for e in ledger.entries] == [2]
    kept, _ = _check([rounding], tolerance=0.0)
    assert kept.boxes_xywh.tolist() == [[90, 40, 10, 5]]


def test_ledger_survives_json_and_merging() -> None:
    _, one = _check([[0, 0, 0, 0], [1, 1, 2, 2]])
    back = Ledger.from_json(one.to_json())
    assert back == one
    back.merge(one)
    assert back.seen("annotation") == 4
    assert back.reasons == {"annotation dropped: box has no area": 2}
    assert len(back.entries) == 2
