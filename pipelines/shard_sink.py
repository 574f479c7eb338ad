"""Where a shard is written to: its digest and the place of each image are known with the last byte."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from typing import Any

from pipelines.storage import NewFile


class ShardSink(io.RawIOBase):
    """Writes through to a file, hashing what passes and looking for the images in it.

    A shard is large: it is in memory one piece at a time, and is hashed while the piece is in the cache still.

    Args:
        file: gets every byte.
        images: in the order in which they will come. PLAIN values are a 4-byte length, then the bytes.
    """

    def __init__(self, file: NewFile, images: Sequence[bytes]) -> None:
        super().__init__()
        self._file = file
        self._images = images
        self._sha256 = hashlib.sha256()
        self._offsets: list[int] = []
        self.size = 0

    @property
    def digest(self) -> str:
        """sha256 of all that was written, hex."""
        return self._sha256.hexdigest()

    @property
    def offsets(self) -> list[int]:
        """Where each image begins."""
        assert len(self._offsets) == len(self._images), "an image is not contiguous in its shard"
        return self._offsets

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, content: Any) -> int:
        piece = bytes(content)  # the same object where it is bytes already
        self._find_images(piece)
        self._sha256.update(piece)
        self._file.write(piece)
        self.size += len(piece)
        return len(piece)

    def _find_images(self, piece: bytes) -> None:
        position = 0
        while len(self._offsets) < len(self._images):
            image = self._images[len(self._offsets)]
            needle = struct.pack("<I", len(image)) + image[:64]
            position = piece.find(needle, position)
            if position < 0:
                return
            position += 4
            if piece[position : position + len(image)] == image:
                self._offsets.append(self.size + position)
                position += len(image)
