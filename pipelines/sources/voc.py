"""PASCAL VOC: one XML file an image, splits as lists of names in ImageSets/Main.

Boxes: VOC counts pixels from 1 and includes both ends, so ``x = xmin - 1``, ``w = xmax - xmin + 1`` (likewise y, h),
clipped to the image. A box with xmax <= xmin or ymax <= ymin is a slip of the annotator's mouse, not one pixel wide:
it gets no area and the checks drop it. ``difficult``, ``truncated``, ``occluded`` and ``pose`` become attributes;
a difficult object is an object, not a crowd. ``part`` (of a person layout) and ``actions`` become attributes too.
Where ``SegmentationObject`` has a PNG of the image, its objects get their masks: index n is the n-th object. A PNG in
``SegmentationClass`` alone tells no objects apart: it is not read, and the ledger counts one annotation dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations, Category, ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.archive_formats import is_image_name
from pipelines.sources.voc_masks import CLASS_MASKS, MASKS, with_masks
from pipelines.storage import FileStat, Store, absolute, redact

_MAIN_SPLITS = ("train", "val", "test", "trainval")
_FLAGS = ("difficult", "truncated", "occluded")
_READERS = 8
_WINDOW = 1024
_UNKNOWN_CATEGORY = -1
_OF_A_CLASS = re.compile(r"\s+(?:-1|0|1)$")
"""The second column of a list of one class: the image has it not, or has only difficult ones, or has it."""


class BadXml(ValueError):
    """An annotation file that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VocObject:
    """One ``<object>``: its class, xmin, ymin, xmax, ymax as written (NaN where unreadable), and attributes."""

    name: str
    corners: tuple[float, float, float, float]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class VocFile:
    """What one XML file says; ``size`` is width, height."""

    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    extra: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class VocSource:
    """A VOC folder: ``JPEGImages``, ``Annotations``, ``ImageSets/Main``.

    Categories are the class names in alphabetical order with ids from 1, unless ``classes`` gives them.
    An image without an XML file is one that nobody has looked at. VOC names an image by its file's name without folder
    and suffix: of several that share it one counts, and the others are told of.
    """

    kind: ClassVar[str] = "voc"
    root: str
    splits: tuple[str, ...]
    classes: tuple[str, ...] | None = None

    @classmethod
    def open(cls, *, root: str, splits: Sequence[str] | None = None, classes: Sequence[str] | None = None) -> VocSource:
        """Open a VOC folder.

        Args:
            root: the folder that holds JPEGImages; any fsspec URI.
            splits: lists of ImageSets/Main to read; None for train, val and test, or trainval where there is no
                train. Without ImageSets all images are ``train``.
            classes: names in order; None reads all XML files for them.
        Raises:
            ValueError: no such folder, no images or no such list.
        """
        store = Store.open(absolute(root))
        if not store.list_files("JPEGImages"):
            raise ValueError(f"no images in {redact(store.join('JPEGImages'))}; give the folder that holds JPEGImages")
        return cls(
            root=store.uri,
            splits=_find_splits(store, splits),
            classes=None if classes is None else tuple(classes),
        )

    @property
    def options(self) -> dict[str, Any]:
        classes = None if self.classes is None else list(self.classes)
        return {"root": self.root, "splits": list(self.splits), "classes": classes}

    @cached_property
    def store(self) -> Store:
        return Store.open(self.root)

    @cached_property
    def label_map(self) -> LabelMap:
        names = self.classes or sorted({name for names in self._class_names() for name in names})
        if not names:
            raise ValueError(f"not one object is annotated in {redact(self.store.join('Annotations'))}")
        return LabelMap(categories=tuple(Category(category_id=i, name=n) for i, n in enumerate(names, start=1)))

    def inputs(self) -> Iterator[FileStat]:
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages", MASKS, CLASS_MASKS):
            for stat in self.store.list_files(folder):
                yield FileStat(path=self.store.join(stat.path), size=stat.size, etag=stat.etag)

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        images = _by_stem(f for f in self.store.list_files("JPEGImages") if is_image_name(f.path))
        xml = self._xml
        masks = {_stem(stat.path): stat.path for stat in self.store.list_files(MASKS) if stat.path.endswith(".png")}
        classes = {_stem(stat.path): stat.path for stat in self.store.list_files(CLASS_MASKS)}
        ids = {c.name: c.category_id for c in self.label_map.categories}
        names = self._names(images.keys() | xml.keys())
        taken: dict[str, str] = {}
        told: set[str] = set()
        with ThreadPoolExecutor(_READERS) as pool:
            # A window at a time: the pool would otherwise read far ahead of the plan.
            while window := list(islice(names, _WINDOW)):
                read = pool.map(lambda pair: self._read(xml.get(pair[1], ())), window)
                for (split, name), found in zip(window, read, strict=True):
                    same = images.get(name, [])
                    item = self._item(split, name, found, same[0] if same else None, ids, taken)
                    if isinstance(item, SourceItem) and item.annotations is not None and name in masks:
                        item = replace(item, payload={"mask": self.store.join(masks[name])})
                    yield item
                    if isinstance(item, SourceItem) and name in classes and name not in masks:
                        yield _unread_mask(item.image_id, classes[name])
                    if name not in told:
                        yield from (_namesake(other, same[0]) for other in same[1:])
                        yield from (self._unread_xml(other) for other in xml.get(name, ())[1:])
                        told.add(name)

    @cached_property
    def _xml(self) -> Mapping[str, Sequence[FileStat]]:
        return _by_stem(f for f in self.store.list_files("Annotations") if f.path.endswith(".xml"))

    def _names(self, stems: Set[str]) -> Iterator[tuple[str, str]]:
        for split in self.splits:
            path = _list_path(split)
            if not self.store.exists(path):  # no ImageSets at all
                yield from ((split, stem) for stem in sorted(stems))
                continue
            for line in self.store.read_bytes(path).decode("utf-8-sig").splitlines():
                name = line.strip()
                if name:
                    yield split, name if name in stems else _OF_A_CLASS.sub("", name)

    def _read(self, files: Sequence[FileStat]) -> VocFile | BadXml | None:
        if not files:
            return None
        try:
            return parse_voc(self.store.read_bytes(files[0].path))
        except BadXml as error:
            return BadXml(f"{files[0].path}: {error}")

    def _unread_xml(self, file: FileStat) -> LedgerEntry:
        found = self._read([file])
        return LedgerEntry(
            subject="annotation",
            fate="dropped",
            reason="another annotation file of this name counts",
            image_id=file.path,
            detail=f"{self._xml[_stem(file.path)][0].path} counts",
            # The entry itself counts as one.
            annotations=max(0, len(found.objects) - 1) if isinstance(found, VocFile) else 0,
        )

    def _item(
        self,
        split: str,
        name: str,
        found: VocFile | BadXml | None,
        image: FileStat | None,
        ids: dict[str, int],
        taken: dict[str, str],
    ) -> SourceItem | LedgerEntry:
        image_id = f"JPEGImages/{name}.jpg" if image is None else image.path
        objects = found.objects if isinstance(found, VocFile) else ()

        def refuse(fate: Any, reason: str, detail: str) -> LedgerEntry:
            return LedgerEntry(
                subject="image", fate=fate, reason=reason, image_id=image_id, detail=detail, annotations=len(objects)
            )

        if image is None:
            return refuse("quarantined", "image file missing", redact(self.store.join("JPEGImages", name)))
        if isinstance(found, BadXml):
            return refuse("quarantined", "annotation file cannot be read", str(found))
        if name in taken:
            return refuse("dropped", "image is in two splits", f"kept in {taken[name]!r}, dropped from {split!r}")
        taken[name] = split
        return SourceItem(
            image_id=image_id,
            uri=self.store.join(image.path),
            size=image.size,
            split=split,
            annotations=None if found is None else _annotations(objects, ids),
            declared_size=None if found is None else found.size,
            clip_tolerance=0.0,
            extra={} if found is None else found.extra,
        )

    def _class_names(self) -> Iterator[set[str]]:
        def read(files: Sequence[FileStat]) -> set[str]:
            found = self._read(files)
            return {o.name for o in found.objects if o.name} if isinstance(found, VocFile) else set()

        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(read, self._xml.values())

    def load(self, item: SourceItem) -> ImageRecord:
        record = record_from_bytes(item, read_item(item))
        return with_masks(record, item.payload["mask"]) if "mask" in item.payload else record


