"""Open Images CSV files: boxes with their flags, class descriptions, the class hierarchy, verified image labels.

Boxes are fractions of the image and become pixels once its header is read. Categories have the order of the class
descriptions with ids from 1; ``extra`` keeps the machine id (``/m/...``) and the parents in the hierarchy.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import Category, ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.drawn import NO_BOX, UNKNOWN_CATEGORY, Box, Drawn, gather, to_pixels
from pipelines.sources.listing import ImageFolder, check_file, find_folder, list_images, stat_uri
from pipelines.sources.staging import Staging, staging
from pipelines.storage import FileStat, read_uri, redact, split_uri

_FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
_SIDES = ("XMin", "XMax", "YMin", "YMax")
_BOX_COLUMNS = ("ImageID", "LabelName", *_SIDES)
_LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")


@dataclass(frozen=True, kw_only=True)
class OpenImagesSource:
    """One split of Open Images; ``image_id`` is the file's path below the folder of images."""

    kind: ClassVar[str] = "open_images"
    boxes: str
    images: str
    classes: str | None = None
    hierarchy: str | None = None
    image_labels: str | None = None
    split: str = "train"
    group_of_as_crowd: bool = False

    @classmethod
    def open(
        cls,
        *,
        boxes: str,
        images: str | None = None,
        classes: str | None = None,
        hierarchy: str | None = None,
        image_labels: str | None = None,
        split: str = "train",
        group_of_as_crowd: bool = False,
    ) -> OpenImagesSource:
        """Open by URIs of any fsspec scheme.

        Args:
            boxes: ``*-annotations-bbox.csv``.
            images: folder of ``<ImageID>.jpg``; None for ``images`` or ``data`` beside the boxes.
            classes: ``class-descriptions-boxable.csv``; None names the classes by their machine ids.
            hierarchy: ``bbox_labels_600_hierarchy.json``.
            image_labels: ``*-annotations-human-imagelabels*.csv``: classes verified to be in the image or not.
            split: given to every image.
            group_of_as_crowd: mark boxes of groups as crowds, so that COCO metrics ignore them; the flag is an
                attribute in any case.
        Raises:
            ValueError: a file or folder is missing.
        """

        def check(uri: str | None) -> str | None:
            return None if uri is None else check_file(uri, "Open Images file")

        boxes = check_file(boxes, "Open Images file of boxes")
        return cls(
            boxes=boxes,
            images=find_folder(boxes, images, "images", "data"),
            classes=check(classes),
            hierarchy=check(hierarchy),
            image_labels=check(image_labels),
            split=split,
            group_of_as_crowd=bool(group_of_as_crowd),
        )

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "kind"}

    @cached_property
    def label_map(self) -> LabelMap:
        names = self._class_names()
        if not names:
            raise ValueError(f"no classes in {redact(self.classes or self.boxes)}")
        parents = _parents(self._hierarchy)
        shown = list(names.values())
        unique = {mid: name if shown.count(name) == 1 else f"{name} ({mid})" for mid, name in names.items()}
        return LabelMap(
            categories=tuple(
                Category(
                    category_id=i,
                    name=name,
                    supercategory=unique.get(next(iter(parents.get(mid, ())), ""), ""),
                    extra={"mid": mid} | ({"parents": parents[mid]} if parents.get(mid) else {}),
                )
                for i, (mid, name) in enumerate(unique.items(), start=1)
            )
        )

    @cached_property
    def _hierarchy(self) -> dict[str, Any]:
        if self.hierarchy is None:
            return {}
        try:
            found = json.loads(read_uri(self.hierarchy))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{redact(self.hierarchy)} is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{redact(self.hierarchy)} is not a class hierarchy: no object with LabelName")
        return found

    @cached_property
    def _folder(self) -> ImageFolder:
        return list_images(self.images)

    def inputs(self) -> Iterator[FileStat]:
        for uri in (self.boxes, self.classes, self.hierarchy, self.image_labels):
            if uri is not None:
                yield stat_uri(uri)
        yield from self._folder.inputs()

    def about(self) -> Mapping[str, Any]:
        return {"hierarchy": self._hierarchy} if self._hierarchy else {}

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        ids = {c.extra["mid"]: c.category_id for c in self.label_map.categories}
        with staging() as rows:
            rows.add("boxes", ((row["ImageID"], row) for row in _rows(self.boxes, _BOX_COLUMNS)))
            if self.image_labels is not None:
                found = _rows(self.image_labels, _LABEL_COLUMNS)
                rows.add("labels", ((row["ImageID"], [row["LabelName"], row["Confidence"]]) for row in found))
            yield from self._scan(rows, ids)

    def _scan(self, rows: Staging, ids: Mapping[str, int]) -> Iterator[SourceItem | LedgerEntry]:
        used: set[str] = set()
        for path, file in self._folder.files.items():
            key = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
            if key in used:
                reason = "another file has the same ImageID"
                yield LedgerEntry(subject="image", fate="dropped", reason=reason, image_id=path, detail=key)
                continue
            used.add(key)
            objects, labels = rows.get("boxes", key), rows.get("labels", key)
            yield SourceItem(
                image_id=path,
                uri=self._folder.uri_of(file),
                size=file.size,
                split=self.split,
                annotations=gather([self._drawn(row, ids) for row in objects]) if objects or labels else None,
                extra=_verified(labels, ids),
            )
        for key, count in rows.counts("boxes"):
            if key not in used:
                yield LedgerEntry(
                    subject="image",
                    fate="quarantined",
                    reason="image file missing",
                    image_id=key,
                    detail=redact(self.images),
                    annotations=count,
                )

    def _drawn(self, row: Mapping[str, str], ids: Mapping[str, int]) -> Drawn:
        attributes: dict[str, Any] = {k: row[k] for k in ("Source", "Confidence") if row.get(k)}
        attributes |= {flag: int(row[flag]) for flag in _FLAGS if row.get(flag, "") in ("0", "1", "-1")}
        return Drawn(
            category_id=ids.get(row["LabelName"], UNKNOWN_CATEGORY),
            box_xywh=_box(row),
            iscrowd=self.group_of_as_crowd and attributes.get("IsGroupOf") == 1,
            attributes=attributes,
        )

    def load(self, item: SourceItem) -> ImageRecord:
        record = record_from_bytes(item, read_item(item))
        if item.annotations is None:
            return record
        return replace(record, annotations=to_pixels(item.annotations, record.width, record.height))

    def _class_names(self) -> dict[str, str]:
        """Machine id -> name, in the order of the descriptions."""
        if self.classes is None:
            return {mid: mid for mid in sorted({row["LabelName"] for row in _rows(self.boxes, _BOX_COLUMNS)})}
        rows = [row for row in _lines(self.classes) if len(row) >= 2]
        return {row[0]: row[1] for row in rows if row[0] != "LabelName"}


