"""WebDataset tars: the files of one sample share everything before the first dot of their name, and follow each other.

The image is read where it lies, as one range of the tar. A ``.json`` beside it may hold ``annotations`` as COCO has
them, ``.cls`` and ``.txt`` are kept as they are. Without annotations a sample comes unlabelled.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import Category, ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.archive_formats import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, readable_name, unsafe_name
from pipelines.sources.archive_limits import Allowance
from pipelines.sources.coco_objects import parse_annotations
from pipelines.sources.drawn import UNKNOWN_CATEGORY
from pipelines.sources.json_stream import readable
from pipelines.sources.strict_tar import StrictTarInfo
from pipelines.storage import FileStat, Store, absolute, redact, split_uri

_SIDECARS = ("json", "cls", "txt")
_MAX_SIDECAR = 16 * 2**20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_TARS = 1_000_000


class BrokenTar(ValueError):
    """Not a tar, or cut."""


@dataclass(slots=True, kw_only=True)
class _Sample:
    """The files of one key: images as (name, offset, size), sidecars by their suffix.

    ``others`` are pictures with a suffix of two parts, like ``.seg.png``: of the sample, but not its image.
    """

    key: str
    images: list[tuple[str, int, int]] = field(default_factory=list)
    sidecars: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """Tars of samples; ``image_id`` is ``<tar without suffix>/<name in the tar>``."""

    kind: ClassVar[str] = "webdataset"
    tars: tuple[str, ...]
    split: str = ""
    classes: tuple[str, ...] | None = None

    @classmethod
    def open(
        cls,
        *,
        uri: str | None = None,
        tars: Sequence[str] | None = None,
        split: str = "",
        classes: Sequence[str] | None = None,
    ) -> WebDatasetSource:
        """Open by URIs of any fsspec scheme.

        Args:
            uri: a tar, a folder of tars, or ``.../shard-{000000..000099}.tar``; or ``tars`` instead.
            tars: the tars themselves.
            split: given to every image.
            classes: names of the categories with ids from 0; None for those of ``category`` in the annotations, in
                alphabetical order, or else the ``category_id`` that occur.
        Raises:
            ValueError: no tar there.
        """
        if (uri is None) == (tars is None):
            raise ValueError("give a WebDataset source either `uri` or `tars`")
        found = _find_tars(absolute(uri)) if uri is not None else tuple(absolute(t) for t in tars or ())
        stems = [_stem(tar) for tar in found]
        if len(set(stems)) < len(stems):
            raise ValueError("two of the tars have the same name, which begins the ids of their images; rename one")
        return cls(tars=found, split=split, classes=None if classes is None else tuple(classes))

    @property
    def options(self) -> dict[str, Any]:
        classes = None if self.classes is None else list(self.classes)
        return {"tars": list(self.tars), "split": self.split, "classes": classes}

    @cached_property
    def label_map(self) -> LabelMap:
        if self.classes is not None:
            return LabelMap(categories=tuple(Category(category_id=i, name=n) for i, n in enumerate(self.classes)))
        names: set[str] = set()
        numbers: set[int] = set()
        for tar in self.tars:
            for sample in _samples(tar):
                for values in _objects(_json(sample)) or ():
                    if isinstance(values.get("category"), str):
                        names.add(values["category"])
                    elif type(values.get("category_id")) is int and abs(values["category_id"]) < 2**62:
                        numbers.add(values["category_id"])
        pairs = enumerate(sorted(names)) if names else ((n, f"class{n}") for n in sorted(numbers))
        return LabelMap(categories=tuple(Category(category_id=n, name=name) for n, name in pairs))

    def inputs(self) -> Iterator[FileStat]:
        for tar in self.tars:
            store, name = split_uri(tar)
            stat = store.stat(name)
            yield FileStat(path=tar, size=stat.size, etag=stat.etag)

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        ids = {c.name: c.category_id for c in self.label_map.categories}
        for tar in self.tars:
            for sample in _samples(tar):
                yield from self._items(tar, sample, ids)

    def _items(self, tar: str, sample: _Sample, ids: Mapping[str, int]) -> Iterator[SourceItem | LedgerEntry]:
        for name, reason in sample.refused:
            yield _entry("quarantined", "refused member of a tar", f"{_stem(tar)}/{name}", reason)
        for name in sample.others:
            yield _entry("dropped", "picture that is not the sample's image", f"{_stem(tar)}/{name}", redact(tar))
        values = _json(sample)
        objects = _objects(values)
        for name, _, _ in sample.images[1:]:
            yield _entry("dropped", "a second image of one sample", f"{_stem(tar)}/{name}", redact(tar))
        if isinstance(values, _BadJson):
            name = sample.images[0][0] if sample.images else f"{sample.key}.json"
            yield _entry("quarantined", "annotation file cannot be read", f"{_stem(tar)}/{name}", values.why)
            return
        if not sample.images:
            if objects:
                yield _entry("dropped", "sample without an image", f"{_stem(tar)}/{sample.key}", "", len(objects))
            return
        name, offset, size = sample.images[0]
        known = [
            {**o, "category_id": _category_id(o["category"], ids)} if "category" in o and ids else o
            for o in ({k: v for k, v in o.items() if k != "image_id"} for o in objects or ())
        ]
        extra = {k: v for k, v in values.items() if k != "annotations"} if isinstance(values, dict) else {}
        texts = {k: sample.sidecars[k].decode("utf-8", "replace") for k in ("cls", "txt") if k in sample.sidecars}
        yield SourceItem(
            image_id=f"{_stem(tar)}/{name}",
            uri=tar,
            offset=offset,
            length=size,
            size=size,
            split=self.split,
            annotations=None if objects is None else parse_annotations(known),
            extra=extra | texts,
        )

    def load(self, item: SourceItem) -> ImageRecord:
        return record_from_bytes(item, read_item(item))


@dataclass(frozen=True, slots=True)
class _BadJson:
    why: str


def _json(sample: _Sample) -> Any:
    """The sample's JSON; None where it has none, ``_BadJson`` where it is none."""
    text = sample.sidecars.get("json")
    if text is None:
        return None
    try:
        return readable(json.loads(text))
    except (ValueError, RecursionError) as error:
        return _BadJson(f"{sample.key}.json: {error}")