def _namesake(other: FileStat, image: FileStat) -> LedgerEntry:
    return LedgerEntry(
        subject="image",
        fate="dropped",
        reason="another image has this name in VOC",
        image_id=other.path,
        detail=f"VOC names images without folder and suffix; {image.path} counts",
    )


def _unread_mask(image_id: str, path: str) -> LedgerEntry:
    return LedgerEntry(
        subject="annotation",
        fate="dropped",
        reason=f"a mask of classes ({CLASS_MASKS}) tells no objects apart",
        image_id=image_id,
        detail=path,
    )


def parse_voc(content: bytes) -> VocFile:
    """One annotation file.

    Raises:
        BadXml: malformed, or with a DTD or entities, which no annotation needs.
    """
    try:
        root = fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: unknown encoding
        raise BadXml(str(error) or type(error).__name__) from None
    if root.tag != "annotation":
        raise BadXml(f"it holds <{root.tag[:50]}>, not <annotation>")
    width, height = _number(root, "size/width"), _number(root, "size/height")
    told = all(0 <= side < 2**31 for side in (width, height))  # not of NaN
    size = (int(width), int(height)) if told else None
    extra = {key: text for key in ("folder", "filename") if (text := root.findtext(key))}
    segmented = _number(root, "segmented")
    if segmented == 1:
        extra["segmented"] = "1"
    return VocFile(size=size, objects=tuple(_object(o) for o in root.iterfind("object")), extra=extra)


