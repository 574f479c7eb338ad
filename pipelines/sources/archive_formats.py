"""Images where they lie: the members of a folder, tar, tar.gz or zip, each read as one range of bytes.

Nothing is ever extracted: a member's name is only an id, so a hostile one (``..``, absolute, a link, a device) can do
no harm; it is refused and told of, like whatever else cannot be read as one image.
"""

from __future__ import annotations

import gzip
import hashlib
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pipelines.checks import BadImage
from pipelines.local_files import odd_local
from pipelines.sources.archive_limits import MAX_EXPANSION, Allowance, is_bomb
from pipelines.sources.strict_tar import StrictTarInfo
from pipelines.storage import Store, redact

MAX_IMAGE_BYTES = 512 * 1024 * 1024
"""A larger member is refused: one image must fit into a worker's memory many times over."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

# A single request fetches a zip member with its local header, whose extra field may be longer than the directory's.
_ZIP_HEADER = struct.Struct("<4s5H3I2H")
_ZIP_HEADER_SLACK = 1024


class BrokenArchive(ValueError):
    """The archive itself cannot be read: not what its name says, or cut short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One image file and where its bytes lie.

    Attributes:
        name: path inside the folder or archive, with ``/``; the image id.
        offset: of the data in the file (tar), in the uncompressed stream (tar.gz), of the local header (zip); 0 in a
            folder.
        length: bytes as stored.
        size: bytes of the image.
        stamp: what tells another content under the same name: etag, or mtime, or CRC-32.
        method: how a zip stores it: 0 plain, 8 deflated.
    """

    name: str
    offset: int
    length: int
    size: int
    stamp: str = ""
    method: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A member that is not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberBytes:
    """A member's image and the range of bytes in which it lies, -1 -1 where the range alone does not give it."""

    image: bytes
    offset: int
    length: int


class Archive(Protocol):
    """A folder or archive of images: ``members`` once in the planner, ``read`` in the workers."""

    def members(self) -> Iterator[Member | Refused]:
        """Images in the order in which they are cheapest to read, and what was refused."""

    def read(self, member: Member) -> MemberBytes:
        """The bytes of one image.

        Raises:
            BadImage: the member is damaged; others may still be read.
        """

    def close(self) -> None:
        """Give up open files; a later ``read`` opens them again."""


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image: by its suffix; hidden files and macOS's resource forks are not."""
    *folders, last = name.split("/")
    return last.lower().endswith(IMAGE_SUFFIXES) and not last.startswith(".") and "__MACOSX" not in folders


