"""The deep check: decode an image to its last pixel."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator

from PIL import Image

from pipelines.checks import FORMATS, BadImage

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END = 0xD9
_FILLER = 256  # bytes


def check_pixels(image: bytes, format: str) -> None:
    """Decode the whole image.

    Decoders of JPEG fill what is missing with grey and do not say so. Whether anything was missing shows in a second
    try: bytes put behind the data change the picture only where the decoder ran out of them.

    Args:
        image: that ``probe_image`` has accepted.
        format: as it says, lower case.
    Raises:
        BadImage: the pixels are damaged, or not all there.
    """
    pixels = _decode(image)
    if format != "jpeg":
        return
    end = jpeg_end(image)
    if end is None:
        raise BadImage("damaged: the jpeg markers do not lead to an end")
    # Never 0xFF, so that no marker comes up; varied, so that no Huffman code swallows all of it.
    filler = bytes(1 + value % 253 for value in hashlib.shake_128(b"filler").digest(_FILLER))
    if _decode(image[:end] + filler + image[end:]) != pixels:
        raise BadImage("cut off: the jpeg data ends before the last pixel")


def _decode(image: bytes) -> bytes:
    """A digest of the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
                if opened.format == "PNG":
                    _verify_checksums(image)
                opened.load()
                return hashlib.sha256(opened.tobytes()).digest()
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet in hostile bytes
        raise BadImage(f"cannot be decoded: {type(error).__name__}: {error}") from None


def _verify_checksums(image: bytes) -> None:
    # Decoding skips the checksums of PNG's chunks, verify() reads nothing else.
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        opened.verify()


def jpeg_end(image: bytes) -> int | None:
    """Where the end marker of the first picture lies; None where the segments do not lead to one."""
    return next((position for marker, position in _segments(image) if marker == _END), None)


def _segments(image: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position) of each; data of a scan is passed over."""
    position = 2
    while found := _MARKER.search(image, position):
        marker, at = image[found.start() + 1], found.start()
        yield marker, at
        if marker == _END:
            return
        if marker == 0x01:
            position = at + 2
            continue
        position = at + 2 + int.from_bytes(image[at + 2 : at + 4], "big")
