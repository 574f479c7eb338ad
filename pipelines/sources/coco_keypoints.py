"""Entries of a COCO keypoint file: each belongs to one object of the instances file, or is one of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from pipelines.ledger import LedgerEntry
from pipelines.sources.coco_twins import dropped

_ELSEWHERE = "keypoints of an annotation that is of another image"
_AGAIN = "keypoints given twice for one annotation"


def join_keypoints(db: sqlite3.Connection, split: int, name: str) -> Iterator[LedgerEntry]:
    """Give the keypoints of a split to the objects of the same id and image; tell of those that none can have.

    A person that only the keypoint file knows becomes an object.

    Args:
        db: with the tables ``objects (split, image_id, annotation_id, text, fresh_id)``, indexed by annotation id, and
            ``keypoints (split, image_id, annotation_id, text, object)``, whose ``object`` is set to the row of the
            object that an entry belongs to.
        split: its number in the tables.
        name: of the split, for the entries.
    """
    # The first of several objects of one id and image: part_twins may drop the others, or gives them new ids.
    db.execute(
        "UPDATE keypoints AS k SET object = (SELECT MIN(o.rowid) FROM objects AS o WHERE o.split = k.split "
        "AND o.annotation_id = k.annotation_id AND o.image_id = k.image_id) WHERE k.split = ?",
        (split,),
    )
    again = (
        "FROM keypoints AS k WHERE k.split = ? AND k.object IS NOT NULL "
        "AND EXISTS (SELECT 1 FROM keypoints AS first WHERE first.object = k.object AND first.rowid < k.rowid)"
    )
    yield from _told(db, again, split, name, _AGAIN)
    db.execute(f"DELETE FROM keypoints WHERE rowid IN (SELECT k.rowid {again})", (split,))
    known = "(SELECT 1 FROM objects AS o WHERE o.split = k.split AND o.annotation_id = k.annotation_id)"
    alone = f"FROM keypoints AS k WHERE k.split = ? AND k.object IS NULL AND {{}} EXISTS {known}"
    yield from _told(db, alone.format(""), split, name, _ELSEWHERE)
    db.execute(
        f"INSERT INTO objects SELECT split, image_id, annotation_id, text, NULL {alone.format('NOT')} ORDER BY k.rowid",
        (split,),
    )


def _told(db: sqlite3.Connection, rows: str, split: int, name: str, reason: str) -> list[LedgerEntry]:
    found = db.execute(f"SELECT k.image_id, k.annotation_id {rows} ORDER BY k.rowid", (split,))
    return [dropped(image_id, annotation_id, name, reason) for image_id, annotation_id in found]
