"""The header of an ordinary JPEG, in a tenth of a library's time; whatever is not ordinary is left to the library."""

from __future__ import annotations

_MARKER = 0xFF
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_PLAIN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_REFUSED = frozenset({_MARKER, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_START_OF_SCAN = 0xDA
_SPECIAL = {0xE1: b"Exif", 0xE2: b"MPF\x00"}  # segments that turn the image, or add pictures to it
_END = b"\xff\xd9"


def plain_jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Width and height of a whole 8-bit grey or three-colour JPEG without EXIF.

    Args:
        image: the file.
    Returns:
        Pixels; None for anything else: another format, a header out of the ordinary, EXIF (it may turn the image),
        several pictures in one file, a file that was cut.
    """
    if image[:3] != b"\xff\xd8\xff":
        return None
    size = None
    position, last = 2, len(image) - 4
    while position < last:
        if image[position] != _MARKER:
            return None
        marker = image[position + 1]
        if marker in _STANDALONE:
            position += 2
            continue
        length = image[position + 2] << 8 | image[position + 3]
        if marker == _START_OF_SCAN:
            # The end marker is looked for from behind, and behind here: a thumbnail has one of its own.
            return size if image.rfind(_END, position) > 0 else None
        if marker in _PLAIN_FRAMES:
            size = _frame_size(image[position + 4 : position + 2 + length])
            if size is None:
                return None
        elif marker in _REFUSED or length < 2 or image[position + 4 : position + 8] == _SPECIAL.get(marker):
            return None
        position += 2 + length
    return None


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Width and height of a frame header of 8 bits and one or three components."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    return (width, height) if width and height else None
