"""Tar headers that must be sound to the end of the archive."""

from __future__ import annotations

import tarfile


class StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header behind the first one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> StrictTarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            at = tar.offset  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {at}, where a member or the end marker should be") from None
