"""How much an archive may hold: what unpacks to far more than it is must not fill a memory, or days."""

from __future__ import annotations

from dataclasses import dataclass

MAX_ENTRIES = 20_000_000
"""Entries of one archive; the largest public sets of images have fewer."""

MAX_ARCHIVE_BYTES = 2**44
"""16 TiB, unpacked."""

MAX_EXPANSION = 100
"""Bytes unpacked for each that is stored, once there are over ``ANY_EXPANSION_BYTES``: no pictures shrink further."""

ANY_EXPANSION_BYTES = 64 * 2**20
_ANY_MEMBER_BYTES = 16 * 2**20


class HugeArchive(ValueError):
    """An archive that holds more than is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one archive may hold.

    Attributes:
        name: of the archive, for messages; without credentials.
        stored: its own bytes where it is compressed, None where it is not.
    """

    name: str
    stored: int | None = None

    def check(self, *, entries: int, unpacked: int) -> None:
        """Compare with what was met so far.

        Raises:
            HugeArchive: that is too much.
        """
        if entries > MAX_ENTRIES:
            raise HugeArchive(f"{self.name} has over {MAX_ENTRIES} entries; divide it into several archives")
        if unpacked > MAX_ARCHIVE_BYTES:
            raise HugeArchive(
                f"{self.name} holds {unpacked} bytes, at most {MAX_ARCHIVE_BYTES} are read of one archive; divide it"
            )
        if self.stored is not None and unpacked > max(ANY_EXPANSION_BYTES, MAX_EXPANSION * self.stored):
            raise HugeArchive(
                f"{self.name} has {self.stored} bytes and expands to {unpacked} or more, over {MAX_EXPANSION} times "
                "its size, as no images do; unpack it yourself and give the folder if you trust it"
            )


def is_bomb(size: int, stored: int) -> bool:
    """Whether a member shrinks further than any picture does."""
    return size > _ANY_MEMBER_BYTES and size > MAX_EXPANSION * stored
