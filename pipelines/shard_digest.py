"""A shard's digest, and where in it each image lies."""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_END = 64  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEnds:
    """What an image is known by where it was written.

    Attributes:
        sha256: of the image, hex.
        length: bytes.
        first, last: some of its bytes.
    """

    sha256: str
    length: int
    first: bytes
    last: bytes

    @classmethod
    def of(cls, image: bytes, sha256: str) -> ImageEnds:
        return cls(sha256=sha256, length=len(image), first=image[:_END], last=image[-_END:])


def find_images(content: bytes | mmap.mmap, images: Sequence[ImageEnds]) -> tuple[str, list[int]]:
    """The ``ShardDigest`` of a shard in hex, and where each of its images begins.

    PLAIN values are a 4-byte length, then the bytes, so that images of one page touch: what is searched are the headers
    of pages, and the other columns between two row groups.

    Args:
        content: of the shard.
        images: in its order.
    Raises:
        RuntimeError: an image is not in one piece.
    """
    digest, offsets, taken = ShardDigest(), [], 0
    with memoryview(content) as whole:
        for image in images:
            start = _find(content, image, taken)
            digest.rest(whole[taken:start])
            digest.image(image.sha256)
            offsets.append(start)
            taken = start + image.length
        digest.rest(whole[taken:])
    return digest.hexdigest(), offsets


def _find(content: bytes | mmap.mmap, image: ImageEnds, position: int) -> int:
    beginning = struct.pack("<I", image.length) + image.first
    while (found := content.find(beginning, position)) >= 0:
        position = found + 4
        # Both ends, as the other columns may hold anything.
        end = position + image.length
        if content[end - len(image.last) : end] == image.last:
            return position
    raise RuntimeError("an image is not in one piece in its shard")


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
