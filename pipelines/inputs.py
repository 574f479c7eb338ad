"""Which files a source reads, and whether they stay as they are while it is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sources import ListsInputs, Source
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


def check_unchanged(source: Source, before: Inputs | None) -> None:
    """List the files again and compare.

    Raises:
        SourceChanged: a file came, went or has another size or etag; names the first ones.
    """
    if before is None or not isinstance(source, ListsInputs):
        return
    now, changed, left = 0, [], before.lines
    for stat in source.inputs():
        now += 1
        at = int(np.searchsorted(left, _line(stat)))
        if at == len(left) or left[at] != _line(stat):
            changed.append(redact(stat.path))
    if changed or now != len(left):
        shown = ", ".join(changed[:_EXAMPLES]) or f"{len(left) - now} files are gone"
        raise SourceChanged(
            f"the source changed while it was read, so nothing is committed: {shown}"
            f"{f' and {len(changed) - _EXAMPLES} more' if len(changed) > _EXAMPLES else ''}; "
            "ingest again when nobody writes to it"
        )


def _line(stat: FileStat) -> np.uint64:
    text = f"{stat.path}\t{stat.size}\t{stat.etag}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))
