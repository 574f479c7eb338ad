"""Files of a store that are being written, and objects that are read like files."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import pyarrow as pa

from pipelines.local_files import sync_folder

if TYPE_CHECKING:
    from pipelines.storage import Store


class NewFile(Protocol):
    """A file that is being written, by ``write`` or through ``arrow``."""

    def write(self, content: bytes) -> None: ...

    def arrow(self) -> pa.NativeFile:
        """Where Arrow writes, from the file's beginning; whoever asks closes it."""
        ...

    def content(self) -> AbstractContextManager[bytes | mmap.mmap]:
        """All that was written, to look through; empty files have none."""
        ...

    def publish(self, path: str) -> None:
        """Create or replace ``path``, relative to the store's root; a reader sees all of it or none."""
        ...


class LocalNewFile:
    """A temporary file that is renamed.

    Args:
        place: gives the full path of one relative to the store's root.
        temporary: on the same disk.
        stream: of ``temporary``, for reading too.
    """

    def __init__(self, place: Callable[[str], str], temporary: Path, stream: IO[bytes]) -> None:
        self._place, self._temporary, self._stream = place, temporary, stream

    def write(self, content: bytes) -> None:
        self._stream.write(content)

    def arrow(self) -> pa.NativeFile:
        return pa.OSFile(str(self._temporary), "wb")

    @contextmanager
    def content(self) -> Iterator[mmap.mmap]:
        with mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped

    def publish(self, path: str) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        target = Path(self._place(path))
        self._temporary.replace(target)
        sync_folder(target.parent)


class _KeptBytes(io.BytesIO):
    """Arrow closes what it has written to, before anyone has read it."""

    def close(self) -> None:
        pass


class RemoteNewFile:
    """Objects are put in one piece: a part of a multipart upload cannot be retried like a request."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._content = _KeptBytes()

    def write(self, content: bytes) -> None:
        self._content.write(content)

    def arrow(self) -> pa.NativeFile:
        return pa.PythonFile(self._content, "w")

    @contextmanager
    def content(self) -> Iterator[bytes]:
        yield self._content.getvalue()

    def publish(self, path: str) -> None:
        self._store.write_bytes(path, self._content.getvalue())


class RemoteFile(io.RawIOBase):
    """Random access to an object, every read a range request that is retried like any other."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._size = store.stat(path).size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        content = self._store.read_range(self._path, self._position, length) if length else b""
        self._position += length
        return content
