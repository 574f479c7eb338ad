"""A text file of image URLs on any fsspec stores, unlabelled: one a line; empty lines and ``#`` comments are passed.

URLs may be signed: a query or a password never leaves the list. Plans and rows hold the URL without them and the place
of the line, and the worker reads the line again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pipelines.checks import BadImage
from pipelines.ledger import LedgerEntry
from pipelines.records import ImageRecord, LabelMap
from pipelines.shard_writing import MAX_SHARD_BYTES
from pipelines.sources import SourceItem, record_from_bytes
from pipelines.sources.listing import check_file, stat_uri
from pipelines.storage import FileStat, Store, redact, split_uri

_MAX_LINE = 16_384
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class UrlListSource:
    """The images of a list; ``image_id`` is the URL without scheme, user and query."""

    kind: ClassVar[str] = "url_list"
    uri: str
    split: str = ""

    @classmethod
    def open(cls, *, uri: str, split: str = "") -> UrlListSource:
        """Open by the list's URI.

        Args:
            uri: a text file of URIs of images, one a line.
            split: given to every image.
        Raises:
            ValueError: there is no such file.
        """
        return cls(uri=check_file(uri, "list of URLs"), split=split)

    @property
    def options(self) -> dict[str, Any]:
        return {"uri": self.uri, "split": self.split}

    @property
    def label_map(self) -> LabelMap:
        return LabelMap(categories=())

    def inputs(self) -> Iterator[FileStat]:
        yield stat_uri(self.uri)  # what lies behind the URLs is known only when it is read

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        store, name = split_uri(self.uri)
        offset = 0
        with store.open_read(name) as stream:
            for number, line in enumerate(stream, start=1):
                start, offset = offset, offset + len(line)
                text = _text(line)
                if not text or text.startswith("#"):
                    continue
                reason = _refusal(text, len(line))
                if reason is not None:
                    yield LedgerEntry(
                        subject="image",
                        fate="quarantined",
                        reason=reason,
                        image_id=f"line {number}",
                        detail=redact(text)[:200],
                    )
                    continue
                yield SourceItem(
                    image_id=_image_id(text),
                    uri=redact(text),
                    split=self.split,
                    payload={"offset": start, "length": len(line)},
                    url=redact(text),
                )

    def load(self, item: SourceItem) -> ImageRecord:
        store, name = self._list
        text = _text(store.read_range(name, item.payload["offset"], item.payload["length"]))
        if redact(text) != item.uri:
            raise BadImage(f"{redact(self.uri)} has changed since it was listed")
        try:
            image = _fetch(text)
        except (BadImage, FileNotFoundError):
            raise
        except Exception as error:  # each store has its own errors, and they may quote the signed URL
            raise BadImage(f"{item.uri} cannot be fetched: {type(error).__name__}") from None
        return record_from_bytes(item, image)

    @cached_property
    def _list(self) -> tuple[Store, str]:
        return split_uri(self.uri)


def _fetch(url: str) -> bytes:
    """Asks for the size first: nothing tells how long the answer would be."""
    store, name = split_uri(url)
    try:
        size = store.stat(name).size
    except FileNotFoundError:  # fsspec's word for any trouble with HTTP: reading tells which
        size = 0
    if size > MAX_SHARD_BYTES:
        raise BadImage(f"it has {size} bytes, more than the {MAX_SHARD_BYTES} of a shard")
    return store.read_bytes(name)


def _text(line: bytes) -> str:
    return line.decode("utf-8-sig", "replace").strip()


def _refusal(text: str, length: int) -> str | None:
    """Why a line is no URL that is read."""
    if length > _MAX_LINE:
        return "line is too long to be a URL"
    if "::" in text.split("?", 1)[0]:
        return "chained URLs (::) are not read"
    if not _SCHEME.match(text):
        return "line is not an absolute URL with a scheme"
    return "URL points to a local file" if text.lower().startswith(("file:", "local:")) else None


def _image_id(text: str) -> str:
    """URLs that differ in their query alone stay different, without telling the query."""
    plain = redact(text).split("://", 1)[1]
    query = text.partition("?")[2]
    return f"{plain}#{hashlib.sha256(query.encode()).hexdigest()[:12]}" if query else plain