def _box(row: Mapping[str, str]) -> Box:
    """Left, top, width, height in fractions; ``NO_BOX`` where a number is missing."""
    try:
        x0, x1, y0, y1 = (float(row[side]) for side in _SIDES)
    except (TypeError, ValueError):
        return NO_BOX
    box = (x0, y0, x1 - x0, y1 - y0)
    return box if all(map(math.isfinite, box)) else NO_BOX


def _verified(labels: list[list[str]], ids: Mapping[str, int]) -> dict[str, Any]:
    """Classes that somebody verified to be in the image, or not to be; those without boxes by their machine ids."""
    found: dict[str, list[Any]] = {}
    for mid, confidence in labels:
        sure = {"0": "neg", "0.0": "neg", "1": "pos", "1.0": "pos"}.get(confidence)
        if sure and mid in ids:
            found.setdefault(f"{sure}_category_ids", []).append(ids[mid])
        else:
            found.setdefault("other_image_labels", []).append([mid, confidence])
    return found


def _parents(hierarchy: Mapping[str, Any]) -> dict[str, list[str]]:
    """Machine id -> machine ids of the classes directly above it; the root, which is no class, is left out."""
    parents: dict[str, list[str]] = {}
    waiting: list[tuple[Any, str | None]] = [(hierarchy, None)]
    while waiting:
        node, parent = waiting.pop()
        if not isinstance(node, dict):
            continue
        mid = node.get("LabelName")
        if isinstance(mid, str) and parent is not None and parent not in parents.setdefault(mid, []):
            parents[mid].append(parent)
        above = mid if node is not hierarchy and isinstance(mid, str) else None
        for key in ("Subcategory", "Part"):
            children = node.get(key)
            waiting += [(child, above) for child in reversed(children)] if isinstance(children, list) else []
    return parents


def _rows(uri: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header, as a stream; a short row has empty values."""
    lines = _lines(uri)
    header = next(lines, [])
    missing = [c for c in columns if c not in header]
    if missing:
        raise ValueError(f"{redact(uri)} has no columns {missing}; it has {header[:20]}")
    for row in lines:
        if row:
            yield {name: row[i] if i < len(row) else "" for i, name in enumerate(header)}


def _lines(uri: str) -> Iterator[list[str]]:
    store, name = split_uri(uri)
    try:
        with store.open_read(name) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            yield from csv.reader(text)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{redact(uri)} is not a CSV file: {error}") from None