def unsafe_name(name: str) -> str | None:
    """Why a member's name would be dangerous to whoever extracts it, or None."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "its name is an absolute path"
    if ".." in parts:
        return "its name leads out of the archive ('..')"
    if "\x00" in name:
        return "its name holds a zero byte"
    return None


def readable_name(name: str) -> str:
    """A name that is no valid UTF-8 with its odd bytes written as ``\\xNN``: Arrow and JSON hold only text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Folder:
    """All images below a folder or prefix, in the order of their paths."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self._store = store.sub(prefix) if prefix else store

    def members(self) -> Iterator[Member | Refused]:
        odd = self._odd_files()
        for stat_ in self._store.list_files():
            name = stat_.path
            if name.endswith("/"):
                continue  # the marker object of a "folder" in a bucket
            if name in odd:
                yield Refused(name=readable_name(name), reason=odd[name])
            elif not is_image_name(name):
                continue
            elif readable_name(name) != name:
                yield Refused(name=readable_name(name), reason="its name is not valid UTF-8; rename it")
            elif stat_.size > MAX_IMAGE_BYTES:
                yield _too_large(name, stat_.size)
            else:
                yield Member(
                    name=name, offset=0, length=stat_.size, size=stat_.size, stamp=f"{stat_.size}-{stat_.etag}"
                )

    def _odd_files(self) -> dict[str, str]:
        """Links and devices of a local folder; a bucket has none."""
        if not self._store.is_local:
            return {}
        root = self._store.root
        return {
            path[len(root) + 1 :]: "it is a link" if stat.S_ISLNK(mode) else "it is a device, pipe or socket"
            for path, mode in odd_local(root)
        }

    def read(self, member: Member) -> MemberBytes:
        try:
            image = self._store.read_bytes(member.name)
        except (FileNotFoundError, PermissionError) as error:
            raise BadImage(f"{member.name} cannot be read: {error}") from None
        return MemberBytes(image=image, offset=0, length=len(image))

    def close(self) -> None:
        """Nothing is kept open."""


class Tar:
    """The images of a plain tar, each one range of the file."""

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path

    def members(self) -> Iterator[Member | Refused]:
        with self._store.open_read(self._path) as file:
            yield from _tar_members(file, Allowance(name=redact(self._store.join(self._path))))

    def read(self, member: Member) -> MemberBytes:
        try:
            image = self._store.read_range(self._path, member.offset, member.size)
        except ValueError as error:
            raise BadImage(f"{member.name}: {error}") from None
        return MemberBytes(image=image, offset=member.offset, length=member.length)

    def close(self) -> None:
        """Nothing is kept open."""


class TarGz:
    """The images of a compressed tar: one forward pass over the stream serves reads in the order of the members.

    Gzip has no random access: a read behind the last one starts the stream again. Tasks are handed out in order, so
    a worker passes the stream about once.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        self._lock = threading.Lock()
        self._file: Any = None
        self._stream: gzip.GzipFile | None = None

    def members(self) -> Iterator[Member | Refused]:
        allowance = Allowance(name=redact(self._store.join(self._path)), stored=self._store.stat(self._path).size)
        with self._store.open_read(self._path) as file, gzip.GzipFile(fileobj=file) as stream:
            yield from _tar_members(stream, allowance)

    def read(self, member: Member) -> MemberBytes:
        with self._lock:
            if self._stream is None:
                self._file = self._store.open_read(self._path)
                self._stream = gzip.GzipFile(fileobj=self._file)
            try:
                self._stream.seek(member.offset)
                image = self._stream.read(member.size)
            except BaseException:
                self._close()  # the stream's state is unknown now
                raise
        return MemberBytes(image=_whole(image, member), offset=member.offset, length=member.length)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        for file in (self._stream, self._file):
            if file is not None:
                file.close()
        self._stream = self._file = None


class Zip:
    """The images of a zip, each one range of the file, stored plain or deflated."""

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path

    def members(self) -> Iterator[Member | Refused]:
        try:
            with self._store.open_read(self._path) as file, zipfile.ZipFile(file) as archive:
                entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        except zipfile.BadZipFile as error:
            raise BrokenArchive(
                f"{redact(self._store.join(self._path))} cannot be read as a zip: {error}; is the file whole?"
            ) from None
        names, unpacked = _Names(), 0
        allowance = Allowance(name=redact(self._store.join(self._path)), stored=self._file_size)
        for entry in entries:
            if not entry.is_dir():
                member = _zip_member(entry)
                unpacked += member.size if isinstance(member, Member) else 0  # others are never unpacked
                allowance.check(entries=len(entries), unpacked=unpacked)
                yield from names.checked(member)

    def read(self, member: Member) -> MemberBytes:
        start, end_of_file = member.offset, self._file_size
        head = _ZIP_HEADER.size + len(member.name.encode()) + _ZIP_HEADER_SLACK
        raw = self._store.read_range(self._path, start, min(head + member.length, end_of_file - start))
        if len(raw) < _ZIP_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise BadImage(f"{member.name}: no zip entry where the directory says one begins")
        *_, name_length, extra_length = _ZIP_HEADER.unpack_from(raw)
        begin = _ZIP_HEADER.size + name_length + extra_length
        if len(raw) < begin + member.length <= end_of_file - start:
            raw += self._store.read_range(self._path, start + len(raw), begin + member.length - len(raw))
        stored = raw[begin : begin + member.length]
        image = stored if member.method == zipfile.ZIP_STORED else _inflate(stored, member)
        if f"{zlib.crc32(image):08x}" != member.stamp:
            raise BadImage(f"{member.name}: its CRC-32 is not what the zip's directory says")
        return MemberBytes(image=_whole(image, member), offset=start + begin, length=member.length)

    @cached_property
    def _file_size(self) -> int:
        return self._store.stat(self._path).size

    def close(self) -> None:
        """Nothing is kept open."""


