"""YOLO data sets (detect, segment, pose): a ``data.yaml``, images, and one text file of labels an image.

The label file of ``.../images/x/a.jpg`` is ``.../labels/x/a.txt``, or lies beside the image where no folder is called
``images``; a missing one says that the image is empty, one without an image is told of. Labels are fractions of the
picture as a viewer shows it (YOLO trainers apply EXIF orientation), and become pixels of the stored frame once the
image's header is read.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.archive_formats import is_image_name
from pipelines.sources.drawn import gather, to_pixels
from pipelines.sources.frames import upright_to_stored
from pipelines.sources.yolo_config import YoloConfig, read_config, resolve
from pipelines.sources.yolo_labels import parse_labels
from pipelines.storage import FileStat, Store, absolute, read_uri, redact, split_uri

_READERS = 8
_WINDOW = 1024
_MAX_LABEL_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """One image of a split, with its file where it is there and its label file where that is there.

    ``uri`` is the label file's where no image belongs to it. One that ``may_be_text`` is a label file only if it holds
    a label: such are ``classes.txt`` and what lies beside images.
    """

    uri: str
    split: str
    image: FileStat | None
    labels: FileStat | None
    may_be_text: bool = False


@dataclass(frozen=True, kw_only=True)
class YoloSource:
    """A YOLO data set; ``image_id`` is the image's path below the data set's root."""

    kind: ClassVar[str] = "yolo"
    uri: str
    splits: tuple[str, ...]

    @classmethod
    def open(cls, *, uri: str, splits: Sequence[str] | None = None) -> YoloSource:
        """Open by the URI of a ``data.yaml``, or of the folder that holds one.

        Args:
            uri: the ``data.yaml``, or the folder that holds one.
            splits: of ``train``, ``val`` and ``test``; None for all that the file names.
        Raises:
            ValueError: no such file, or not a data.yaml, or it names no such split.
        """
        uri = _find_config(absolute(uri))
        config = read_config(uri)
        unknown = [s for s in splits or () if s not in config.places]
        if unknown:
            raise ValueError(f"{redact(uri)} has no split {unknown}; it has {sorted(config.places)}")
        return cls(uri=uri, splits=tuple(splits or config.places))

    @property
    def options(self) -> dict[str, Any]:
        return {"uri": self.uri, "splits": list(self.splits)}

    @cached_property
    def config(self) -> YoloConfig:
        return read_config(self.uri)

    @cached_property
    def label_map(self) -> LabelMap:
        return self.config.label_map()

    @cached_property
    def _places(self) -> list[tuple[str, str]]:
        """(split, URI of a folder or a list of images); a folder that is not there is an error.

        Trainers insist on a `val`, so that many a file names the folder of `train` again: it is read once.
        """
        found: dict[str, str] = {}
        for split in self.splits:
            for path in self.config.places[split]:
                found.setdefault(_find_place(self.config.root, self.uri, path), split)
        return [(split, place) for place, split in found.items()]

    def inputs(self) -> Iterator[FileStat]:
        yield _stat(self.uri)
        yield from (_stat(place) for _, place in self._places if _is_list(place))
        seen: set[str] = set()
        for listed in self._listed():
            for stat in (listed.image, listed.labels):
                if stat is not None and stat.path not in seen:
                    seen.add(stat.path)
                    yield stat

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        root = self._root
        taken: dict[str, str] = {}
        images = self._listed()
        with ThreadPoolExecutor(_READERS) as pool:
            # A window at a time: the pool would otherwise read far ahead of the plan.
            while window := list(islice(images, _WINDOW)):
                for listed, content in zip(window, pool.map(_read_labels, window), strict=True):
                    image_id = listed.uri.removeprefix(root).lstrip("/")
                    yield from self._items(listed, redact(image_id), content, taken)

    def _items(
        self, listed: _Listed, image_id: str, content: str | None, taken: dict[str, str]
    ) -> Iterator[SourceItem | LedgerEntry]:
        objects, bad = ([], []) if content is None else parse_labels(content, self.config.kpt_shape)
        if listed.may_be_text and not objects:
            return

        def refuse(fate: Any, reason: str, detail: str) -> LedgerEntry:
            return LedgerEntry(
                subject="image",
                fate=fate,
                reason=reason,
                image_id=image_id,
                detail=detail,
                annotations=len(objects) + len(bad),
            )

        if listed.uri in taken:
            objects, bad = [], []  # they are accounted for with the first
            before = taken[listed.uri]
            reason = "image is listed twice" if before == listed.split else "image is in two splits"
            yield refuse("dropped", reason, f"kept in {before!r}, dropped from {listed.split!r}")
            return
        taken[listed.uri] = listed.split
        if listed.image is None:
            yield refuse("quarantined", "image file missing", redact(listed.uri))
        elif content is None:
            yield refuse("quarantined", "annotation file cannot be read", redact(_labels_uri(listed.uri)))
        else:
            for line in bad:
                yield LedgerEntry(
                    subject="annotation",
                    fate="dropped",
                    reason=line.reason,
                    image_id=image_id,
                    annotation_id=line.line,
                    detail=line.detail,
                )
            yield SourceItem(
                image_id=image_id,
                uri=listed.uri,
                size=listed.image.size,
                split=listed.split,
                annotations=gather(objects),
            )

    def load(self, item: SourceItem) -> ImageRecord:
        record = record_from_bytes(item, read_item(item))
        assert item.annotations is not None
        stored = upright_to_stored(item.annotations, record.exif_orientation)
        return replace(record, annotations=to_pixels(stored, record.width, record.height))

    @cached_property
    def _root(self) -> str:
        """What image ids are relative to: the data set's root, or what all its places share where it has none there."""
        places = [place.rpartition("/")[0] if _is_list(place) else place for _, place in self._places]
        if all(f"{place}/".startswith(f"{self.config.root}/") for place in places):
            return self.config.root
        return os.path.commonpath(places) if all("://" not in place for place in places) else ""

    def _listed(self) -> Iterator[_Listed]:
        """Every image of every split, in the order of its folder or list; behind a folder the labels without images."""
        files: dict[str, FileStat] = {}
        covered: set[str] = set()
        told: set[str] = set()
        lists = {place for _, place in self._places if _is_list(place)}

        def cover(folder: str) -> None:
            if not any(folder == known or folder.startswith(f"{known}/") for known in covered):
                covered.add(folder)
                files.update(_list_files(folder))

        def find(uri: str) -> FileStat | None:
            cover(uri.rpartition("/")[0])
            return files.get(uri)

        for split, place in self._places:
            if _is_list(place):
                uris = _read_list(place)
            else:
                cover(place)
                below = f"{place}/"
                uris = sorted(u for u in files if u.startswith(below) and is_image_name(u.removeprefix(below)))
            for uri in uris:
                yield _Listed(uri=uri, split=split, image=find(uri), labels=find(_labels_uri(uri)))
            if _is_list(place):
                continue  # a list chooses
            labels = _labels_folder(place)
            cover(labels)
            known = told | {_labels_uri(uri) for uri in uris}
            for uri in sorted(u for u in files if u.startswith(f"{labels}/") and u.endswith(".txt")):
                if uri not in known and uri not in lists:
                    told.add(uri)
                    beside = labels == place or uri.endswith("/classes.txt")
                    yield _Listed(uri=uri, split=split, image=None, labels=files[uri], may_be_text=beside)


