"""COCO JSON: instances, optionally with keypoint files that are merged by annotation id.

An annotation file of any size is read as a stream; annotations wait in a temporary SQLite file until their image
comes, because COCO does not group them.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.coco_kinds import NamedByUrl
from pipelines.sources.coco_objects import odd_categories, parse_annotations, parse_categories
from pipelines.sources.coco_staging import Read, Staging, is_key, stream_file
from pipelines.sources.coco_twins import mended_twins
from pipelines.storage import FileStat, Store, absolute, redact, split_uri

_BATCH = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoSplit:
    """One split: URIs of the annotation file, of the folder of its images, and of any keypoint files."""

    name: str
    annotations: str
    images: str
    keypoints: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CocoSource:
    """A COCO data set of one or more splits.

    ``image_id`` is the path of the image below its folder (``file_name``). Where two splits have the same
    ``file_name``, all ids are prefixed with the names of the splits' folders. A file without one annotation (COCO's
    ``image_info_*``) says of no image that it is empty: its images come unlabelled.

    Attributes:
        noted: fields that some annotations of the format have: see ``parse_annotations``.
    """

    kind: ClassVar[str] = "coco"
    splits: tuple[CocoSplit, ...]
    noted: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        *,
        annotations: str | None = None,
        images: str | None = None,
        keypoints: str | Sequence[str] | None = None,
        split: str | None = None,
        splits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> CocoSource:
        """Open by URIs of any fsspec scheme.

        Args:
            annotations: an ``instances_*.json``; with ``images``, ``keypoints`` and ``split`` for a single split.
            images: the folder that ``file_name`` is relative to; guessed beside the annotation file where None.
            keypoints: ``person_keypoints_*.json``, one or more; of ``captions_*.json`` the captions are counted.
            split: its name; guessed from the file's name where None, else ``train``.
            splits: name -> {annotations, images, keypoints} instead, for several.
        Raises:
            ValueError: neither or both given, or a file or folder is missing.
        """
        if (annotations is None) == (splits is None):
            raise ValueError("give a COCO source either `annotations` or `splits`")
        if splits is None:
            assert annotations is not None
            name = split if split is not None else _guess_split(annotations)
            splits = {name: {"annotations": annotations, "images": images, "keypoints": keypoints}}
        return cls(splits=tuple(_open_split(name, **values) for name, values in splits.items()))

    @property
    def options(self) -> dict[str, Any]:
        return {
            "splits": {
                s.name: {"annotations": s.annotations, "images": s.images, "keypoints": list(s.keypoints)}
                for s in self.splits
            }
        }

    @cached_property
    def label_map(self) -> LabelMap:
        return parse_categories((redact(uri), header.categories) for uri, header in self._headers.items())

    @cached_property
    def _headers(self) -> dict[str, _Header]:
        files = [uri for s in self.splits for uri in (s.annotations, *s.keypoints)]
        return {uri: _read_header(uri) for uri in dict.fromkeys(files)}

    def inputs(self) -> Iterator[FileStat]:
        for uri in sorted({uri for s in self.splits for uri in (s.annotations, *s.keypoints)}):
            yield _stat(uri)
        for folder in sorted({s.images for s in self.splits}):
            for name, stat in _list_images(folder).items():
                yield FileStat(path=f"{folder}/{name}", size=stat.size, etag=stat.etag)

    def list_images(self) -> dict[str, dict[str, FileStat]]:
        return {folder: _list_images(folder) for folder in sorted({s.images for s in self.splits})}

    def about(self) -> dict[str, Any]:
        """``info`` and ``licenses`` of each split's annotation file, as they are, and what is odd in its categories."""
        return {s.name: _about(self._headers[s.annotations]) for s in self.splits}

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        with tempfile.TemporaryDirectory(prefix="boxmill-coco-") as folder:
            staging = Staging(sqlite3.connect(Path(folder) / "annotations.sqlite"))
            try:
                yield from self._scan(staging)
            finally:
                staging.close()

    def _scan(self, staging: Staging) -> Iterator[SourceItem | LedgerEntry]:
        listed = self.list_images()
        read = [staging.read_split(number, s) for number, s in enumerate(self.splits)]
        self._check_some_found(read, listed)
        prefixes = _prefixes(self.splits, read)
        ids_clash = _ids_clash(read)
        taken: dict[str, str] = {}
        for number, (split, found) in enumerate(zip(self.splits, read, strict=True)):
            yield from found.problems
            licenses = {str(entry.get("id")): str(entry.get("name", "")) for entry in found.licenses}
            seen_ids: set[Any] = set()
            for image in found.images:
                image_id = prefixes[number] + str(image.get("file_name", ""))
                uri = f"{split.images}/{image.get('file_name', '')}"
                stat = listed[split.images].get(str(image.get("file_name", "")))
                key = image["id"] if is_key(image.get("id")) else None  # 1.0 and true would be found as 1
                again = key is not None and key in seen_ids
                objects = [] if again else staging.objects(number, key)
                seen_ids.add(key)
                refusal = _refusal(image, stat, taken.get(uri), again)
                if refusal is not None:
                    fate = "quarantined" if stat is None else "dropped"
                    yield LedgerEntry(
                        subject="image",
                        fate=fate,  # type: ignore[arg-type]
                        reason=refusal,
                        image_id=image_id,
                        detail=redact(uri),
                        annotations=len(objects),
                    )
                    continue
                assert stat is not None
                taken[uri] = split.name
                yield SourceItem(
                    image_id=image_id,
                    uri=uri,
                    size=stat.size,
                    split=split.name,
                    coco_image_id=None if ids_clash else image["id"],
                    annotations=parse_annotations(objects, noted=self.noted) if found.annotated else None,
                    mended=mended_twins(objects),
                    declared_size=_declared_size(image),
                    license=licenses.get(str(image.get("license")), ""),
                    url=str(image.get("coco_url") or image.get("flickr_url") or ""),
                    extra=_extra(image, ids_clash),
                )
            yield from staging.orphans(number, split, seen_ids)

    def _check_some_found(self, read: Sequence[Read], listed: Mapping[str, Mapping[str, FileStat]]) -> None:
        wanted = [(s, str(i.get("file_name", ""))) for s, r in zip(self.splits, read, strict=True) for i in r.images]
        if wanted and not any(name in listed[s.images] for s, name in wanted):
            split, name = wanted[0]
            raise ValueError(
                f"none of the {len(wanted)} images is there: {redact(split.annotations)} names {name!r}, but "
                f"{redact(split.images)} holds {list(listed[split.images])[:3] or 'nothing'}; "
                "give `images` as the folder that file_name is relative to"
            )

    def load(self, item: SourceItem) -> ImageRecord:
        return record_from_bytes(item, read_item(item))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What of a file is neither images nor annotations; ``other`` is ``info``, ``licenses`` and the like."""

    categories: list[Any]
    other: dict[str, Any]


def _about(header: _Header) -> dict[str, Any]:
    odd = odd_categories(header.categories)
    return {**header.other, "categories": odd} if odd else header.other


def _refusal(image: Mapping[str, Any], stat: FileStat | None, taken: str | None, again: bool) -> str | None:
    """Why an image cannot be offered, or None."""
    if again:
        return "image id given twice in one file"
    if type(image.get("id")) is not int or not is_key(image["id"]) or not isinstance(image.get("file_name"), str):
        return "image without an integer id or a file_name"
    if taken is not None:
        return "image file already used by another entry"
    return "image file missing" if stat is None else None


def _extra(image: Mapping[str, Any], ids_clash: bool) -> dict[str, Any]:
    """What an export gives back beside what has a column of its own."""
    known = {"width", "height", *(() if ids_clash else ("id",))}
    # An export would not be equal with a name that the file does not have.
    known |= {"file_name"} if isinstance(image, NamedByUrl) else set()
    return {k: v for k, v in image.items() if k not in known}


def _declared_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    whole = all(type(v) is int and 0 <= v < 2**31 for v in (width, height))
    return (image["width"], image["height"]) if whole else None


def _prefixes(splits: Sequence[CocoSplit], read: Sequence[Read]) -> list[str]:
    names = [{str(i.get("file_name", "")) for i in r.images} for r in read]
    if sum(map(len, names)) == len(set().union(*names)):
        return [""] * len(splits)
    folders = [s.images.rsplit("/", 1)[-1] for s in splits]
    return [f"{folder}/" for folder in (folders if len(set(folders)) == len(folders) else [s.name for s in splits])]


def _ids_clash(read: Sequence[Read]) -> bool:
    """Two splits number their images alike: then ids are given in plan order instead."""
    ids = [{i.get("id") for i in r.images if is_key(i.get("id"))} for r in read]
    return sum(map(len, ids)) != len(set().union(*ids))


def _open_split(
    name: str, *, annotations: str, images: str | None = None, keypoints: str | Sequence[str] | None = None
) -> CocoSplit:
    annotations = absolute(annotations)
    if not _exists(annotations):
        raise ValueError(f"no COCO annotation file at {redact(annotations)}")
    points = [keypoints] if isinstance(keypoints, str) else list(keypoints or ())
    for uri in points:
        if not _exists(uri):
            raise ValueError(f"no COCO keypoint file at {redact(uri)}")
    folder = _guess_images(annotations) if images is None else absolute(images)
    if images is not None and Store.open(folder).is_local and not Path(folder).is_dir():
        raise ValueError(f"no folder of images at {folder}")
    return CocoSplit(
        name=name, annotations=annotations, images=folder.rstrip("/"), keypoints=tuple(absolute(p) for p in points)
    )


def _guess_split(annotations: str) -> str:
    found = re.search(r"(train|val|test)", annotations.rsplit("/", 1)[-1])
    return found[1] if found else "train"


def _guess_images(annotations: str) -> str:
    """``X/annotations/instances_train2017.json`` -> ``X/train2017`` or ``X/images/train2017``."""
    folder, _, name = annotations.rpartition("/")
    part = name.removesuffix(".json").split("_")[-1]
    root = folder.rpartition("/")[0]
    tried = [f"{root}/{part}", f"{root}/images/{part}", f"{folder}/{part}", f"{root}/images", f"{folder}/images"]
    for uri in tried:
        if _exists(uri):
            return uri
    raise ValueError(f"no folder of images beside {redact(annotations)} (tried {part} and images); give `images`")


def _exists(uri: str) -> bool:
    store, name = split_uri(uri)
    return store.exists(name)


def _stat(uri: str) -> FileStat:
    store, name = split_uri(uri)
    stat = store.stat(name)
    return FileStat(path=absolute(uri), size=stat.size, etag=stat.etag)


def _list_images(folder: str) -> dict[str, FileStat]:
    return {stat.path: stat for stat in Store.open(folder).list_files()}


def _read_header(uri: str) -> _Header:
    categories, other = [], {}
    for key, value, _ in stream_file(uri, arrays=("categories",)):
        if key == "categories":
            categories.append(value)
        else:
            other[key] = value
    return _Header(categories=categories, other=other)
