"""What a labelling worker does before the model: read images of a task ahead, check and decode them in threads."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from torch import Tensor

from detectors.base import Preprocessing
from detectors.batching import fit_size, resize_image
from pipelines.byte_ranges import StoredImage, read_stored_images
from pipelines.checks import BadImage, ImageHeader, probe_image
from pipelines.sources.archive import open_archive
from pipelines.sources.archive_formats import Member, TarGz
from pipelines.storage import Store
from workers.batches import decode_image

CHUNK = 16
"""Images that are read, then decoded, in one go."""
_AHEAD = 2
_READERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an image has no predictions."""

    stage: str  # read or decode
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedImage:
    """An image ready for the model, or why it is not.

    Attributes:
        raw: without its bytes.
        pixels: (3, h, w) uint8, already resized to model pixels; None for a failed one.
        size: height, width as stored.
        sha256: of the bytes; None where there are none.
    """

    raw: RawImage
    pixels: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    header: ImageHeader | None = None
    sha256: str | None = None
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
        member = Member(
            name=row["image_id"], **{name: row[name] for name in ("offset", "length", "size", "stamp", "method")}
        )
        try:
            found = self._archive.read(member)
        except BadImage as error:
            return RawImage(place=place, failure=_failure("read", error))
        return RawImage(place=place, image=found.image, offset=found.offset, length=found.length)


def decoded_images(
    reader: ImageReader, task: pa.Table, preprocessing: Preprocessing, *, threads: int
) -> Iterator[DecodedImage]:
    """The images of a task in order, read and decoded ahead of their use.

    At most ``threads + 2`` chunks of images are in memory, whatever the size of the task.
    """
    count = task.num_rows
    with (
        ThreadPoolExecutor(reader.threads, thread_name_prefix="read") as readers,
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as decoders,
    ):
        pending: deque[Future[list[DecodedImage]]] = deque()
        for first in range(0, count, CHUNK):
            raw = readers.submit(reader.read, task, first, min(first + CHUNK, count))
            pending.append(decoders.submit(_decode_chunk, raw, preprocessing))
            if len(pending) >= threads + _AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _decode_chunk(chunk: Future[Sequence[RawImage]], preprocessing: Preprocessing) -> list[DecodedImage]:
    return [decode(raw, preprocessing) for raw in chunk.result()]


def decode(raw: RawImage, preprocessing: Preprocessing) -> DecodedImage:
    """Check, decode and resize one image; what is wrong with it is told, not raised."""
    place = RawImage(place=raw.place, offset=raw.offset, length=raw.length)
    if raw.failure is not None:
        return DecodedImage(raw=place, failure=raw.failure)
    sha256 = hashlib.sha256(raw.image).hexdigest()
    if raw.sha256 is not None and sha256 != raw.sha256:
        failure = Failure(
            stage="read",
            error_class="CorruptShard",
            error=f"the stored bytes have sha256 {sha256}, the dataset says {raw.sha256}",
        )
        return DecodedImage(raw=place, sha256=sha256, failure=failure)
    try:
        header = probe_image(raw.image)
        pixels = decode_image(raw.image)
    except ValueError as error:  # BadImage is one
        return DecodedImage(raw=place, sha256=sha256, failure=_failure("decode", error))
    height, width = int(pixels.shape[1]), int(pixels.shape[2])
    return DecodedImage(
        raw=place,
        pixels=resize_image(pixels, fit_size(height, width, preprocessing)),
        size=(height, width),
        header=header,
        sha256=sha256,
    )


def _failure(stage: str, error: Exception) -> Failure:
    return Failure(stage=stage, error_class=type(error).__name__, error=str(error))
