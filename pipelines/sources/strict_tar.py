"""Tar headers that must be sound to the end of the archive."""

from __future__ import annotations

import tarfile
from typing import Any

MAX_HEADER_BYTES = 2**20
"""What a long name or a pax record may have; tarfile reads as many bytes as the header says, without end."""

_RECORDS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_SIZE = 2**62


class StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header behind the first one for the end of the archive.

    The map of a sparse file is passed over, not read: it may be as long as the archive, and such files are refused.
    """

    sparse: Any

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> StrictTarInfo:
        at = tar.offset  # type: ignore[attr-defined]
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise _at(tar.offset, str(error)) from None  # type: ignore[attr-defined]
        except (ValueError, IndexError) as error:  # what tarfile makes of a record that is none
            raise _at(at, f"bad header record: {error}") from None
        except RecursionError:
            raise _at(at, "too many header records before one member") from None
        if not 0 <= found.size < _MAX_SIZE:
            raise _at(at, f"a member of {found.size} bytes")
        return found

    def _proc_member(self, tar: tarfile.TarFile) -> StrictTarInfo:
        if self.type in _RECORDS and self.size > MAX_HEADER_BYTES:
            raise _at(self.offset, f"a header record of {self.size} bytes, at most {MAX_HEADER_BYTES} are read")
        found: StrictTarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return found

    def _proc_sparse(self, tar: Any) -> StrictTarInfo:
        _, more, _ = self._sparse_structs  # type: ignore[attr-defined]
        while more:
            block = tar.fileobj.read(tarfile.BLOCKSIZE)
            more = len(block) == tarfile.BLOCKSIZE and bool(block[504])
        self.sparse = []
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _proc_gnusparse_00(self, following: Any, *_: Any) -> None:
        following.sparse = []

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def _at(place: int, what: str) -> tarfile.ReadError:
    return tarfile.ReadError(f"{what} at byte {place}, where a member or the end marker should be")
