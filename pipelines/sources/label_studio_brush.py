"""Label Studio's bitmap masks: runs of bytes of an RGBA picture, packed bit by bit.

Source: label_studio_sdk.converter.brush (Apache-2.0), read and written here without its loops over bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.records import BoolArray

_CHANNELS = 4
_MAX_PIXELS = 2**27
_WORD_BITS = 8
_SIZES = (3, 4, 8, 16)  # bits of a run's length, by its two-bit code


class BadBrush(ValueError):
    """Not a bitmap of the size that the task says."""


def decode_brush(packed: Sequence[int], width: int, height: int) -> BoolArray:
    """The (height, width) bitmap of packed runs: where the alpha channel is above 0.

    Raises:
        BadBrush: cut, or of another size.
    """
    if not 0 < width * height <= _MAX_PIXELS or not all(type(v) is int and 0 <= v < 256 for v in packed):
        raise BadBrush("brush mask is not bytes of a sound size")
    bits = np.unpackbits(np.array(packed, np.uint8))
    weights = 1 << np.arange(31, -1, -1, dtype=np.int64)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise BadBrush("brush mask is cut")
        value = int(bits[at : at + count] @ weights[32 - count :])
        at += count
        return value

    total = read(32)
    if total != width * height * _CHANNELS:
        raise BadBrush("brush mask is of another size than the image")
    word = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    found = np.zeros(total, np.int64)
    place = 0
    while place < total:
        same = read(1)
        run = 1 + read(sizes[read(2)])
        end = min(place + run, total)
        if same:
            found[place:end] = read(word)
        else:
            if at + run * word > len(bits):
                raise BadBrush("brush mask is cut")
            words = bits[at : at + run * word].reshape(run, word) @ weights[32 - word :]
            found[place:end] = words[: end - place]
            at += run * word
        place += run
    return found.reshape(height, width, _CHANNELS)[:, :, 3] > 0


def encode_brush(mask: BoolArray) -> list[int]:
    """Pack a (H, W) bitmap: white where it is set, nothing elsewhere."""
    flat = mask.reshape(-1)
    parts = [_bits(len(flat) * _CHANNELS, 32), _bits(_WORD_BITS - 1, 5), *(_bits(size - 1, 4) for size in _SIZES)]
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(flat)]])
    for start, end in zip(starts.tolist(), ends.tolist()):
        value = 255 if flat[start] else 0
        length = (end - start) * _CHANNELS
        while length:
            run = min(length, 1 << _SIZES[-1])
            code = next(i for i, size in enumerate(_SIZES) if run <= 1 << size)
            parts.append("1" + _bits(code, 2) + _bits(run - 1, _SIZES[code]) + _bits(value, _WORD_BITS))
            length -= run
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _bits(value: int, count: int) -> str:
    return format(value, f"0{count}b")
