"""COCO panoptic: a PNG of segment ids an image, id = R + 256 G + 256² B, and JSON that says what each segment is.

Segments become objects with RLE masks; ``isthing`` stays with the categories. The PNG is read with the image, in the
workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations, FloatArray, ImageRecord, LabelMap, Rle
from pipelines.sources import SourceItem, read_item, record_from_bytes
from pipelines.sources.coco_objects import parse_annotations, parse_categories
from pipelines.sources.coco_staging import is_key
from pipelines.sources.json_stream import stream_object
from pipelines.sources.listing import ImageFolder, check_file, find_folder, list_images, stat_uri
from pipelines.sources.mask_png import read_mask_png, segment_masks
from pipelines.sources.staging import Staging, staging
from pipelines.storage import FileStat, redact, split_uri

_ARRAYS = ("images", "annotations", "categories")


@dataclass(frozen=True, kw_only=True)
class PanopticSource:
    """One split; ``image_id`` is the image's ``file_name`` below its folder."""

    kind: ClassVar[str] = "panoptic"
    annotations: str
    images: str
    masks: str
    split: str = "train"

    @classmethod
    def open(
        cls, *, annotations: str, images: str | None = None, masks: str | None = None, split: str = "train"
    ) -> PanopticSource:
        """Open by URIs of any fsspec scheme.

        Args:
            annotations: ``panoptic_val2017.json``.
            images: folder of the images; None for ``images`` beside the file, or ``../<val2017>``.
            masks: folder of the PNGs; None for the folder of the JSON's name.
            split: given to every image.
        Raises:
            ValueError: a file or folder is missing.
        """
        annotations = check_file(annotations, "panoptic annotation file")
        stem = annotations.rpartition("/")[2].removesuffix(".json")
        return cls(
            annotations=annotations,
            images=find_folder(annotations, images, "images", f"../{stem.split('_')[-1]}"),
            masks=find_folder(annotations, masks, stem, "masks"),
            split=split,
        )

    @property
    def options(self) -> dict[str, Any]:
        return {"annotations": self.annotations, "images": self.images, "masks": self.masks, "split": self.split}

    @cached_property
    def label_map(self) -> LabelMap:
        found = [value for key, value in self._stream("categories") if key == "categories"]
        return parse_categories([(redact(self.annotations), found)])

    @cached_property
    def _images(self) -> ImageFolder:
        return list_images(self.images)

    @cached_property
    def _masks(self) -> ImageFolder:
        return list_images(self.masks)

    def inputs(self) -> Iterator[FileStat]:
        yield stat_uri(self.annotations)
        yield from self._images.inputs()
        if self.masks != self.images:
            yield from self._masks.inputs()

    def about(self) -> Mapping[str, Any]:
        return {key: value for key, value in self._stream() if key not in _ARRAYS}

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        with staging() as rows:
            problems: list[LedgerEntry] = []
            rows.add("segments", self._entries(problems))
            yield from problems
            known: set[str] = set()
            taken: set[str] = set()
            for key, image in self._stream("images"):
                if key == "images":
                    yield from self._items(image, rows, known, taken)
            for key, _ in rows.counts("segments"):
                if key not in known:
                    for entry in rows.get("segments", key):
                        yield _refused("its image is not in the file", key, "", len(entry["segments_info"]))

    def _entries(self, problems: list[LedgerEntry]) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in self._stream("annotations"):
            if key != "annotations":
                continue
            segments = value.get("segments_info") if isinstance(value, dict) else None
            if not isinstance(segments, list) or type(value.get("image_id")) not in (int, str):
                problems.append(_refused("not a panoptic annotation", "", f"{value!r:.200}", 0))
                continue
            yield str(value["image_id"]), {**value, "segments_info": [s for s in segments if isinstance(s, dict)]}
            for segment in segments:
                if not isinstance(segment, dict):
                    problems.append(_refused("not a panoptic segment", str(value["image_id"]), f"{segment!r:.200}", 0))

    def _items(self, image: Any, rows: Staging, known: set[str], taken: set[str]) -> Iterator[SourceItem | LedgerEntry]:
        name = str(image.get("file_name")) if isinstance(image, dict) else ""
        number = image.get("id") if isinstance(image, dict) else None
        again = str(number) in known
        entries = [] if again else rows.get("segments", str(number))
        known.add(str(number))
        for extra in entries[1:]:
            yield _refused("image has two panoptic annotations", name, "", len(extra["segments_info"]))
        segments = entries[0]["segments_info"] if entries else []
        file = self._images.find(name)
        mask = self._masks.find(str(entries[0].get("file_name"))) if entries else None
        reason = None
        if again or type(number) is not int or not is_key(number):
            reason = "image id given twice in one file" if again else "image without an integer id or a file_name"
        elif file is None:
            reason = "image file missing"
        elif entries and mask is None:
            reason = "panoptic PNG missing"
        elif file.path in taken:
            reason = "image file already used by another entry"
        if reason is not None or file is None:
            yield LedgerEntry(
                subject="image",
                fate="quarantined" if reason and "missing" in reason else "dropped",
                reason=reason or "",
                image_id=name,
                detail=redact(self.images),
                annotations=len(segments),
            )
            return
        taken.add(file.path)
        yield SourceItem(
            image_id=file.path,
            uri=self._images.uri_of(file),
            size=file.size,
            split=self.split,
            coco_image_id=number,
            annotations=parse_annotations(segments) if entries else None,
            payload={"mask": self._masks.uri_of(mask) if mask else None},
            url=str(image.get("coco_url") or image.get("flickr_url") or ""),
            extra={k: v for k, v in image.items() if k not in ("width", "height", "id")},
        )

    def load(self, item: SourceItem) -> ImageRecord:
        record = record_from_bytes(item, read_item(item))
        if item.annotations is None or item.payload["mask"] is None:
            return record
        ids = _read_ids(item.payload["mask"], (record.height, record.width))
        masks = segment_masks(ids)
        unlisted = set(masks) - {0} - set(item.annotations.ids.tolist())
        extra = {**item.extra, "unlisted_segments": sorted(unlisted)} if unlisted else item.extra
        return replace(record, annotations=_with_masks(item.annotations, masks), extra=extra)

    def _stream(self, *arrays: str) -> Iterator[tuple[str, Any]]:
        store, name = split_uri(self.annotations)
        with store.open_read(name) as stream:
            skip = [a for a in _ARRAYS if a not in arrays]
            for key, value, _ in stream_object(stream, redact(self.annotations), arrays=arrays, skip=skip):
                yield key, value


