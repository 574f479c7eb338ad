"""Tar and zip files whose members want out, or never end."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from tests.hostile.case import GOOD, Case, file_of, jpeg

OUTSIDE = "/tmp/boxmill-hostile-outside.jpg"
"""No test may ever create it."""


def _tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in [(GOOD, jpeg(99)), *members]:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                tar.addfile(entry, io.BytesIO(member[1]))
    return out.getvalue()


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.linkname = target
    return entry


def _zip(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in [(GOOD, jpeg(99)), *members]:
            archive.writestr(name, content)
    return out.getvalue()


def _patched(content: bytes, signature: bytes, offset: int, value: bytes, *, last: bool = True) -> bytes:
    """A zip with bytes overwritten in its last local header or directory entry."""
    raw = bytearray(content)
    at = (raw.rfind if last else raw.find)(signature) + offset
    raw[at : at + len(value)] = value
    return bytes(raw)


_LOCAL, _DIRECTORY = b"PK\x03\x04", b"PK\x01\x02"


def _encrypted_zip() -> bytes:
    content = _zip(("secret.jpg", jpeg(1)))
    return _patched(_patched(content, _LOCAL, 6, b"\x01\x00"), _DIRECTORY, 8, b"\x01\x00")


def _ratio_bomb() -> bytes:
    """1,000 : 1: 256 MiB of zeros behind a JPEG's first bytes."""
    return _zip(("bomb.jpg", jpeg(1) + bytes(256 * 2**20)), method=zipfile.ZIP_DEFLATED)


def _lying_bomb() -> bytes:
    """The same, and the directory says that it is 1,000 bytes."""
    return _patched(_ratio_bomb(), _DIRECTORY, 24, struct.pack("<I", 1000))


def _huge_claim() -> bytes:
    """A small member of which the directory says that it has 4 GiB."""
    return _patched(_zip(("big.jpg", jpeg(1))), _DIRECTORY, 20, struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0))


def _linked_zip() -> bytes:
    entry = zipfile.ZipInfo("link.jpg")
    entry.create_system = 3
    entry.external_attr = 0o120777 << 16
    return _zip((entry, b"/etc/passwd"))


def _overlapping_zip() -> bytes:
    """Two directory entries share one member's bytes, as the densest zip bombs do."""
    return _patched(_zip(("a.jpg", jpeg(1)), ("b.jpg", jpeg(1))), _DIRECTORY, 42, struct.pack("<I", 0))


def _negative_tar() -> bytes:
    raw = bytearray(_tar(("a.jpg", jpeg(1))))
    at = raw.rfind(b"a.jpg\x00")
    raw[at + 124 : at + 136] = b"\xff" * 11 + b"\x9c"  # base-256, -100
    header = bytes(raw[at : at + 148]) + b" " * 8 + bytes(raw[at + 156 : at + 512])
    raw[at + 148 : at + 156] = b"%06o\x00 " % sum(header)
    return bytes(raw)


def _damaged_tar() -> bytes:
    """The second header's checksum is wrong: tarfile alone would take it for the end."""
    raw = bytearray(_tar(("a.jpg", jpeg(1))))
    raw[raw.rfind(b"a.jpg\x00")] ^= 1
    return bytes(raw)


