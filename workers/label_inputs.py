"""What a labelling worker does before the model: read images of a task ahead, check and decode them in threads."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import pyarrow as pa
from torch import Tensor

from detectors.base import Preprocessing
from detectors.batching import fit_size, resize_image
from pipelines.checks import ImageHeader, probe_image
from workers.batches import decode_image
from workers.label_readers import Failure, ImageReader, RawImage, failure_of
from workers.label_stages import StageClock

CHUNK = 16
WHOLE_CHUNK = 2
"""Of images that stay as large as they are: a few of them take as much memory as many resized ones."""
_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedImage:
    """An image ready for the model, or why it is not.

    Attributes:
        raw: without its bytes.
        pixels: (3, h, w) uint8, in model pixels, or as stored where that is asked for; None for a failed one.
        size: height, width as stored.
        sha256: of the bytes; None where there are none.
    """

    raw: RawImage
    pixels: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    header: ImageHeader | None = None
    sha256: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputThreads:
    """Who reads and who decodes; shared by the tasks of a worker.

    Attributes:
        readers, decoders: pools.
        decoding: threads of the latter.
        chunk: images that are read, then decoded, in one go.
    """

    readers: Executor
    decoders: Executor
    decoding: int
    chunk: int = CHUNK


Decoded = tuple[DecodedImage, ...]
"""One image as each of several models wants it."""


def decoded_images(
    reader: ImageReader,
    task: pa.Table,
    preprocessings: Sequence[Preprocessing | None],
    threads: InputThreads,
    clock: StageClock,
) -> Iterator[Decoded]:
    """The images of a task in order, read and decoded ahead of their use, once for all models.

    At most ``decoding + 2`` chunks of images are in memory, whatever the size of the task.

    Args:
        preprocessings: of each model; None: it wants them as large as they are.
    """
    count = task.num_rows
    pending: deque[Future[list[Decoded]]] = deque()
    try:
        for first in range(0, count, threads.chunk):
            raw = threads.readers.submit(_read_chunk, reader, task, first, min(first + threads.chunk, count), clock)
            pending.append(threads.decoders.submit(_decode_chunk, raw, preprocessings, clock))
            if len(pending) >= threads.decoding + _AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _read_chunk(reader: ImageReader, task: pa.Table, first: int, last: int, clock: StageClock) -> list[RawImage]:
    with clock.timed("read"):
        chunk = reader.read(task, first, last)
    clock.read(sum(len(raw.image) for raw in chunk))
    return chunk


def _decode_chunk(
    chunk: Future[list[RawImage]], preprocessings: Sequence[Preprocessing | None], clock: StageClock
) -> list[Decoded]:
    raw_images = chunk.result()
    with clock.timed("decode"):
        return [decode_for_each(raw, preprocessings) for raw in raw_images]


def decode(raw: RawImage, preprocessing: Preprocessing | None) -> DecodedImage:
    """Check, decode and resize one image (None: it stays as it is); what is wrong with it is told, not raised."""
    return decode_for_each(raw, [preprocessing])[0]


def decode_for_each(raw: RawImage, preprocessings: Sequence[Preprocessing | None]) -> Decoded:
    """As ``decode``, once for several models; those that want one size share its pixels."""
    whole = _decode(raw)
    if whole.pixels is None:
        return (whole,) * len(preprocessings)
    sizes = [whole.size if p is None else fit_size(*whole.size, p) for p in preprocessings]
    resized = {size: whole if size == whole.size else _resized(whole, size) for size in sizes}
    return tuple(resized[size] for size in sizes)


def _resized(image: DecodedImage, size: tuple[int, int]) -> DecodedImage:
    assert image.pixels is not None, "a bad image has no size"
    return replace(image, pixels=resize_image(image.pixels, size))


def _decode(raw: RawImage) -> DecodedImage:
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
        return DecodedImage(raw=place, sha256=sha256, failure=failure_of("decode", error))
    height, width = int(pixels.shape[1]), int(pixels.shape[2])
    return DecodedImage(
        raw=place,
        pixels=pixels,
        size=(height, width),
        header=header,
        sha256=sha256,
    )
