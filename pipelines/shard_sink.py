"""Where a shard is written to: its digest and the place of each image are known with the last byte."""

from __future__ import annotations

import hashlib
import io
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any

from pipelines.open_files import NewFile

_END = 64  # bytes


class ShardSink(io.RawIOBase):
    """Writes through to a file, looking for the images in what passes and hashing the rest.

    Args:
        file: gets every byte.
    """

    def __init__(self, file: NewFile) -> None:
        super().__init__()
        self._file = file
        self._expected: deque[tuple[bytes, str]] = deque()
        self._digest = ShardDigest()
        self._offsets: list[int] = []
        self.size = 0

    @property
    def digest(self) -> str:
        """Of all that was written, hex; see ``ShardDigest``."""
        return self._digest.hexdigest()

    @property
    def offsets(self) -> list[int]:
        """Where each image begins."""
        assert not self._expected, "an image is not contiguous in its shard"
        return self._offsets

    def expect(self, images: Iterable[tuple[bytes, str]]) -> None:
        """Images with their sha256, in the order in which they will come."""
        self._expected.extend(images)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, content: Any) -> int:
        piece = bytes(content)  # the same object where it is bytes already
        self._take(piece)
        self._file.write(piece)
        self.size += len(piece)
        return len(piece)

    def _take(self, piece: bytes) -> None:
        """PLAIN values are a 4-byte length, then the bytes, so that images of one page touch."""
        whole = memoryview(piece)
        taken = position = 0
        while self._expected:
            image, sha256 = self._expected[0]
            # Only the header of a page can lie before it; both ends make sure that all of it is in this piece.
            position = piece.find(struct.pack("<I", len(image)) + image[:_END], position) + 4
            if position < 4:
                break
            if not piece.startswith(image[-_END:], position + max(0, len(image) - _END)):
                continue
            self._digest.rest(whole[taken:position])
            self._digest.image(sha256)
            self._offsets.append(self.size + position)
            self._expected.popleft()
            taken = position = position + len(image)
        self._digest.rest(whole[taken:])


class ShardDigest:
    """The sha256 over a shard in which each image stands for itself by its own sha256.

    It covers every byte as a digest over the file does, but images, which are nearly all of it, are hashed once.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def rest(self, content: bytes | memoryview) -> None:
        """The next bytes that are of no image."""
        self._sha256.update(content)

    def image(self, sha256: str) -> None:
        """The next image, by its digest in hex."""
        self._sha256.update(bytes.fromhex(sha256))

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()
