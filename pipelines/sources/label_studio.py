"""Label Studio's JSON export: an array of tasks, read as a stream.

Of several annotations of a task the ground truth counts, else the newest; the others' regions are accounted for as
dropped. Places are percent of the upright picture and become pixels of the stored frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations, Category, ImageRecord, LabelMap
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.archive_formats import is_image_name
from pipelines.sources.drawn import gather, mended_places, to_pixels
from pipelines.sources.frames import Framed, upright_to_stored
from pipelines.sources.json_stream import stream_array
from pipelines.sources.label_studio_regions import (
    keypoint_names,
    labels_of,
    parse_regions,
    separate_labels,
    shape_of,
)
from pipelines.sources.listing import FoundImage, ImageFolder, check_file, find_folder, list_images, stat_uri
from pipelines.storage import FileStat, redact, split_uri

Read = Literal["annotations", "predictions"]
_REMOTE = ("s3", "gs", "gcs", "http", "https", "az", "abfs")


@dataclass(frozen=True, kw_only=True)
class LabelStudioSource:
    """One JSON export; ``image_id`` is the image's path below the folder of images, or its URL without the scheme."""

    kind: ClassVar[str] = "label_studio"
    annotations: str
    images: str
    image_key: str | None = None
    split: str = ""
    read: Read = "annotations"
    classes: tuple[str, ...] | None = None

    @classmethod
    def open(
        cls,
        *,
        annotations: str,
        images: str | None = None,
        image_key: str | None = None,
        split: str = "",
        read: Read = "annotations",
        classes: Sequence[str] | None = None,
    ) -> LabelStudioSource:
        """Open by URIs of any fsspec scheme.

        Args:
            annotations: the JSON file (Label Studio's "JSON" export, not "JSON-MIN").
            images: folder of uploaded or local files; images at remote URLs need none.
            image_key: of a task's ``data``; None for ``image``, else the first value that looks like an image.
            split: given to every image.
            read: ``predictions`` reads those instead, with their scores.
            classes: labels in order; None for those that occur, in alphabetical order.
        Raises:
            ValueError: no such file or folder, or an unknown ``read``.
        """
        if read not in ("annotations", "predictions"):
            raise ValueError(f"read is 'annotations' or 'predictions', not {read!r}")
        annotations = check_file(annotations, "Label Studio export")
        return cls(
            annotations=annotations,
            images=find_folder(annotations, images, "images", ""),
            image_key=image_key,
            split=split,
            read=read,
            classes=None if classes is None else tuple(classes),
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "annotations": self.annotations,
            "images": self.images,
            "image_key": self.image_key,
            "split": self.split,
            "read": self.read,
            "classes": None if self.classes is None else list(self.classes),
        }

    @cached_property
    def label_map(self) -> LabelMap:
        names: set[str] = set()
        points: dict[str, dict[str, None]] = {}
        for task in self._tasks():
            for entry in _entries(task, self.read):
                results = _results(entry)
                others = separate_labels(results)
                for result in results:
                    if shape_of(result) not in (None, "keypoint"):
                        names.update(labels_of(result, others)[:1])
                for parent, point in keypoint_names(results, others):
                    points.setdefault(parent, {})[point] = None
        wanted = self.classes or sorted(names)
        if not wanted:
            raise ValueError(f"not one labelled region is in {redact(self.annotations)}; give `classes`")
        return LabelMap(
            categories=tuple(
                Category(category_id=i, name=name, keypoints=tuple(points.get(name, ())))
                for i, name in enumerate(wanted, start=1)
            )
        )

    @cached_property
    def _folder(self) -> ImageFolder:
        return list_images(self.images)

    def inputs(self) -> Iterator[FileStat]:
        yield stat_uri(self.annotations)
        yield from self._folder.inputs()

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        categories = {c.name: c for c in self.label_map.categories}
        taken: set[str] = set()
        for task in self._tasks():
            yield from self._items(task, categories, taken)

    def _items(
        self, task: Any, categories: Mapping[str, Category], taken: set[str]
    ) -> Iterator[SourceItem | LedgerEntry]:
        reference = self._reference(task)
        name = f"task {task.get('id')}" if isinstance(task, dict) else "task"
        if reference is None:
            regions = sum(_regions(e) for read in ("annotations", "predictions") for e in _entries(task, read))
            yield _refused("dropped", "not a Label Studio task with an image", name, f"{task!r:.200}", regions)
            return
        found = self.find_image(task, reference)
        entries = _entries(task, self.read)
        chosen = _choose(entries)
        image_id = name if found is None else found.image_id
        unread = _entries(task, "predictions" if self.read == "annotations" else "annotations")
        yield from _unread(image_id, [e for e in entries if e is not chosen], "another annotation of the task counts")
        yield from _unread(image_id, unread, f"the source reads {self.read} only")
        if found is None or found.image_id in taken:
            reason = "image file missing" if found is None else "image already used by another task"
            fate: Any = "quarantined" if found is None else "dropped"
            yield _refused(fate, reason, image_id, redact(reference), _regions(chosen))
            return
        taken.add(found.image_id)
        score = _score(chosen) if self.read == "predictions" else None
        objects, lost = parse_regions(_results(chosen), categories, score)
        for region in lost:
            yield LedgerEntry(
                subject="annotation", fate="dropped", reason=region.reason, image_id=image_id, detail=region.detail
            )
        yield SourceItem(
            image_id=image_id,
            uri=found.uri,
            size=found.size,
            split=self.split,
            annotations=None if chosen is None else gather(objects),
            mended=mended_places(objects),
            extra={"task": task["id"]} if isinstance(task.get("id"), (int, str)) else {},
        )

    def load(self, item: SourceItem) -> ImageRecord:
        record = record_from_bytes(item, read_item(item))
        if item.annotations is None:
            return record
        return replace(record, annotations=place_percent(item.annotations, record))

    def _tasks(self) -> Iterator[Any]:
        store, name = split_uri(self.annotations)
        with store.open_read(name) as stream:
            yield from stream_array(stream, redact(self.annotations))

    def _reference(self, task: Any) -> str | None:
        """The image as the task names it."""
        values = task.get("data") if isinstance(task, dict) else None
        if not isinstance(values, dict):
            return None
        if self.image_key is not None or "image" in values:
            found = values.get(self.image_key or "image")
            return found if isinstance(found, str) and found else None
        return next((v for v in values.values() if isinstance(v, str) and is_image_name(urlsplit(v).path)), None)

    def find_image(self, task: Mapping[str, Any], reference: str) -> FoundImage | None:
        """The file in the folder of images, or a remote URL; never another local file."""
        for dropped, path in enumerate(self.paths_of(reference)):
            file = self._folder.find(path)
            if file is not None and dropped <= self._nearest.get(file.path, dropped):
                return FoundImage(image_id=file.path, uri=self._folder.uri_of(file), size=file.size)
        url = urlsplit(reference)
        # A query or a password is a credential, and an item's URI is written down.
        if url.scheme in _REMOTE and not url.query and "@" not in url.netloc:
            return FoundImage(image_id=reference.split("://", 1)[1], uri=reference, size=0)
        return None

    @cached_property
    def _nearest(self) -> dict[str, int]:
        """File -> how many folders of its path the task that names it best has too many.

        A path is shortened only for a file that no task names better: that one's boxes belong to it.
        """
        nearest: dict[str, int] = {}
        for task in self._tasks():
            for dropped, path in enumerate(self.paths_of(self._reference(task) or "")):
                file = self._folder.find(path)
                if file is not None:
                    nearest[file.path] = min(dropped, nearest.get(file.path, dropped))
                    break
        return nearest

    def paths_of(self, reference: str) -> list[str]:
        """The paths that a task's reference may mean, the longest first; none of one that leaves its folder."""
        url = urlsplit(reference)
        local = parse_qs(url.query).get("d") if url.path.endswith("/data/local-files/") else None
        path = local[0] if local else unquote(url.path)
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        return [] if ".." in parts else ["/".join(parts[first:]) for first in range(len(parts))]


