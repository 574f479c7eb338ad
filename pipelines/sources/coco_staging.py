"""Annotations of COCO files on disk, by split and image: COCO does not group them, and files are large."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.ledger import LedgerEntry
from pipelines.sources.coco_keypoints import join_keypoints
from pipelines.sources.coco_kinds import ignored_captions, is_caption, malformed, named_by_url
from pipelines.sources.coco_twins import Twin, part_twins
from pipelines.sources.json_stream import stream_object
from pipelines.storage import redact, split_uri

if TYPE_CHECKING:
    from pipelines.sources.coco import CocoSplit

_ARRAYS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What of one split's files is held in memory: all but the annotations."""

    images: list[dict[str, Any]]
    licenses: list[dict[str, Any]]
    problems: list[LedgerEntry]
    annotated: bool = True


class Staging:
    """Annotations on disk, by split and image."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE objects (split, image_id, annotation_id, text, fresh_id);"
            "CREATE TABLE keypoints (split, annotation_id, image_id, text, object);"
        )

    def close(self) -> None:
        self._db.close()

    def read_split(self, number: int, split: CocoSplit) -> Read:
        read = Read(images=[], licenses=[], problems=[])
        rows = self._rows(split.annotations, number, split.name, read)
        self._insert("objects (split, image_id, annotation_id, text)", rows)
        for uri in split.keypoints:
            points = self._rows(uri, number, split.name, Read(images=[], licenses=[], problems=read.problems))
            self._insert("keypoints (split, image_id, annotation_id, text)", points)
        self._db.executescript(
            "CREATE INDEX IF NOT EXISTS by_image ON objects (split, image_id);"
            "CREATE INDEX IF NOT EXISTS by_id ON objects (split, annotation_id);"
            "CREATE INDEX IF NOT EXISTS points_by_object ON keypoints (object);"
        )
        read.problems.extend(join_keypoints(self._db, number, split.name))
        read.problems.extend(part_twins(self._db, number, split.name))
        some = self._db.execute("SELECT 1 FROM objects WHERE split = ? LIMIT 1", (number,)).fetchone()
        return replace(read, annotated=some is not None)

    def _rows(self, uri: str, number: int, name: str, read: Read) -> Iterator[tuple[Any, ...]]:
        captions = 0
        for key, value, text in stream_file(uri, arrays=("images", "annotations")):
            match key:
                case "annotations" if is_caption(value):
                    captions += 1
                case "images" if isinstance(value, dict):
                    read.images.append(named_by_url(value))
                case "images":
                    read.problems.append(malformed("image", name, text))
                case "annotations" if isinstance(value, dict) and is_key(value.get("image_id")):
                    annotation_id = value.get("id")
                    yield number, value["image_id"], annotation_id if is_key(annotation_id) else None, text
                case "annotations":
                    read.problems.append(malformed("annotation", name, text))
                case "licenses" if isinstance(value, list):
                    read.licenses.extend(entry for entry in value if isinstance(entry, dict))
        if captions:
            read.problems.append(ignored_captions(captions, redact(uri)))

    def _insert(self, target: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._db.executemany(f"INSERT INTO {target} VALUES (?, ?, ?, ?)", rows)
        self._db.commit()

    def objects(self, number: int, image_id: Any) -> list[dict[str, Any]]:
        """The annotations of one image in the file's order, with the keypoints of the other file."""
        if not is_key(image_id):
            return []
        found = self._db.execute(
            "SELECT o.text, (SELECT k.text FROM keypoints AS k WHERE k.object = o.rowid), o.fresh_id "
            "FROM objects AS o WHERE o.split = ? AND o.image_id = ? ORDER BY o.rowid",
            (number, image_id),
        )
        objects = []
        for text, points, fresh_id in found:
            values: dict[str, Any] = json.loads(text) if fresh_id is None else Twin.of(json.loads(text), fresh_id)
            if points is not None:
                other = json.loads(points)
                values |= {k: other[k] for k in ("keypoints", "num_keypoints") if k in other}
            objects.append(values)
        return objects

    def orphans(self, number: int, split: CocoSplit, known: set[Any]) -> Iterator[LedgerEntry]:
        """Annotations of images that the file does not have."""
        image_ids = self._db.execute("SELECT DISTINCT image_id FROM objects WHERE split = ?", (number,)).fetchall()
        for (image_id,) in image_ids:
            if image_id in known:
                continue
            for values in self.objects(number, image_id):
                annotation_id = values.get("id")
                yield LedgerEntry(
                    subject="annotation",
                    fate="dropped",
                    reason="its image is not in the file",
                    image_id=str(image_id),
                    annotation_id=annotation_id if isinstance(annotation_id, int) else None,
                    detail=redact(split.annotations),
                )


def is_key(value: Any) -> bool:
    """Whether annotations can be found by this id: text, or an integer that SQLite holds."""
    return (
        isinstance(value, (int, str))
        and not isinstance(value, bool)
        and (isinstance(value, str) or -(2**63) <= value < 2**63)
    )


def stream_file(uri: str, *, arrays: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """(key, value, its JSON text) of a COCO file: each element of ``arrays``, and what stands beside large arrays."""
    store, name = split_uri(uri)
    with store.open_read(name) as stream:
        yield from stream_object(stream, redact(uri), arrays=arrays, skip=[a for a in _ARRAYS if a not in arrays])