def _labels_uri(image: str) -> str:
    """The last ``/images/`` of the path becomes ``/labels/``, the suffix ``.txt``."""
    before, found, after = image.rpartition("/images/")
    path = f"{before}/labels/{after}" if found else image
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name.rpartition('.')[0] or name}.txt"


def _labels_folder(place: str) -> str:
    before, found, after = f"{place}/".rpartition("/images/")
    return f"{before}/labels/{after}".rstrip("/") if found else place


def _read_labels(listed: _Listed) -> str | None:
    """The label file's text, empty where there is none; None where it cannot be read."""
    if listed.labels is None:
        return ""
    if listed.labels.size > _MAX_LABEL_BYTES:
        return None
    try:
        return read_uri(listed.labels.path).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError):
        return None


def _find_config(uri: str) -> str:
    store, name = split_uri(uri)
    if uri.lower().endswith((".yaml", ".yml")):
        if not store.exists(name):
            raise ValueError(f"no data.yaml at {redact(uri)}")
        return uri
    found = [f for f in Store.open(uri).children() if f.lower().endswith((".yaml", ".yml"))]
    best = "data.yaml" if "data.yaml" in found else found[0] if len(found) == 1 else None
    if best is None:
        raise ValueError(f"{redact(uri)} has {found or 'no .yaml file'}; give the URI of its data.yaml")
    return f"{uri}/{best}"


def _find_place(root: str, config_uri: str, path: str) -> str:
    """The folder or list that a path means: below the root, or as tools and other machines write it."""
    folder = config_uri.rpartition("/")[0]
    tried = [resolve(root, path), resolve(folder, path)]
    if path.startswith("../"):  # Roboflow's paths are relative to a folder that is not there
        tried.append(resolve(folder, path.removeprefix("../")))
    for uri in tried:
        store, name = split_uri(uri)
        if store.exists(name):
            return uri
    raise ValueError(f"{redact(config_uri)} names the images {path!r}, but there is no {redact(tried[0])}")


def _is_list(place: str) -> bool:
    return place.lower().endswith(".txt")


def _read_list(uri: str) -> list[str]:
    folder = uri.rpartition("/")[0]
    try:
        lines = read_uri(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{redact(uri)} is not a text file of image paths") from None
    return [resolve(folder, line.strip()) for line in lines if line.strip()]


def _stat(uri: str) -> FileStat:
    store, name = split_uri(uri)
    stat = store.stat(name)
    return FileStat(path=uri, size=stat.size, etag=stat.etag)


def _list_files(folder: str) -> dict[str, FileStat]:
    """All files below a folder by their URI."""
    files = Store.open(folder).list_files()
    return {f"{folder}/{f.path}": FileStat(path=f"{folder}/{f.path}", size=f.size, etag=f.etag) for f in files}
