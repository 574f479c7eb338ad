"""Image files that are broken, lie about themselves, or are merely unusual."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tests.hostile.case import GOOD, Case, encoded, folder_of, jpeg, picture


def _chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(width: int, height: int, *extra: bytes, crc: int | None = None) -> bytes:
    """A PNG whose header may say anything; its pixels are a few zeros."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header, crc) + b"".join(extra) + body + _chunk(b"IEND", b"")


def _sized_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose frame header is overwritten."""
    content = bytearray(jpeg())
    frame = content.find(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif.tobytes())


def _oriented_by_text() -> bytes:
    entry = struct.pack("<HHI4s", 0x0112, 2, 4, b"up!\x00")
    return _raw_exif(b"II*\x00" + struct.pack("<IH", 8, 1) + entry + bytes(4))


def _raw_exif(content: bytes) -> bytes:
    return jpeg(exif=b"Exif\x00\x00" + content)


def _animated(format: str) -> bytes:
    return encoded(picture(1), format, save_all=True, append_images=[picture(2), picture(3)], duration=50)


def _jpeg_with_thumbnail_cut() -> bytes:
    """The only end marker is that of the thumbnail in the EXIF block."""
    whole = jpeg(exif=b"Exif\x00\x00" + jpeg(7))
    return whole[: whole.rfind(b"\xff\xda") + 40]


def _circular_tiff() -> bytes:
    """Its directory names itself as the next one."""
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value)
        for tag, kind, value in ((256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8))
    )
    return b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 6) + entries + struct.pack("<I", 8)


def _zip_bytes() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("evil.txt", "evil")
    return out.getvalue()


def _text_bomb() -> bytes:
    """64 MiB of text in 64 KiB, in a chunk before the pixels."""
    packed = zlib.compress(bytes(64 * 2**20), 9)
    return png(8, 8, _chunk(b"zTXt", b"Comment\x00\x00" + packed))


SOUND: dict[str, bytes] = {
    "cmyk.jpg": encoded(picture(mode="CMYK"), "JPEG"),
    "grey16.png": encoded(picture(mode="L").convert("I").convert("I;16"), "PNG"),
    "one-bit.png": encoded(picture(mode="1"), "PNG"),
    "palette.png": encoded(picture(mode="P"), "PNG", transparency=0),
    "grey-alpha.png": encoded(picture(mode="LA"), "PNG"),
    "animated.gif": _animated("GIF"),
    "animated.webp": _animated("WEBP"),
    "progressive.jpg": jpeg(progressive=True),
    "picture.bmp": encoded(picture(), "BMP"),
    "picture.tif": encoded(picture(), "TIFF"),
    "one-pixel.png": encoded(picture(width=1, height=1), "PNG"),
    "trailing-garbage.jpg": jpeg() + b"\x00\xffgarbage" * 100,
    "polyglot.jpg": jpeg() + _zip_bytes(),
    "many-comments.jpg": jpeg()[:2] + b"\xff\xfe\x00\x04ab" * 50_000 + jpeg()[2:],
    "png-named.jpg": encoded(picture(), "PNG"),
    "jpeg-named.png": jpeg(),
}
"""Unusual, and read all the same."""

BROKEN: dict[str, tuple[bytes, str]] = {
    "truncated.jpg": (jpeg()[:-200], "end marker"),
    "truncated-header.jpg": (jpeg()[:20], "image cannot be read|unreadable|not a"),
    "truncated.png": (encoded(picture(), "PNG")[:-30], "end marker"),
    "truncated.gif": (encoded(picture(), "GIF")[:-30], "end marker"),
    "truncated.webp": (encoded(picture(), "WEBP")[:-30], "end marker|unreadable|not a"),
    "thumbnail-whole-picture-cut.jpg": (_jpeg_with_thumbnail_cut(), "end marker"),
    "empty.jpg": (b"", "empty"),
    "only-markers.jpg": (b"\xff\xd8\xff\xd9", "not a|unreadable"),
    "text.jpg": (b"<html>404 not found</html>", "not a"),
    "vector.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', "not a"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n", "not a"),
    "bomb.png": (png(100_000, 100_000), "more pixels"),
    "bomb.jpg": (_sized_jpeg(65_500, 65_500), "more pixels"),
    "half-bomb.png": (png(12_000, 12_000), "more pixels"),
    "no-pixels.png": (png(0, 0), "0x0|unreadable|not a"),
    "no-width.jpg": (_sized_jpeg(0, 24), "unreadable|not a|pixels"),
    "wrong-crc.png": (png(8, 8, crc=1), "unreadable|not a"),
    "text-bomb.png": (_text_bomb(), "unreadable|too large"),
    "endless-chunk.png": (b"\x89PNG\r\n\x1a\n\x7f\xff\xff\xffIHDR" + bytes(64), "unreadable|not a"),
}
"""Each is quarantined with a reason."""


def _orientations(records: Mapping[str, Any]) -> None:
    for number in range(1, 9):
        record = records[f"o{number}.jpg"]
        # The stored frame: width and height do not turn with the orientation.
        assert (record.exif_orientation, record.width, record.height) == (number, 32, 24)


def _no_orientation(records: Mapping[str, Any]) -> None:
    assert {record.exif_orientation for record in records.values()} == {1}


def _formats(records: Mapping[str, Any]) -> None:
    assert (records["png-named.jpg"].format, records["jpeg-named.png"].format) == ("png", "jpeg")
    assert records["polyglot.jpg"].format == "jpeg"


_ODD_EXIF: dict[str, bytes] = {
    "orientation-0.jpg": _oriented(0),
    "orientation-9.jpg": _oriented(9),
    "orientation-text.jpg": _oriented_by_text(),
    "cut-exif.jpg": _raw_exif(b"II*\x00\x08\x00\x00\x00\xff\xff"),
    "noise-exif.jpg": _raw_exif(bytes(range(256))),
    "circular-exif.jpg": _raw_exif(_circular_tiff()),
    "empty-exif.jpg": _raw_exif(b""),
}


def _broken(name: str, content: bytes, says: str) -> Case:
    return Case(
        name=f"image-{name}", kind="archive", build=folder_of({name: content}), images=[GOOD], left_out=1, says=says
    )


CASES: list[Case] = [
    *(_broken(name, content, says) for name, (content, says) in BROKEN.items()),
    *(
        Case(name=f"image-{name}", kind="archive", build=folder_of({name: content}), images=[GOOD, name])
        for name, content in SOUND.items()
    ),
    Case(
        name="image-formats-by-content-not-name",
        kind="archive",
        build=folder_of(SOUND),
        images=[GOOD, *SOUND],
        checks=_formats,
    ),
    Case(
        name="image-orientations",
        kind="archive",
        build=folder_of({f"o{number}.jpg": _oriented(number) for number in range(1, 9)}),
        images=[GOOD, *(f"o{number}.jpg" for number in range(1, 9))],
        checks=_orientations,
    ),
    Case(
        name="image-odd-exif",
        kind="archive",
        build=folder_of(_ODD_EXIF),
        images=[GOOD, *_ODD_EXIF],
        checks=_no_orientation,
    ),
    # Either verdict is right for it; it must not go round for ever.
    Case(name="image-circular.tif", kind="archive", build=folder_of({"circular.tif": _circular_tiff()}), left_out=-1),
]
