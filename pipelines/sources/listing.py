"""The image files that an annotation file speaks of, found below one folder and nowhere else."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.sources.archive_formats import is_image_name
from pipelines.storage import FileStat, Store, absolute, redact, split_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """Where an annotation file's image is; ``uri`` is empty where it is in a dataset already."""

    image_id: str
    uri: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """All images below a folder.

    Attributes:
        uri: of the folder.
        files: path below it -> file, sorted by path.
    """

    uri: str
    files: dict[str, FileStat]

    def find(self, name: str) -> FileStat | None:
        """The file of a path as an annotation file writes it; one that leaves the folder is never found."""
        return self.files.get(posixpath.normpath(name.replace("\\", "/")))

    def uri_of(self, file: FileStat) -> str:
        return f"{self.uri}/{file.path}"

    def inputs(self) -> Iterator[FileStat]:
        """The files with full URIs as paths."""
        for file in self.files.values():
            yield FileStat(path=self.uri_of(file), size=file.size, etag=file.etag)


def list_images(uri: str) -> ImageFolder:
    """All images below a folder; none where there is no such folder."""
    files = {f.path: f for f in Store.open(uri).list_files() if is_image_name(f.path)}
    return ImageFolder(uri=absolute(uri), files=files)


def stat_uri(uri: str) -> FileStat:
    """One file with its full URI as path.

    Raises:
        FileNotFoundError: there is none.
    """
    store, name = split_uri(uri)
    stat = store.stat(name)
    return FileStat(path=absolute(uri), size=stat.size, etag=stat.etag)


def check_file(uri: str, what: str) -> str:
    """The absolute URI of a file that must be there.

    Raises:
        ValueError: it is not.
    """
    store = Store.open(uri)
    if not store.exists() or store.fs.isdir(store.root):
        raise ValueError(f"no {what} at {redact(absolute(uri))}")
    return absolute(uri)


def find_folder(annotations: str, given: str | None, *tried: str) -> str:
    """The folder of images that belongs to an annotation file: as given, or the first of ``tried`` beside it.

    Raises:
        ValueError: none of them is there.
    """
    beside = absolute(annotations).rpartition("/")[0]
    for uri in [absolute(given)] if given else [_beside(beside, name) for name in tried]:
        if Store.open(uri).exists():
            return uri
    raise ValueError(f"no folder of images at {redact(given) if given else redact(beside)}; give `images`")


def _beside(folder: str, name: str) -> str:
    if name.startswith("../"):
        folder, name = folder.rpartition("/")[0], name.removeprefix("../")
    return f"{folder}/{name}".rstrip("/")