def _category_id(name: Any, ids: Mapping[str, int]) -> int:
    return ids.get(name, UNKNOWN_CATEGORY) if isinstance(name, str) else UNKNOWN_CATEGORY


def _objects(values: Any) -> list[dict[str, Any]] | None:
    """COCO-like annotations; None where the sample says nothing of objects. What is no mapping becomes an empty one:
    it has no box, and the checks drop it."""
    found = values.get("annotations") if isinstance(values, dict) else values if isinstance(values, list) else None
    if not isinstance(found, list):
        return None
    return [o if isinstance(o, dict) else {} for o in found]


def _entry(fate: Any, reason: str, image_id: str, detail: str, annotations: int = 0) -> LedgerEntry:
    return LedgerEntry(
        subject="image", fate=fate, reason=reason, image_id=image_id, detail=detail, annotations=annotations
    )


def _samples(tar: str) -> Iterator[_Sample]:
    """Samples in the order of the tar: consecutive files of one key."""
    store, path = split_uri(tar)
    sample, allowance, entries = _Sample(key=""), Allowance(name=redact(tar)), 0
    try:
        with (
            store.open_read(path) as file,
            tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as opened,
        ):
            while (entry := opened.next()) is not None:
                opened.members = []  # type: ignore[attr-defined]  # memory must not grow with the tar
                entries += 1
                allowance.check(entries=entries, unpacked=opened.offset)  # type: ignore[attr-defined]
                if entry.isdir():
                    continue
                name = readable_name(entry.name).removeprefix("./")
                folder, slash, last = name.rpartition("/")
                stem, _, suffix = last.partition(".")
                key, suffix = folder + slash + stem, suffix.lower()
                if key != sample.key:
                    yield from _given(sample)
                    sample = _Sample(key=key)
                _add(sample, entry, name, suffix, opened)
            yield from _given(sample)
    except (tarfile.TarError, EOFError) as error:
        raise BrokenTar(f"{redact(tar)} cannot be read as a tar: {error}; is the file whole?") from None


def _given(sample: _Sample) -> Iterator[_Sample]:
    if sample.images or sample.sidecars or sample.others or sample.refused:
        yield sample


def _add(sample: _Sample, entry: tarfile.TarInfo, name: str, suffix: str, opened: tarfile.TarFile) -> None:
    is_image = f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
    kind = suffix if suffix in _SIDECARS else None
    if not is_image and kind is None:
        return
    limit = MAX_IMAGE_BYTES if is_image else _MAX_SIDECAR
    fault = unsafe_name(name) or (None if entry.isreg() and not entry.issparse() else "it is no plain file")
    if fault is None and entry.size > limit:
        fault = f"it has {entry.size} bytes; at most {limit} are read"
    if fault is None and kind in sample.sidecars:
        fault = "the sample has this file already"
    if fault is not None:
        sample.refused.append((name, fault))
    elif is_image and "." in suffix:
        sample.others.append(name)
    elif is_image:
        sample.images.append((name, entry.offset_data, entry.size))
    elif kind is not None:
        content = opened.extractfile(entry)
        sample.sidecars[kind] = b"" if content is None else content.read()


def _stem(tar: str) -> str:
    return tar.rpartition("/")[2].removesuffix(".tar")


def _find_tars(uri: str) -> tuple[str, ...]:
    found = _RANGE.search(uri)
    if found:
        first, last = found.groups()
        if not 0 <= int(last) - int(first) < _MAX_TARS:
            raise ValueError(f"{redact(uri)}: the range {found[0]} is empty or too long")
        numbers = range(int(first), int(last) + 1)
        return tuple(uri[: found.start()] + f"{n:0{len(first)}d}" + uri[found.end() :] for n in numbers)
    if uri.endswith(".tar"):
        return (uri,)
    if uri.endswith((".gz", ".tgz")):
        raise ValueError(f"{redact(uri)} is compressed: its images cannot be read one by one; gunzip it first")
    tars = tuple(f"{uri}/{f.path}" for f in Store.open(uri).list_files() if f.path.endswith(".tar"))
    if not tars:
        raise ValueError(f"no .tar in {redact(uri)}")
    return tars
