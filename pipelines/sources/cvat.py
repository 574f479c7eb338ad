"""CVAT XML for images 1.1: one file of all images, read as a stream.

Boxes lie in the frame that CVAT showed, the upright one; where the file's EXIF turns the picture they are moved to the
stored frame. Categories are the labels of the file's ``meta`` with ids from 1; a skeleton's parts are its keypoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from pipelines.ledger import LedgerEntry
from pipelines.records import Category, ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.cvat_shapes import SHAPES, NoObject, parse_shape
from pipelines.sources.drawn import Drawn, gather, mended_places
from pipelines.sources.frames import drawn_on
from pipelines.sources.listing import FoundImage, ImageFolder, check_file, find_folder, list_images, stat_uri
from pipelines.storage import FileStat, redact, split_uri


class BadCvat(ValueError):
    """Not CVAT's XML, or cut."""


@dataclass(frozen=True, kw_only=True)
class CvatSource:
    """One ``annotations.xml``; ``image_id`` is the image's ``name`` below the folder of images."""

    kind: ClassVar[str] = "cvat"
    annotations: str
    images: str
    split: str = ""
    classes: tuple[str, ...] | None = None

    @classmethod
    def open(
        cls,
        *,
        annotations: str,
        images: str | None = None,
        split: str = "",
        classes: Sequence[str] | None = None,
    ) -> CvatSource:
        """Open by URIs of any fsspec scheme.

        Args:
            annotations: the XML file.
            images: the folder that image names are relative to; None for ``images`` beside the file, or its folder.
            split: of images without a ``subset``.
            classes: labels in order; None for those of the file.
        Raises:
            ValueError: no such file or folder.
        """
        annotations = check_file(annotations, "CVAT annotation file")
        return cls(
            annotations=annotations,
            images=find_folder(annotations, images, "images", ""),
            split=split,
            classes=None if classes is None else tuple(classes),
        )

    @property
    def options(self) -> dict[str, Any]:
        classes = None if self.classes is None else list(self.classes)
        return {"annotations": self.annotations, "images": self.images, "split": self.split, "classes": classes}

    @cached_property
    def label_map(self) -> LabelMap:
        if self.classes is not None:
            named = {name: Category(category_id=0, name=name) for name in self.classes}
        else:
            labels = self._labels()
            named = labels or {name: Category(category_id=0, name=name) for name in sorted(self._used_labels())}
        if not named:
            raise ValueError(f"{redact(self.annotations)} has no labels; give `classes`")
        return LabelMap(categories=tuple(replace(c, category_id=i) for i, c in enumerate(named.values(), start=1)))

    @cached_property
    def _folder(self) -> ImageFolder:
        return list_images(self.images)

    def inputs(self) -> Iterator[FileStat]:
        yield stat_uri(self.annotations)
        yield from self._folder.inputs()

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        categories = {c.name: c for c in self.label_map.categories}
        taken: set[str] = set()
        for element in self._elements("image"):
            yield from self._items(element, categories, taken)

    def _items(
        self, image: Element, categories: dict[str, Category], taken: set[str]
    ) -> Iterator[SourceItem | LedgerEntry]:
        name = image.get("name", "")
        shapes = [child for child in image if child.tag in SHAPES]
        file = self.find_image(name)
        size = _size(image)
        refusal = None
        if file is None:
            refusal = "image file missing"
        elif file.image_id in taken:
            refusal = "image file already used by another entry"
        if refusal is not None or file is None:
            yield LedgerEntry(
                subject="image",
                fate="dropped" if file else "quarantined",
                reason=refusal or "",
                image_id=name,
                detail=redact(self.annotations),
                annotations=len(shapes),
            )
            return
        taken.add(file.image_id)
        objects: list[Drawn] = []
        for number, shape in enumerate(shapes, start=1):
            try:
                objects.append(parse_shape(shape, number, size or (0, 0), categories))
            except NoObject as error:
                yield LedgerEntry(
                    subject="annotation",
                    fate="dropped",
                    reason=str(error),
                    image_id=file.image_id,
                    annotation_id=number,
                    detail=f"{shape.tag} {dict(shape.items())!r:.200}",
                )
        tags = [tag.get("label", "") for tag in image.iterfind("tag")]
        yield SourceItem(
            image_id=file.image_id,
            uri=file.uri,
            size=file.size,
            split=image.get("subset") or self.split,
            annotations=gather(objects),
            mended=mended_places(objects),
            payload={"shown": size},
            extra={"tags": tags} if tags else {},
        )

    def load(self, item: SourceItem) -> ImageRecord:
        record = record_from_bytes(item, read_item(item))
        assert item.annotations is not None
        shown = item.payload["shown"]
        return replace(
            record, annotations=drawn_on(item.annotations, None if shown is None else (shown[0], shown[1]), record)
        )

    def find_image(self, name: str) -> FoundImage | None:
        """The file of that name in the folder of images."""
        file = self._folder.find(name)
        return None if file is None else FoundImage(image_id=file.path, uri=self._folder.uri_of(file), size=file.size)

    def _labels(self) -> dict[str, Category]:
        """The labels of ``meta``; those with a parent are the keypoints of a skeleton."""
        parents: dict[str, Category] = {}
        points: dict[str, list[str]] = {}
        for label in self._elements("label", until="image"):
            name, parent = (label.findtext("name") or "").strip(), (label.findtext("parent") or "").strip()
            if parent:
                points.setdefault(parent, []).append(name)
            elif name:
                kind = (label.findtext("type") or "").strip()
                parents.setdefault(name, Category(category_id=0, name=name, extra={"type": kind} if kind else {}))
        return {name: replace(c, keypoints=tuple(points.get(name, ()))) for name, c in parents.items()}

    def _used_labels(self) -> set[str]:
        return {s.get("label", "") for image in self._elements("image") for s in image if s.tag in SHAPES} - {""}

    def _elements(self, tag: str, until: str | None = None) -> Iterator[Element]:
        """Elements as they end, one at a time in memory."""
        store, name = split_uri(self.annotations)
        where = redact(self.annotations)
        try:
            with store.open_read(name) as stream:
                ancestors: list[Element] = []
                for event, element in iterparse(stream, events=("start", "end"), forbid_dtd=True):
                    if event == "start":
                        if not ancestors and element.tag != "annotations":
                            raise BadCvat(f"{where} holds <{element.tag[:50]}>, not CVAT's <annotations>")
                        if element.tag == until:
                            return
                        ancestors.append(element)
                        continue
                    ancestors.pop()
                    if element.tag == tag:
                        yield element
                    if len(ancestors) == 1:
                        ancestors[0].clear()  # memory must not grow with the file
        except (ParseError, DefusedXmlException, LookupError, UnicodeError) as error:
            raise BadCvat(f"{where} cannot be read as CVAT's XML: {error or type(error).__name__}") from None


def _size(image: Element) -> tuple[int, int] | None:
    width, height = image.get("width", ""), image.get("height", "")
    sound = all(side.isdecimal() and len(side) < 10 for side in (width, height))
    return (int(width), int(height)) if sound else None
