"""Images that lie elsewhere than in a dataset: what a row of their predictions says of the place, and reading there.

Each is read for itself, however many others lie beside it. Only a list of URLs is passed through again, since a line
may hold a signature, which no row does.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar, assert_never

import pyarrow as pa

from pipelines.checks import BadImage
from pipelines.in_order import in_order
from pipelines.schema import LABELS
from pipelines.shards import ShardRef, read_label_file
from pipelines.sources import SourceItem
from pipelines.sources.archive import archive_kind
from pipelines.sources.archive_formats import MAX_IMAGE_BYTES, Member, TarGz
from pipelines.sources.url_list import UrlListSource
from pipelines.storage import Store, redact, split_uri

Key = TypeVar("Key")
_READERS = 8

# What an archive's row says beyond a dataset's: there is no images table to look it up in.
ARCHIVE_ROWS = pa.schema(
    [
        *LABELS,
        ("source", pa.string()),  # of the archive or folder, without credentials
        ("member", pa.string()),  # path inside it
        ("offset", pa.int64()),  # of the image's bytes in the file, or in the uncompressed stream of a tar.gz
        ("length", pa.int64()),
        ("format", pa.string()),
        ("exif_orientation", pa.int32()),
    ]
)
_PLACE = ARCHIVE_ROWS.names[len(LABELS) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePlace:
    """Where an archive's image lies; see ``ARCHIVE_ROWS``. Offset and length None: it could not be read."""

    source: str
    member: str
    offset: int | None = None
    length: int | None = None
    format: str | None = None
    exif_orientation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveImage:
    """An image to read.

    Attributes:
        place: where it lies.
        sha256: that its bytes must have; None where nobody has said.
        failed: whether it could not be labelled; if that was because it could not be read, it is not tried again.
    """

    place: ArchivePlace
    sha256: str | None = None
    failed: bool = False


def read_places(shard: ShardRef) -> list[ArchivePlace]:
    """Of all rows of an archive's label file, in its order."""
    table = read_label_file(shard.uri, shard.label_path)
    return [ArchivePlace(**place) for place in table.select(_PLACE).to_pylist()]


def read_archive_images(
    kind: str, uri: str, images: Iterable[tuple[Key, ArchiveImage]], members: Collection[str] | None = None
) -> Iterator[tuple[Key, bytes | BadImage]]:
    """Some images where they lie, a few of them ahead of what is taken.

    Args:
        kind, uri: of the input, as the predictions' provenance has them.
        images: whatever the caller knows them by, and where they lie; in the order of their rows, which a compressed
            stream and a list of URLs are in too.
        members: of all ``images``, where these are few: no other lines of a list are kept.
    Returns:
        Each with its bytes, or what is wrong with that one image: it is gone, changed, or damaged.
    Raises:
        FileNotFoundError, ValueError: the folder, archive or list is not there.
    """
    match kind:
        case "webdataset":
            yield from _each(_read_range, images)
        case "url_list":
            source = UrlListSource.open(uri=uri)
            yield from _each(lambda image: _read_line(source, image), _with_lines(source, images, members))
        case "archive":
            yield from _read_archive(uri, images)
        case _:
            raise ValueError(f"these are predictions of a {kind!r}, whose images this boxmill cannot read; upgrade it")