def place_percent(found: Annotations, image: Framed) -> Annotations:
    """From fractions of the upright picture to pixels of the stored frame."""
    return to_pixels(upright_to_stored(found, image.exif_orientation), image.width, image.height)


def _refused(fate: Any, reason: str, image_id: str, detail: str, annotations: int) -> LedgerEntry:
    return LedgerEntry(
        subject="image", fate=fate, reason=reason, image_id=image_id, detail=detail, annotations=annotations
    )


def _unread(image_id: str, entries: Sequence[Mapping[str, Any]], reason: str) -> Iterator[LedgerEntry]:
    for entry in entries:
        for _ in range(_regions(entry)):
            yield LedgerEntry(
                subject="annotation", fate="dropped", reason=reason, image_id=image_id, detail=f"{entry.get('id')}"
            )


def _entries(task: Any, key: str) -> list[dict[str, Any]]:
    """A task's annotations or predictions; ``completions`` is what old versions called the former."""
    if not isinstance(task, dict):
        return []
    found = task.get(key)
    if found is None and key == "annotations":
        found = task.get("completions")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _results(entry: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = None if entry is None else entry.get("result")
    return [result for result in found if isinstance(result, dict)] if isinstance(found, list) else []


def _regions(entry: Mapping[str, Any] | None) -> int:
    """How many objects a reading of the entry would give or lose: keypoints go with their parent."""
    objects, lost = parse_regions(_results(entry), {})
    return len(objects) + len(lost)


def _choose(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The ground truth, else the newest that was not skipped."""
    done = [entry for entry in entries if not entry.get("was_cancelled")]

    def rank(entry: Mapping[str, Any]) -> tuple[bool, str, int]:
        number = entry.get("id")
        when = str(entry.get("updated_at") or entry.get("created_at") or "")
        return bool(entry.get("ground_truth")), when, number if isinstance(number, int) else 0

    return max(done, key=rank, default=None)


def _score(entry: Mapping[str, Any] | None) -> float:
    found = None if entry is None else entry.get("score")
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else 1.0