def _refused(reason: str, image_id: str, detail: str, segments: int) -> LedgerEntry:
    """Annotations without an image; an entry that is none at all counts as one."""
    return LedgerEntry(
        subject="annotation",
        fate="dropped",
        reason=reason,
        image_id=image_id,
        detail=detail,
        annotations=max(0, segments - 1),
    )


def _read_ids(uri: str, size: tuple[int, int]) -> NDArray[np.int64]:
    """(H, W) segment ids; raises BadImage."""
    colours = read_mask_png(uri, size, mode="RGB")
    ids: NDArray[np.int64] = colours @ np.array([1, 256, 256**2], np.int64)
    return ids


def _with_masks(annotations: Annotations, masks: Mapping[int, Rle]) -> Annotations:
    """RLEs by segment id; a segment without pixels loses its box, and the checks drop it as without area."""
    boxes, area = annotations.boxes_xywh.copy(), annotations.area.copy()
    rles = tuple(masks.get(int(i)) for i in annotations.ids)
    for i, rle in enumerate(rles):
        if rle is None:
            boxes[i], area[i] = (0.0, 0.0, 0.0, 0.0), 0.0
            continue
        encoded = {"size": list(rle.size), "counts": str(rle.counts).encode()}
        if not np.isfinite(boxes[i]).all():
            drawn: FloatArray = coco_mask.toBbox(encoded)
            boxes[i] = drawn
        if not np.isfinite(area[i]):
            area[i] = float(coco_mask.area(encoded))
    return replace(annotations, boxes_xywh=boxes, area=area, rles=rles)
