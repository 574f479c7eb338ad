"""Unlabelled images of a folder, prefix, tar, tar.gz or zip, read where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, assert_never

from pipelines.ledger import LedgerEntry
from pipelines.records import ImageRecord, LabelMap
from pipelines.sources import SourceItem, record_from_bytes
from pipelines.sources.archive_formats import Archive, Folder, Member, Refused, Tar, TarGz, Zip
from pipelines.storage import FileStat, Store, absolute, redact, split_uri

ALIKE = "its name is another's but for the case of letters: one file on some systems"
ArchiveKind = Literal["folder", "tar", "tar.gz", "zip"]
_SUFFIXES: dict[str, ArchiveKind] = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip"}


def suffix_kind(uri: str) -> ArchiveKind | None:
    """What a URI's suffix says, None for a folder or an unknown kind of file."""
    lower = uri.split("?", 1)[0].lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if lower.endswith(suffix)), None)


def archive_kind(uri: str) -> ArchiveKind:
    """What lies at a URI.

    Raises:
        FileNotFoundError: nothing.
        ValueError: a file of another kind.
    """
    store = Store.open(uri)
    if not store.exists():
        raise FileNotFoundError(f"there is nothing at {redact(store.uri)}; give a folder, tar, tar.gz or zip of images")
    if store.fs.isdir(store.root):
        return "folder"
    kind = suffix_kind(uri)
    if kind is None:
        raise ValueError(
            f"{redact(store.uri)} is a file, but none of {', '.join(_SUFFIXES)}; give such a file or a folder of images"
        )
    return kind


def open_archive(uri: str) -> Archive:
    """The images at a URI; see ``archive_kind`` for errors."""
    kind = archive_kind(uri)
    if kind == "folder":
        return Folder(Store.open(uri))
    store, name = split_uri(uri)
    match kind:
        case "tar":
            return Tar(store, name)
        case "tar.gz":
            return TarGz(store, name)
        case "zip":
            return Zip(store, name)
        case _:
            assert_never(kind)


def input_files(uri: str) -> Iterator[FileStat]:
    """Every file that the content of the archive depends on, ``path`` being its full URI."""
    if archive_kind(uri) == "folder":
        store = Store.open(uri)
        for file in store.list_files():
            yield FileStat(path=store.join(file.path), size=file.size, etag=file.etag)
    else:
        store, name = split_uri(uri)
        file = store.stat(name)
        yield FileStat(path=store.join(name), size=file.size, etag=file.etag)


def refusal_entry(refused: Refused) -> LedgerEntry:
    """A refused member for the ledger."""
    return LedgerEntry(
        subject="image",
        fate="quarantined",
        reason="refused member of an archive",
        image_id=refused.name,
        detail=refused.reason,
    )


@dataclass(frozen=True, kw_only=True)
class ArchiveSource:
    """The images below a folder or in an archive, without labels.

    Attributes:
        uri: any fsspec URL.
        split: given to every image.
    """

    kind: ClassVar[str] = "archive"
    uri: str
    split: str = ""

    @classmethod
    def open(cls, uri: str, split: str = "") -> ArchiveSource:
        """Open by the URI of a folder, tar, tar.gz or zip of images.

        Args:
            uri: the folder (read with all below it) or the archive.
            split: given to every image.
        Raises:
            FileNotFoundError, ValueError: see ``archive_kind``.
        """
        archive_kind(uri)
        return cls(uri=absolute(uri), split=split)

    @property
    def options(self) -> Mapping[str, Any]:
        return {"uri": self.uri, "split": self.split}

    @property
    def label_map(self) -> LabelMap:
        return LabelMap(categories=())

    @cached_property
    def archive(self) -> Archive:
        return open_archive(self.uri)

    def inputs(self) -> Iterable[FileStat]:
        return input_files(self.uri)

    def about(self) -> Mapping[str, Any]:
        return {"uri": redact(self.uri), "kind": archive_kind(self.uri)}

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        in_archive = not isinstance(self.archive, Folder)  # a folder is on a system that tells them apart
        folded: set[str] = set()
        for found in self.archive.members():
            if isinstance(found, Refused):
                yield refusal_entry(found)
            else:
                alike = in_archive and found.name.casefold() in folded
                if in_archive:
                    folded.add(found.name.casefold())
                yield SourceItem(
                    image_id=found.name,
                    mended={"": ALIKE} if alike else {},
                    uri=member_uri(self.uri, found.name),
                    size=found.size,
                    split=self.split,
                    payload={name: getattr(found, name) for name in Member.__slots__},
                )

    def load(self, item: SourceItem) -> ImageRecord:
        return record_from_bytes(item, self.archive.read(Member(**item.payload)).image)


def member_uri(uri: str, name: str) -> str:
    """How a member is named in rows: a file of a folder by its URI, a member as ``ARCHIVE!/name``. No credentials."""
    separator = "/" if suffix_kind(uri) is None else "!/"
    return redact(uri) + separator + name