def _object(element: Element) -> VocObject:
    attributes: dict[str, Any] = {}
    pose = (element.findtext("pose") or "").strip()
    if pose:
        attributes["pose"] = pose
    for flag in _FLAGS:
        value = _number(element, flag)
        if not math.isnan(value):
            attributes[flag] = int(value)
    parts = [{"name": _name(part), "bbox": _box_or_none(part)} for part in element.iterfind("part")]
    actions = [a.tag for a in element.iterfind("actions/*") if (a.text or "").strip() == "1"]
    attributes |= ({"parts": parts} if parts else {}) | ({"actions": actions} if actions else {})
    return VocObject(name=_name(element), corners=_corners(element), attributes=attributes)


def _name(element: Element) -> str:
    return (element.findtext("name") or "").strip()


def _corners(element: Element) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (_number(element, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax"))
    return (x0, y0, x1, y1)


def _box_or_none(element: Element) -> list[float] | None:
    """xywh in pixels, counted from 0; None where it is unreadable."""
    x0, y0, x1, y1 = _corners(element)
    box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
    return box if all(map(math.isfinite, box)) else None


def _number(element: Element, path: str) -> float:
    try:
        value = float(element.findtext(path) or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _annotations(objects: Sequence[VocObject], ids: dict[str, int]) -> Annotations:
    corners = np.array([o.corners for o in objects], np.float64).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    boxes = np.concatenate([corners[:, :2] - 1, np.where(sides <= 0, 0.0, sides + 1)], axis=1)
    category_ids = np.array([ids.get(o.name, _UNKNOWN_CATEGORY) for o in objects], np.int64)
    return replace(Annotations.from_boxes(boxes, category_ids), attributes=tuple(o.attributes for o in objects))


def _find_splits(store: Store, wanted: Sequence[str] | None) -> tuple[str, ...]:
    there = {_stem(s.path) for s in store.list_files("ImageSets/Main") if s.path.endswith(".txt")}
    if wanted:
        missing = [s for s in wanted if s not in there]
        if missing and not (not there and list(wanted) == ["train"]):
            raise ValueError(f"{redact(store.join('ImageSets/Main'))} has no list {missing}; it has {sorted(there)}")
        return tuple(wanted)
    if not there:
        return ("train",)
    found = [s for s in _MAIN_SPLITS if s in there and not (s == "trainval" and "train" in there)]
    if not found:
        raise ValueError(
            f"{redact(store.join('ImageSets/Main'))} has none of {', '.join(_MAIN_SPLITS)}; name its lists "
            f"in `splits`, e.g. {sorted(there)[:3]}"
        )
    return tuple(found)


def _list_path(split: str) -> str:
    return f"ImageSets/Main/{split}.txt"


def _by_stem(files: Iterable[FileStat]) -> dict[str, list[FileStat]]:
    """Files by their name without folder and suffix; the first of a name is the one that counts, in the top folder."""
    found: dict[str, list[FileStat]] = {}
    for file in sorted(files, key=lambda file: (file.path.count("/"), file.path)):
        found.setdefault(_stem(file.path), []).append(file)
    return found


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
