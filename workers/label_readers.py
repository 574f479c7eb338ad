"""Where a labelling worker gets its images' bytes: one reader for each kind of input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import pyarrow as pa

from pipelines.byte_ranges import StoredImage, read_stored_images
from pipelines.checks import BadImage
from pipelines.quarantine import Stage
from pipelines.sources import SourceItem
from pipelines.sources.archive import open_archive
from pipelines.sources.archive_formats import Archive, Member, Tar, TarGz
from pipelines.sources.url_list import UrlListSource
from pipelines.storage import Store, split_uri
from workers.label_job import InputKind

_READERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an image has no predictions."""

    stage: Stage  # read, decode or label
    error_class: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawImage:
    """An image's bytes, or why there are none.

    Attributes:
        place: in the task, from 0.
        sha256: that the bytes must have; None where nobody has said.
        offset, length: of the bytes in the archive's file; None where they were not read.
    """

    place: int
    image: bytes = b""
    sha256: str | None = None
    offset: int | None = None
    length: int | None = None
    failure: Failure | None = None


class ImageReader(Protocol):
    """Reads the images of a task."""

    threads: int

    def read(self, task: pa.Table, first: int, last: int) -> list[RawImage]:
        """Images ``first`` to ``last - 1`` of a task."""


class DatasetReader:
    """Images of a dataset's shards."""

    threads = _READERS

    def __init__(self, uri: str) -> None:
        self._store = Store.open(uri)

    def read(self, task: pa.Table, first: int, last: int) -> list[RawImage]:
        rows = task["row"].slice(first, last - first).to_pylist()
        stored = read_stored_images(self._store, task["image_path"][first].as_py(), rows)
        return [_raw(first + i, image) for i, image in enumerate(stored)]


def _raw(place: int, stored: StoredImage) -> RawImage:
    if stored.error is not None:
        failure = Failure(stage="read", error_class="CorruptShard", error=stored.error)
        return RawImage(place=place, failure=failure)
    return RawImage(place=place, image=stored.image, sha256=stored.sha256, length=len(stored.image))


class ArchiveReader:
    """Images of a folder or an archive."""

    def __init__(self, uri: str) -> None:
        self._archive = open_archive(uri)
        # Two readers of one compressed stream would take turns to send each other back to its beginning.
        self.threads = 1 if isinstance(self._archive, TarGz) else _READERS

    def read(self, task: pa.Table, first: int, last: int) -> list[RawImage]:
        rows = task.slice(first, last - first).to_pylist()
        return [self._read(first + i, row) for i, row in enumerate(rows)]

    def _read(self, place: int, row: dict[str, Any]) -> RawImage:
        return _read_member(self._archive, place, row)


class WebDatasetReader:
    """Images of tars, each one range of its tar."""

    threads = _READERS

    def read(self, task: pa.Table, first: int, last: int) -> list[RawImage]:
        rows = task.slice(first, last - first).to_pylist()
        tars = {uri: Tar(*split_uri(uri)) for uri in {row["uri"] for row in rows}}
        return [_read_member(tars[row["uri"]], first + i, row) for i, row in enumerate(rows)]


class UrlListReader:
    """Images behind the lines of a list."""

    threads = _READERS

    def __init__(self, uri: str) -> None:
        self._source = UrlListSource.open(uri=uri)

    def read(self, task: pa.Table, first: int, last: int) -> list[RawImage]:
        rows = task.slice(first, last - first).to_pylist()
        return [self._read(first + i, row) for i, row in enumerate(rows)]

    def _read(self, place: int, row: dict[str, Any]) -> RawImage:
        line = {"offset": row["offset"], "length": row["length"]}
        try:
            found = self._source.load(SourceItem(image_id=row["image_id"], uri=row["uri"], payload=line))
        except BadImage as error:
            # The source looks at what it has fetched; of what is no image it says the digest.
            return RawImage(place=place, failure=failure_of("read" if error.sha256 is None else "decode", error))
        except FileNotFoundError as error:
            return RawImage(place=place, failure=failure_of("read", error))
        return RawImage(place=place, image=found.image, length=len(found.image))


def open_reader(kind: InputKind, uri: str) -> ImageReader:
    """The reader of an input."""
    match kind:
        case "dataset":
            return DatasetReader(uri)
        case "archive":
            return ArchiveReader(uri)
        case "webdataset":
            return WebDatasetReader()
        case "url_list":
            return UrlListReader(uri)
        case _:
            assert_never(kind)


def _read_member(archive: Archive, place: int, row: dict[str, Any]) -> RawImage:
    where = {name: row[name] for name in ("offset", "length", "size", "stamp", "method")}
    try:
        found = archive.read(Member(name=row["image_id"], **where))
    except BadImage as error:
        return RawImage(place=place, failure=failure_of("read", error))
    return RawImage(place=place, image=found.image, offset=found.offset, length=found.length)


def failure_of(stage: Stage, error: Exception) -> Failure:
    return Failure(stage=stage, error_class=type(error).__name__, error=str(error))