def _read_archive(uri: str, images: Iterable[tuple[Key, ArchiveImage]]) -> Iterator[tuple[Key, bytes | BadImage]]:
    kind = archive_kind(uri)
    match kind:
        case "folder":
            yield from _each(_read_file, images)
        case "tar":
            yield from _each(_read_range, images)
        case "zip":
            yield from _each(_read_zipped, images)
        case "tar.gz":
            with closing(_Stream(uri)) as stream:
                # Several readers of one stream would send each other back to its beginning.
                yield from _each(stream.read, images, threads=1)
        case _:
            assert_never(kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed(ArchiveImage):
    """An image behind a line of a list; None where the list has it no more."""

    line: SourceItem | None


Placed = TypeVar("Placed", bound=ArchiveImage)


def _each(
    read: Callable[[Placed], bytes], images: Iterable[tuple[Key, Placed]], threads: int = _READERS
) -> Iterator[tuple[Key, bytes | BadImage]]:
    def attempt(one: tuple[Key, Placed]) -> tuple[Key, bytes | BadImage]:
        key, image = one
        if image.failed and image.place.length is None:
            return key, BadImage("it could not be read when it was labelled")
        try:
            content = read(image)
        except BadImage as error:
            return key, error.with_traceback(None)
        if image.sha256 is not None and hashlib.sha256(content).hexdigest() != image.sha256:
            return key, BadImage(f"{image.place.member} has changed since it was labelled")
        return key, content

    yield from in_order(attempt, images, threads=threads)


def _read_file(image: ArchiveImage) -> bytes:
    store = Store.open(image.place.source)
    try:
        return store.read_bytes(image.place.member)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadImage(f"{image.place.member} is no file of {redact(store.uri)} any more") from None
    except PermissionError as error:
        # On a disk a file has permissions of its own; a store that refuses one refuses all.
        if not store.is_local:
            raise
        raise BadImage(f"{image.place.member} cannot be read: {error.strerror}") from None


def _read_range(image: ArchiveImage) -> bytes:
    place = image.place
    offset, length = _range(place)
    store, name = split_uri(place.source)
    try:
        return store.read_range(name, offset, length)
    except FileNotFoundError:
        raise BadImage(f"{redact(place.source)} is gone") from None
    except ValueError as error:
        raise BadImage(f"{place.member} has changed since it was labelled: {error}") from None


def _range(place: ArchivePlace) -> tuple[int, int]:
    if place.offset is None or place.length is None or place.offset < 0:
        raise BadImage(f"the predictions do not say where {place.member} lies in {redact(place.source)}")
    return place.offset, place.length


def _read_zipped(image: ArchiveImage) -> bytes:
    """A row does not say whether a zip holds its image deflated; the bytes do."""
    stored = _read_range(image)
    if image.sha256 is not None and hashlib.sha256(stored).hexdigest() == image.sha256:
        return stored
    try:
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(stored, MAX_IMAGE_BYTES)
    except zlib.error:
        return stored


class _Stream:
    """A compressed tar, passed forward. What lies behind damage cannot be read, and is not tried one by one."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._archive = TarGz(*split_uri(uri))
        self._damage: str | None = None

    def read(self, image: ArchiveImage) -> bytes:
        offset, length = _range(image.place)
        if self._damage is not None:
            raise BadImage(self._damage)
        try:
            return self._archive.read(Member(name=image.place.member, offset=offset, length=length, size=length)).image
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            self._damage = f"{redact(self._uri)} is damaged before the end of {image.place.member}: {error}"
            raise BadImage(self._damage) from None

    def close(self) -> None:
        self._archive.close()


def _read_line(source: UrlListSource, image: _Listed) -> bytes:
    if image.line is None:
        raise BadImage(f"{redact(source.uri)} does not name it any more")
    try:
        return source.load(image.line).image
    except FileNotFoundError:
        raise BadImage(f"{image.line.uri} is gone") from None


def _with_lines(
    source: UrlListSource, images: Iterable[tuple[Key, ArchiveImage]], members: Collection[str] | None
) -> Iterator[tuple[Key, _Listed]]:
    """Images with their lines. A list whose order is that of the rows is passed with one line in memory."""
    lines = (item for item in source.scan() if isinstance(item, SourceItem))
    passed: dict[str, SourceItem] = {}
    for key, image in images:
        member = image.place.member
        while member not in passed and (line := next(lines, None)) is not None:
            if members is None or line.image_id in members:
                passed.setdefault(line.image_id, line)  # of an image that is named twice the first counts
        yield (
            key,
            _Listed(place=image.place, sha256=image.sha256, failed=image.failed, line=passed.pop(member, None)),
        )