_END = 2 * (512 + -(-len(jpeg()) // 512) * 512)
"""Where the two members of a tar end: a download that broke off just there."""


def _gz(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _long_name() -> str:
    return "/".join(["x" * 200] * 20) + "/a.jpg"


def _gz_bomb() -> bytes:
    """1,000 : 1: half a GiB of zeros under an image's name."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="w", mtime=0, compresslevel=1) as stream:
        stream.write(_tar()[: _END // 2])
        entry = tarfile.TarInfo("bomb.jpg")
        entry.size = 512 * 2**20
        stream.write(entry.tobuf())
        for _ in range(512):
            stream.write(bytes(2**20))
        stream.write(bytes(1024))
    return out.getvalue()


def _record(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """A header record before a member, as it lies in a tar."""
    entry = _special("././@LongLink", kind)
    entry.size = size
    raw = entry.tobuf(tarfile.GNU_FORMAT)
    return raw + content + bytes(-len(content) % 512)


def _with_record(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """The good image, then a record, then another image."""
    first = _tar()[: _END // 2]
    return first + _record(kind, size, content) + _tar()


def _long_name_bomb() -> bytes:
    """A name of 400 MiB, which tarfile would read in one go."""
    size = 400 * 2**20
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="w", mtime=0, compresslevel=1) as stream:
        stream.write(_tar()[: _END // 2] + _record(tarfile.GNUTYPE_LONGNAME, size))
        for _ in range(400):
            stream.write(b"x" * 2**20)
        stream.write(_tar())
    return out.getvalue()


def _negative_pax_size() -> bytes:
    """A pax record that sends the reader back to where it was."""
    pax = b"15 size=-10000\n"
    return _with_record(tarfile.XHDTYPE, len(pax), pax)


def _sample_tar(values: Any) -> bytes:
    return _tar(("good.json", json.dumps(values).encode()), ("other.jpg", jpeg(1)))


def _web(name: str, content: Callable[[], bytes], **expected: Any) -> Case:
    return Case(name=f"webdataset-{name}", kind="webdataset", build=file_of("a.tar", content), **expected)


def _case(name: str, file: str, content: Callable[[], bytes], **expected: Any) -> Case:
    return Case(name=f"archive-{name}", kind="archive", build=file_of(file, content), **expected)


def _refused(name: str, file: str, content: Callable[[], bytes], says: str, images: Sequence[str] = (GOOD,)) -> Case:
    return _case(name, file, content, images=images, left_out=1, says=says)


CASES: list[Case] = [
    _refused("tar-dotdot", "a.tar", lambda: _tar(("../../outside.jpg", jpeg(1))), r"\.\."),
    _refused("tar-absolute", "a.tar", lambda: _tar((OUTSIDE, jpeg(1))), "absolute"),
    _refused("tar-symlink", "a.tar", lambda: _tar(_special("l.jpg", tarfile.SYMTYPE, "/etc/passwd")), "link"),
    _refused("tar-hardlink", "a.tar", lambda: _tar(_special("l.jpg", tarfile.LNKTYPE, GOOD)), "link"),
    _refused("tar-device", "a.tar", lambda: _tar(_special("d.jpg", tarfile.CHRTYPE)), "device"),
    _refused("tar-fifo", "a.tar", lambda: _tar(_special("p.jpg", tarfile.FIFOTYPE)), "device|pipe"),
    _refused("tar-duplicate", "a.tar", lambda: _tar((GOOD, jpeg(1))), "already"),
    _refused("tar-gz-dotdot", "a.tar.gz", lambda: _gz(_tar(("x/../../o.jpg", jpeg(1)))), r"\.\."),
    # Two names that are one file on other systems: both are kept, told apart by their case.
    _case(
        "tar-case-collision", "a.tar", lambda: _tar(("GOOD.JPG", jpeg(1))), images=[GOOD, "GOOD.JPG"], says="case of"
    ),
    _case(
        "zip-case-collision", "a.zip", lambda: _zip(("GOOD.JPG", jpeg(1))), images=[GOOD, "GOOD.JPG"], says="case of"
    ),
    _case("tar-long-name", "a.tar", lambda: _tar((_long_name(), jpeg(1))), images=[GOOD, _long_name()]),
    _case("tar-cut-in-data", "a.tar", lambda: _tar(("a.jpg", jpeg(1) * 40))[:12_000], error=True, says="whole|cut|tar"),
    _case("tar-cut-in-header", "a.tar", lambda: _tar()[:300], error=True, says="tar"),
    _case("tar-negative-size", "a.tar", _negative_tar, error=True, says="tar"),
    _case("tar-damaged-header", "a.tar", _damaged_tar, error=True, says="tar"),
    _case("tar-without-end", "a.tar", lambda: _tar(("a.jpg", jpeg(1)))[:_END], error=True, says="tar"),
    _case("tar-noise", "a.tar", lambda: bytes(range(256)) * 40, error=True, says="tar"),
    _case("tar-empty", "a.tar", lambda: b"", error=True, says="tar|not one image"),
    _case("tar-negative-pax-size", "a.tar", _negative_pax_size, error=True, says="tar"),
    _case(
        "tar-pax-without-end", "a.tar", lambda: _with_record(tarfile.XHDTYPE, 2**40), error=True, says="header record"
    ),
    _case(
        "tar-records", "a.tar", lambda: _record(tarfile.GNUTYPE_LONGNAME, 0) * 5000 + _tar(), error=True, says="many"
    ),
    _case("gz-bomb", "a.tar.gz", _gz_bomb, error=True, says="expands"),
    _case("gz-long-name-bomb", "a.tar.gz", _long_name_bomb, error=True, says="header record"),
    _case("gz-cut", "a.tar.gz", lambda: _gz(_tar(("a.jpg", jpeg(1))))[:-300], error=True, says="tar"),
    _case("gz-damaged", "a.tar.gz", lambda: _gz(_tar())[:60] + b"\xff" * 900, error=True, says="tar"),
    _case("gz-is-no-gz", "a.tar.gz", lambda: _tar(), error=True, says="tar"),
    _case("gz-nested", "a.tar.gz", lambda: _gz(_gz(_tar())), error=True, says="tar"),
    _refused("zip-dotdot", "a.zip", lambda: _zip(("../../outside.jpg", jpeg(1))), r"\.\."),
    _refused("zip-backslashes", "a.zip", lambda: _zip(("..\\..\\outside.jpg", jpeg(1))), r"\.\."),
    _refused("zip-absolute", "a.zip", lambda: _zip((OUTSIDE, jpeg(1))), "absolute"),
    _refused("zip-drive", "a.zip", lambda: _zip(("C:\\outside.jpg", jpeg(1))), "absolute"),
    _refused("zip-symlink", "a.zip", _linked_zip, "link"),
    _refused("zip-encrypted", "a.zip", _encrypted_zip, "encrypted"),
    _refused("zip-ratio-bomb", "a.zip", _ratio_bomb, "ratio|expands|bytes"),
    _refused("zip-lying-bomb", "a.zip", _lying_bomb, "bytes|CRC|ratio|expands"),
    _refused("zip-huge-claim", "a.zip", _huge_claim, "bytes"),
    _refused("zip-overlap", "a.zip", _overlapping_zip, "CRC|overlap", images=[GOOD, "a.jpg"]),
    _case("zip-bzip2", "a.zip", lambda: _zip(method=zipfile.ZIP_BZIP2), error=True, says="method"),
    _refused("zip-wrong-crc", "a.zip", lambda: _patched(_zip(("a.jpg", jpeg(1))), _DIRECTORY, 16, b"abcd"), "CRC"),
    # An archive in an archive is no image: it is passed over, never opened.
    _case("zip-nested", "a.zip", lambda: _zip(("inner.zip", _zip()), ("b.jpg", jpeg(1))), images=[GOOD, "b.jpg"]),
    _case("zip-cut", "a.zip", lambda: _zip(("a.jpg", jpeg(1)))[:-40], error=True, says="zip"),
    _case("zip-noise", "a.zip", lambda: bytes(range(256)) * 40, error=True, says="zip"),
    _web("cut-in-data", lambda: _tar(("a.jpg", jpeg(1) * 40))[:12_000], error=True, says="whole|cut|tar"),
    _web("cut-in-header", lambda: _tar(("a.jpg", jpeg(1)))[: _END // 2 + 300], error=True, says="tar"),
    _web("damaged-header", _damaged_tar, error=True, says="tar"),
    _web("without-end", lambda: _tar(("a.jpg", jpeg(1)))[:_END], error=True, says="tar"),
    _web(
        "category-of-wrong-type",
        lambda: _sample_tar([{"bbox": [1, 2, 9, 8], "category": name} for name in ("cat", {"a": 1}, ["cat"], 3)]),
        images=["a/good.jpg", "a/other.jpg"],
        objects=1,
        says="category",
    ),
    _web(
        "half-a-surrogate",
        lambda: _sample_tar({"place": "\ud800", "annotations": [{"bbox": [1, 2, 9, 8], "category": "c\udc00"}]}),
        images=["a/good.jpg", "a/other.jpg"],
        objects=1,
    ),
]
