"""When files were written, by the clock of their store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipelines.retries import retrying
from pipelines.storage import Store, redact


@dataclass(frozen=True, slots=True, kw_only=True)
class DatedFile:
    """A file with its size in bytes and the seconds since 1970 at which it was written; ``path`` as a store has it."""

    path: str
    size: int
    written: float


def dated_files(store: Store, folder: str) -> Iterator[DatedFile]:
    """Every file below a folder of a store; none where there is no such folder.

    Raises:
        ValueError: the store does not tell when a file was written.
    """
    where = f"{store.root}/{folder}" if folder else store.root
    try:
        found: dict[str, dict[str, Any]] = retrying(lambda: store.fs.find(where, detail=True), redact(store.uri))
    except FileNotFoundError:
        return
    for name, entry in found.items():
        path = name.removeprefix(f"{store.root}/").lstrip("/")
        yield DatedFile(path=path, size=int(entry["size"] or 0), written=_written(entry, redact(store.join(path))))


def written_at(store: Store, path: str) -> float | None:
    """Seconds since 1970; None where there is no such file."""
    try:
        entry = retrying(lambda: store.fs.info(f"{store.root}/{path}"), redact(store.join(path)))
    except FileNotFoundError:
        return None
    return _written(entry, redact(store.join(path)))


def _written(entry: dict[str, Any], where: str) -> float:
    value = entry.get("mtime", entry.get("LastModified", entry.get("created")))
    if isinstance(value, datetime):
        return value.timestamp()
    if not isinstance(value, (int, float)):
        raise ValueError(f"{where}: the store does not tell when it was written, so nothing can be vacuumed there")
    return float(value)
