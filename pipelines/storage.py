"""Files under one root, on any fsspec scheme: local disks, S3, GCS, memory.

Paths given to a ``Store`` are relative to its root and use ``/``.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

from pipelines.credentials import redact as redact
from pipelines.local_files import find_local, read_local_ranges, sync_folder
from pipelines.open_files import LocalNewFile, NewFile, RemoteFile, RemoteNewFile
from pipelines.retries import is_refused, retrying, wait_a_little

_CREATE_ATTEMPTS = 8
_CHUNK = 8 * 2**20
# Stores whose fsspec implementation creates on condition: If-None-Match, or a generation match of 0.
_EXCLUSIVE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs"})


def absolute(uri: str | os.PathLike[str]) -> str:
    """A URI that means the same in another working directory: plain paths become absolute ones."""
    text = os.fspath(uri)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        return text.rstrip("/") if not text.endswith("://") else text
    if text.startswith("/") and "//" not in text and "/." not in text:
        return text.rstrip("/") or "/"  # as it is already: asked for every file
    return str(Path(text).expanduser().absolute())


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """One listed file.

    Attributes:
        path: relative to the root of the store.
        size: bytes.
        etag: changes whenever the content does: the store's etag, or else the modification time.
    """

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Store:
    """A folder on any file system. Cheap to pickle: a worker opens the file system anew from ``uri``."""

    uri: str

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Store:
        """Raises ValueError where no such scheme is known or its package is missing."""
        store = cls(absolute(uri))
        try:
            _ = store._fs_and_root
        except (ImportError, ValueError) as error:
            raise ValueError(f"cannot open {redact(store.uri)}: {error}") from error
        return store

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"Store({redact(self.uri)!r})"

    @cached_property
    def _fs_and_root(self) -> tuple[Any, str]:
        if self.is_local:
            return _local_files(), self.uri.rstrip("/")
        # Other processes add files all the time, so a cached listing would lie.
        fs, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return fs, str(root).rstrip("/")

    @property
    def fs(self) -> Any:
        return self._fs_and_root[0]

    @property
    def root(self) -> str:
        return self._fs_and_root[1]

    @property
    def scheme(self) -> str:
        return self.uri.split("://", 1)[0] if "://" in self.uri else "file"

    @cached_property
    def is_local(self) -> bool:
        return self.scheme == "file"

    def join(self, *parts: str) -> str:
        """The full URI of a path under the root."""
        return "/".join([self.uri.rstrip("/"), *(p.strip("/") for p in parts if p)])

    def sub(self, *parts: str) -> Store:
        return Store.open(self.join(*parts))

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _target(self, path: str) -> str:
        """Where to write or delete. Names come from data sets too, and none of them leads out of the root."""
        if path.startswith("/") or (".." in path and ".." in path.split("/")):
            raise ValueError(
                f"{path!r} leads out of {redact(self.uri)}; name a file below it, without '..' or a first '/'"
            )
        return self._full(path)

    def read_bytes(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        if self.is_local:
            return retrying(Path(self._full(path)).read_bytes)
        return bytes(retrying(lambda: self.fs.cat_file(self._full(path)), redact(self.join(path))))

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``: one range request.

        Raises:
            ValueError: the file is shorter.
        """
        if self.is_local:
            return self.read_ranges(path, [offset], [length])[0]
        full = self._full(path)
        try:
            content = bytes(
                retrying(lambda: self.fs.cat_file(full, start=offset, end=offset + length), redact(self.join(path)))
            )
        except Exception as error:
            # Status 416, where not even the first byte is there: each store has its own error for it.
            if "not satisfiable" not in str(error):
                raise
            raise self._too_short(path, offset + length) from None
        if len(content) != length:
            raise self._too_short(path, offset + length)
        return content

    def read_ranges(self, path: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Several ranges of a local file, each read into memory of its own.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is shorter.
        """
        assert self.is_local, "a store is asked for neighbouring ranges at once"

        found = retrying(partial(read_local_ranges, self._full(path), offsets, lengths))
        for content, offset, length in zip(found, offsets, lengths, strict=True):
            if len(content) != length:
                raise self._too_short(path, offset + length)
        return found

    def _too_short(self, path: str, end: int) -> ValueError:
        where = redact(self.join(path))
        return ValueError(f"{where} ends before byte {end}; it was cut or is not the file that was indexed")

    def open_arrow(self, path: str) -> pa.NativeFile:
        """Random access for pyarrow; memory-mapped on a local disk."""
        if self.is_local:
            return pa.memory_map(self._full(path), "r")
        return pa.PythonFile(RemoteFile(self, path), mode="r")

    def open_read(self, path: str) -> IO[bytes]:
        """Sequential read."""
        stream: IO[bytes] = self.fs.open(self._full(path), "rb")
        return stream

    def write_bytes(self, path: str, content: bytes | memoryview) -> None:
        """Create or replace a file; a reader sees all of it or none."""
        if self.is_local:
            temporary = self._write_temporary(path, content)
            temporary.replace(self._full(path))
            sync_folder(Path(self._full(path)).parent)
        else:
            retrying(lambda: self.fs.pipe_file(self._target(path), bytes(content)), redact(self.join(path)))

    @contextmanager
    def new_file(self, folder: str) -> Iterator[NewFile]:
        """A file below ``folder`` that gets its name when it is whole; without one it is gone afterwards."""
        if not self.is_local:
            yield RemoteNewFile(self)
            return
        target = Path(self._target(folder))
        target.mkdir(parents=True, exist_ok=True)
        temporary = target / f".part-{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("w+b") as stream:
                yield LocalNewFile(self._target, temporary, stream)
        finally:
            # Half a file on a full disk would keep it full.
            temporary.unlink(missing_ok=True)

    def upload(self, local: Path, path: str) -> None:
        """Create or replace a file from a local one; memory holds a piece of it at a time."""
        if self.is_local:
            folder = path.rpartition("/")[0]
            with self.new_file(folder) as new, local.open("rb") as stream:
                while content := stream.read(_CHUNK):
                    new.write(content)
                new.publish(path)
        else:
            retrying(lambda: self.fs.put_file(str(local), self._target(path)), redact(self.join(path)))

    def put_new(self, path: str, content: bytes) -> bool:
        """Create a file that must not exist yet; exactly one of many racing callers wins.

        Callers put a token of their own into ``content``: on an object store the answer of a won request can
        be lost, and the retry then recognises itself by its bytes.

        Returns:
            True if the file is this caller's, False if another was first.
        Raises:
            ValueError: the store cannot create exclusively.
        """
        if self.is_local:
            return self._link_new(path, content)
        if self.scheme not in _EXCLUSIVE_SCHEMES:
            raise ValueError(
                f"{self.scheme}:// cannot create a file exclusively, so racing writers could corrupt "
                f"{redact(self.uri)}; write to a local disk, s3:// or gs://"
            )
        full = self._target(path)
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                # A single conditional PUT; in this mode neither s3fs nor gcsfs cuts it into parts below 5 GB.
                create = partial(self.fs.pipe_file, full, content, mode="create", chunksize=5 * 2**30)
                retrying(create, redact(self.join(path)), attempts=1)
                return True
            except FileExistsError:
                return self.read_bytes(path) == content
            except OSError as error:
                if is_refused(error):
                    return self.read_bytes(path) == content
                # 409: a racing conditional PUT is in flight; what became of it is known only later.
                if attempt == _CREATE_ATTEMPTS - 1:
                    raise
                wait_a_little(attempt)
        raise AssertionError("unreachable")

    def remove(self, path: str) -> bool:
        """Delete a file if it is there; False where it is known that it was not (S3 does not tell)."""
        try:
            retrying(lambda: self.fs.rm_file(self._target(path)), redact(self.join(path)))
        except FileNotFoundError:
            return False
        return True

    def exists(self, path: str = "") -> bool:
        return bool(retrying(lambda: self.fs.exists(self._full(path)), redact(self.join(path))))

    def list_files(self, path: str = "") -> list[FileStat]:
        """All files below ``path``, sorted by path; empty where there is no such folder."""
        prefix = len(self.root) + 1
        try:
            stats = [
                FileStat(path=name[prefix:], size=int(entry["size"] or 0), etag=_etag(entry))
                for name, entry in self._find(self._full(path))
                if len(name) > prefix
            ]
        except FileNotFoundError:
            return []
        stats.sort(key=lambda stat: stat.path)
        return stats

    def _find(self, full: str) -> Iterable[tuple[str, dict[str, Any]]]:
        if self.is_local:
            return find_local(self.fs, full)  # one by one: a million entries at a time would take a gigabyte
        found: dict[str, dict[str, Any]] = retrying(lambda: self.fs.find(full, detail=True), redact(full))
        return found.items()

    def stat(self, path: str = "") -> FileStat:
        """Raises FileNotFoundError."""
        entry = retrying(lambda: self.fs.info(self._full(path)), redact(self.join(path)))
        return FileStat(path=path, size=int(entry["size"] or 0), etag=_etag(entry))

    def children(self, path: str = "") -> list[str]:
        """Names of files and folders directly below ``path``."""
        try:
            names = retrying(lambda: self.fs.ls(self._full(path), detail=False), redact(self.join(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in names)

    def _write_temporary(self, path: str, content: bytes | memoryview) -> Path:
        target = Path(self._target(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            # Half a file on a full disk would keep it full.
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _link_new(self, path: str, content: bytes) -> bool:
        # os.link fails where the name exists, and never shows a half-written file.
        temporary = self._write_temporary(path, content)
        try:
            os.link(temporary, self._full(path))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_folder(temporary.parent)
        return True


@cache
def _local_files() -> Any:
    """Asked for at every image, and fsspec's own look into its cache costs as much as opening the file."""
    return fsspec.filesystem("file")


def split_uri(uri: str) -> tuple[Store, str]:
    """A file's URI as the store of its folder and its name there."""
    folder, _, name = absolute(uri).rpartition("/")
    return Store.open(folder or "/"), name


def read_uri(uri: str) -> bytes:
    """Raises FileNotFoundError."""
    store, name = split_uri(uri)
    return store.read_bytes(name)


def _etag(entry: dict[str, Any]) -> str:
    tag = entry.get("ETag") or entry.get("etag")
    if tag:
        return str(tag).strip('"')
    modified = entry.get("mtime") or entry.get("LastModified") or entry.get("created") or ""
    return str(modified)
