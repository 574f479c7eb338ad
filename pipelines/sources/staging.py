"""Rows that wait on disk until their image comes: large files do not group annotations by image."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Staging:
    """JSON values by key, in the order in which they came; memory does not grow with them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE rows (kind, key, text);"
            "CREATE INDEX by_key ON rows (kind, key);"
        )

    def add(self, kind: str, rows: Iterable[tuple[str, Any]]) -> None:
        """Rows of (key, JSON-ready value)."""
        self._db.executemany("INSERT INTO rows VALUES (?, ?, ?)", ((kind, key, json.dumps(v)) for key, v in rows))
        self._db.commit()

    def get(self, kind: str, key: str) -> list[Any]:
        """The values of a key."""
        found = self._db.execute("SELECT text FROM rows WHERE kind = ? AND key = ? ORDER BY rowid", (kind, key))
        return [json.loads(text) for (text,) in found]

    def counts(self, kind: str) -> Iterator[tuple[str, int]]:
        """(key, number of rows), in the order of the keys."""
        yield from self._db.execute("SELECT key, COUNT(*) FROM rows WHERE kind = ? GROUP BY key ORDER BY key", (kind,))


@contextmanager
def staging() -> Iterator[Staging]:
    """A staging area that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="boxmill-staging-") as folder:
        connection = sqlite3.connect(Path(folder) / "rows.sqlite", check_same_thread=False)
        try:
            yield Staging(connection)
        finally:
            connection.close()
