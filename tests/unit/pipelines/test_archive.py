"""Folders, tars and zips as they lie: what is listed, what is refused, and that bytes come back as they went in."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines.checks import BadImage
from pipelines.sources import archive_limits, open_source
from pipelines.sources.archive import ALIKE, archive_kind, open_archive
from pipelines.sources.archive_formats import BrokenArchive, Member, Refused, listing_digest

# What an image holds is not looked at before it is decoded, so any bytes will do here; one does not compress.
CONTENTS = {
    "a.jpg": b"first" * 200,
    "sub/b.PNG": os.urandom(70_000),
    "sub/deep/c.jpeg": b"",
    "ünï code.jpg": b"third",
}
OTHERS = {"notes.txt": b"no image", ".hidden.jpg": b"x", "__MACOSX/a.jpg": b"fork"}


def write_folder(path: Path) -> None:
    for name, content in {**CONTENTS, **OTHERS}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def tar_bytes(members: list[tarfile.TarInfo | tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def write_zip(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.mkdir("sub")
        for name, content in {**CONTENTS, **OTHERS}.items():
            archive.writestr(name, content)


@pytest.fixture(params=["folder", "tar", "tar.gz", "tgz", "stored.zip", "deflated.zip"])
def archive_uri(request, tmp_path) -> str:
    path = tmp_path / f"images.{request.param}"
    everything = [*CONTENTS.items(), *OTHERS.items()]
    match request.param:
        case "folder":
            write_folder(path)
        case "tar":
            path.write_bytes(tar_bytes(everything))
        case "tar.gz" | "tgz":
            path.write_bytes(gzip.compress(tar_bytes(everything)))
        case "stored.zip":
            write_zip(path, zipfile.ZIP_STORED)
        case "deflated.zip":
            write_zip(path, zipfile.ZIP_DEFLATED)
    return str(path)


def test_every_image_comes_back_as_it_went_in(archive_uri):
    archive = open_archive(archive_uri)
    members = list(archive.members())
    assert {m.name for m in members} == set(CONTENTS)
    assert {m.name: archive.read(m).image for m in members} == CONTENTS
    # Another order is allowed too, if slower for a compressed stream.
    assert {m.name: archive.read(m).image for m in reversed(members)} == CONTENTS
    archive.close()
    assert archive.read(members[-1]).image == CONTENTS[members[-1].name]


def test_the_byte_range_told_holds_the_image(tmp_path):
    write_zip(tmp_path / "i.zip", zipfile.ZIP_STORED)
    (tmp_path / "i.tar").write_bytes(tar_bytes(list(CONTENTS.items())))
    for name in ("i.zip", "i.tar"):
        archive, raw = open_archive(str(tmp_path / name)), (tmp_path / name).read_bytes()
        for member in archive.members():
            found = archive.read(member)
            assert raw[found.offset : found.offset + found.length] == CONTENTS[member.name]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../up.jpg", "leads out"),
        ("a/../../up.jpg", "leads out"),
        ("..\\up.jpg", "leads out"),
        ("/etc/passwd.jpg", "absolute"),
        ("C:/windows.jpg", "absolute"),
    ],
)
def test_dangerous_names_are_refused(tmp_path, name, why):
    (tmp_path / "i.tar").write_bytes(tar_bytes([(name, b"x"), ("good.jpg", b"y")]))
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr(name, b"x")
        archive.writestr("good.jpg", b"y")
    for file in ("i.tar", "i.zip"):
        found = list(open_archive(str(tmp_path / file)).members())
        assert [m.name for m in found if isinstance(m, Member)] == ["good.jpg"]
        (refused,) = [m for m in found if isinstance(m, Refused)]
        assert why in refused.reason


def test_links_and_devices_are_refused(tmp_path):
    odd = []
    for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "good.jpg"
        odd.append(info)
    (tmp_path / "i.tar").write_bytes(tar_bytes([("good.jpg", b"y"), *odd]))
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        link = zipfile.ZipInfo("s.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "good.jpg")
        archive.writestr("good.jpg", b"y")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(b"y")
    (folder / "s.jpg").symlink_to("good.jpg")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    expected = {
        "i.tar": {
            "s.jpg": "it is a link",
            "h.jpg": "it is a link",
            "d.jpg": "it is a device, pipe or of an unknown type",
        },
        "i.zip": {"s.jpg": "it is a link"},
        "folder": {"s.jpg": "it is a link", "loop": "it is a link", "pipe.jpg": "it is a device, pipe or socket"},
    }
    for file, reasons in expected.items():
        found = list(open_archive(str(tmp_path / file)).members())
        assert {m.name: m.reason for m in found if isinstance(m, Refused)} == reasons
        assert [m.name for m in found if isinstance(m, Member)] == ["good.jpg"]


def test_a_name_given_twice_is_read_once(tmp_path):
    (tmp_path / "i.tar").write_bytes(tar_bytes([("a.jpg", b"first"), ("./a.jpg", b"second")]))
    archive = open_archive(str(tmp_path / "i.tar"))
    first, second = archive.members()
    assert archive.read(first).image == b"first"
    assert isinstance(second, Refused) and "already" in second.reason


def test_encrypted_and_damaged_zip_members(tmp_path):
    path = tmp_path / "i.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"a" * 5000)
        archive.writestr("b.jpg", b"b" * 5000)
    whole = path.read_bytes()
    archive = open_archive(str(path))
    first, second = archive.members()
    at = archive.read(first).offset + 3
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    with pytest.raises(BadImage, match=r"a\.jpg"):
        archive.read(first)
    assert archive.read(second).image == b"b" * 5000

    flags = whole.index(b"PK\x01\x02") + 8
    path.write_bytes(whole[:flags] + b"\x01\x00" + whole[flags + 2 :])
    refused, _ = open_archive(str(path)).members()
    assert refused == Refused(name="a.jpg", reason="it is encrypted")


def test_a_zip_bomb_is_stopped_at_the_size_it_admits(tmp_path):
    path = tmp_path / "i.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(50_000_000))
    raw = bytearray(path.read_bytes())
    size_field = raw.index(b"PK\x01\x02") + 24
    raw[size_field : size_field + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(raw)
    archive = open_archive(str(path))
    (member,) = archive.members()
    with pytest.raises(BadImage):
        archive.read(member)


@pytest.mark.parametrize("name", ["i.tar", "i.tar.gz", "i.zip"])
def test_a_broken_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no archive at all" * 100)
    with pytest.raises(BrokenArchive, match=name):
        list(open_archive(str(tmp_path / name)).members())


def test_an_archive_with_too_many_entries_is_refused(tmp_path, monkeypatch):
    (tmp_path / "i.tar").write_bytes(tar_bytes(list(CONTENTS.items())))
    write_zip(tmp_path / "i.zip", zipfile.ZIP_STORED)
    for name in ("i.tar", "i.zip"):
        assert len(list(open_archive(str(tmp_path / name)).members())) == len(CONTENTS)
    monkeypatch.setattr(archive_limits, "MAX_ENTRIES", len(CONTENTS) - 1)
    for name in ("i.tar", "i.zip"):
        with pytest.raises(archive_limits.HugeArchive, match=rf"{name} has over 3 entries; divide it"):
            list(open_archive(str(tmp_path / name)).members())


def test_only_a_compressed_archive_can_expand_and_only_a_large_one_is_refused(tmp_path, monkeypatch):
    blank = [(f"{number}.jpg", bytes(2**20)) for number in range(4)]
    (tmp_path / "i.tar").write_bytes(tar_bytes(blank))
    (tmp_path / "i.tar.gz").write_bytes(gzip.compress(tar_bytes(blank)))
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in blank:
            archive.writestr(name, content)
    names = ("i.tar", "i.tar.gz", "i.zip")
    assert [len(list(open_archive(str(tmp_path / name)).members())) for name in names] == [4, 4, 4]
    monkeypatch.setattr(archive_limits, "ANY_EXPANSION_BYTES", 3 * 2**20)
    assert len(list(open_archive(str(tmp_path / "i.tar")).members())) == 4
    for name in ("i.tar.gz", "i.zip"):
        with pytest.raises(archive_limits.HugeArchive, match="over 100 times its size"):
            list(open_archive(str(tmp_path / name)).members())
    monkeypatch.setattr(archive_limits, "MAX_ARCHIVE_BYTES", 2**20)
    with pytest.raises(archive_limits.HugeArchive, match="at most 1048576 are read"):
        list(open_archive(str(tmp_path / "i.tar")).members())


def test_a_sparse_file_is_refused_without_its_map_being_read(tmp_path):
    old = tarfile.TarInfo("sparse.jpg")
    old.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    more = bytes(504) + b"\x01" + bytes(7)
    pax = tarfile.TarInfo("new.jpg")
    pax.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    good = tar_bytes([("good.jpg", b"y")])
    raw = bytes(header) + more * 3 + bytes(512) + pax.tobuf(tarfile.PAX_FORMAT) + good
    (tmp_path / "i.tar").write_bytes(raw)
    found = list(open_archive(str(tmp_path / "i.tar")).members())
    assert [m.name for m in found if isinstance(m, Member)] == ["good.jpg"]
    refused = {m.name: m.reason for m in found if isinstance(m, Refused)}
    assert refused == dict.fromkeys(("sparse.jpg", "new.jpg"), "it is a sparse file")


def test_names_that_differ_by_case_are_both_offered_and_told_of(tmp_path):
    names = ("a/B.jpg", "other.jpg", "A/b.JPG")
    (tmp_path / "i.tar").write_bytes(tar_bytes([(name, b"x") for name in names]))
    items = list(open_source("archive", uri=str(tmp_path / "i.tar")).scan())
    assert {item.image_id: dict(item.mended) for item in items} == {
        "a/B.jpg": {},
        "other.jpg": {},
        "A/b.JPG": {"": ALIKE},
    }


def test_a_cut_tar_gz_is_named(tmp_path):
    whole = gzip.compress(tar_bytes([("a.jpg", os.urandom(100_000))]))
    (tmp_path / "i.tar.gz").write_bytes(whole[:50_000])
    with pytest.raises(BrokenArchive, match="whole"):
        list(open_archive(str(tmp_path / "i.tar.gz")).members())


def test_names_that_are_no_utf8_stay_readable_and_apart(tmp_path):
    info = tarfile.TarInfo("\udcff.jpg")
    info.size = 1
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"x"))
    (tmp_path / "i.tar").write_bytes(sink.getvalue())
    archive = open_archive(str(tmp_path / "i.tar"))
    (member,) = archive.members()
    assert member.name == "\\xff.jpg" and archive.read(member).image == b"x"


def test_the_listing_digest_follows_the_content(tmp_path):
    write_folder(tmp_path / "f")
    archive = open_archive(str(tmp_path / "f"))
    before = listing_digest(archive.members())
    assert listing_digest(open_archive(str(tmp_path / "f")).members()) == before
    (tmp_path / "f" / "a.jpg").write_bytes(b"other")
    assert listing_digest(open_archive(str(tmp_path / "f")).members()) != before


def test_kinds_and_what_is_none(tmp_path):
    assert archive_kind(str(tmp_path)) == "folder"
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.rar"):
        archive_kind(str(tmp_path / "x.rar"))
    with pytest.raises(FileNotFoundError, match="absent"):
        archive_kind(str(tmp_path / "absent.zip"))