def listing_digest(members: Iterator[Member]) -> str:
    """Digest of a listing: changes when a member is added, removed, moved or its content replaced."""
    digest = hashlib.sha256()
    for m in members:
        digest.update(f"{m.name}\0{m.offset}\0{m.length}\0{m.size}\0{m.stamp}\0{m.method}\n".encode())
    return digest.hexdigest()


class _Names:
    """Lets a name through once: an image id must be unique."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def checked(self, member: Member | Refused | None) -> Iterator[Member | Refused]:
        if isinstance(member, Member):
            if member.name in self._seen:
                member = Refused(name=member.name, reason="the archive holds this name already")
            else:
                self._seen.add(member.name)
        if member is not None:
            yield member


def _tar_members(file: Any, allowance: Allowance) -> Iterator[Member | Refused]:
    names, entries = _Names(), 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header: memory must not grow with the archive
                entries += 1
                allowance.check(entries=entries, unpacked=tar.offset)  # type: ignore[attr-defined]
                if not entry.isdir():
                    yield from names.checked(_tar_member(entry))
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BrokenArchive(f"{allowance.name} cannot be read as a tar: {error}; is the file whole?") from None


def _tar_member(entry: tarfile.TarInfo) -> Member | Refused | None:
    return _refusal(
        entry.name,
        entry.size,
        [
            (entry.issym() or entry.islnk(), "it is a link"),
            (not entry.isreg(), "it is a device, pipe or of an unknown type"),
            (entry.issparse(), "it is a sparse file"),
        ],
        lambda safe: Member(
            name=safe,
            offset=entry.offset_data,
            length=entry.size,
            size=entry.size,
            stamp=str(entry.mtime),
        ),
    )


def _zip_member(entry: zipfile.ZipInfo) -> Member | Refused | None:
    mode = entry.external_attr >> 16 if entry.create_system == 3 else 0
    kind = stat.S_IFMT(mode)
    return _refusal(
        entry.orig_filename,
        entry.file_size,
        [
            (kind == stat.S_IFLNK, "it is a link"),
            (kind not in (0, stat.S_IFREG), "it is a device, pipe or of an unknown type"),
            (bool(entry.flag_bits & 1), "it is encrypted"),
            (is_bomb(entry.file_size, entry.compress_size), f"it expands to over {MAX_EXPANSION} times its size"),
            (
                entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
                f"zip compression method {entry.compress_type} is not read; store or deflate it",
            ),
        ],
        lambda safe: Member(
            name=safe,
            offset=entry.header_offset,
            length=entry.compress_size,
            size=entry.file_size,
            stamp=f"{entry.CRC:08x}",
            method=entry.compress_type,
        ),
    )


def _refusal(
    name: str, size: int, faults: list[tuple[bool, str]], member: Callable[[str], Member]
) -> Member | Refused | None:
    """The member, or why it is refused; None for a harmless file that is no image."""
    unsafe = unsafe_name(name)
    name = readable_name(name)
    if unsafe is not None:
        return Refused(name=name, reason=unsafe)
    safe = "/".join(part for part in name.split("/") if part not in ("", "."))
    for is_fault, reason in faults:
        if is_fault:
            return Refused(name=safe, reason=reason)
    if not is_image_name(safe):
        return None
    return _too_large(safe, size) if size > MAX_IMAGE_BYTES else member(safe)


def _too_large(name: str, size: int) -> Refused:
    return Refused(name=name, reason=f"it has {size} bytes; at most {MAX_IMAGE_BYTES} are read")


def _inflate(stored: bytes, member: Member) -> bytes:
    # Bounded by the size the directory gives: a bomb that says it is small must not fill the memory.
    try:
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(stored, member.size + 1)
    except zlib.error as error:
        raise BadImage(f"{member.name}: its deflated bytes are damaged: {error}") from None


def _whole(image: bytes, member: Member) -> bytes:
    if len(image) != member.size:
        raise BadImage(f"{member.name}: {len(image)} bytes where the archive promises {member.size}")
    return image
