"""Which files a source reads, and whether they stay as they are while it is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sources import SOURCES, ListsInputs, Source, open_source
from pipelines.storage import FileStat, read_uri, redact

_EXAMPLES = 5


class SourceChanged(ValueError):
    """Files of a source changed while it was ingested."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """A source's files as they were listed.

    Attributes:
        digest: over path, size and etag of each (or sha256 of its content where that was asked for).
        lines: (N,) uint64, sorted; one a file, from path, size and etag.
    """

    digest: str
    lines: NDArray[np.uint64]


def list_inputs(source: Source, *, hash_inputs: bool = False) -> Inputs | None:
    """List a source's files; None where it has none to list (a seed draws it).

    Args:
        source: files are identified by size and etag (or modification time).
        hash_inputs: identify them by the sha256 of their content in ``digest``; reads all of them.
    """
    if not isinstance(source, ListsInputs):
        return None
    listing = hashlib.sha256()
    lines = []
    for stat in sorted(source.inputs(), key=lambda s: s.path):
        lines.append(_line(stat))
        tag = hashlib.sha256(read_uri(stat.path)).hexdigest() if hash_inputs else stat.etag
        listing.update(f"{redact(stat.path)}\t{stat.size}\t{tag}\n".encode())
    return Inputs(digest=listing.hexdigest(), lines=np.unique(np.array(lines, np.uint64)))


def check_unchanged(source: Source, before: Inputs | None, *, without: str = "") -> None:
    """List the files again and compare.

    Args:
        source: that was listed.
        before: its listing.
        without: a folder whose files may come: the dataset itself, where it lies inside the source.
    Raises:
        SourceChanged: a file came, went or has another size or etag; names the first ones.
    """
    if before is None or not isinstance(source, ListsInputs):
        return
    # A source may remember its listing: ask one that was opened just now.
    again = open_source(source.kind, **source.options) if source.kind in SOURCES else source
    assert isinstance(again, ListsInputs)
    lines, changed = [], []
    for stat in again.inputs():
        line = _line(stat)
        lines.append(line)
        at = int(np.searchsorted(before.lines, line))
        known = at < len(before.lines) and before.lines[at] == line
        if not known and not (without and stat.path.startswith(f"{without}/")):
            changed.append(redact(stat.path))
    gone = len(np.setdiff1d(before.lines, np.array(lines, np.uint64)))
    if changed or gone:
        shown = ", ".join(changed[:_EXAMPLES]) or f"{gone} files are gone"
        raise SourceChanged(
            f"the source changed while it was read, so nothing is committed: {shown}"
            f"{f' and {len(changed) - _EXAMPLES} more' if len(changed) > _EXAMPLES else ''}; "
            "ingest again when nobody writes to it"
        )


def _line(stat: FileStat) -> np.uint64:
    text = f"{stat.path}\t{stat.size}\t{stat.etag}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))
