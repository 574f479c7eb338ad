"""Annotations of one COCO file that share an id: pycocotools would silently take one for the other."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.ledger import LedgerEntry

_REASON = "annotation id given twice, this one gets a new id"
_COPY = "annotation given twice, word for word"


class Twin(dict[str, Any]):
    """An annotation that got a new id; the source's is its ``source_id``."""

    @classmethod
    def of(cls, values: Mapping[str, Any], fresh_id: int) -> Twin:
        return cls({**values, "id": fresh_id, "source_id": values["id"]})


def mended_twins(objects: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """``SourceItem.mended`` of an image's annotations."""
    return {str(i): _REASON for i, values in enumerate(objects) if isinstance(values, Twin)}


def part_twins(db: sqlite3.Connection, split: int, name: str) -> Iterator[LedgerEntry]:
    """Give annotations whose id an earlier one of the split has a new one; leave out copies word for word.

    Args:
        db: with the table ``objects (split, image_id, annotation_id, text, fresh_id)``, indexed by annotation id.
        split: its number in the table.
        name: of the split, for the entries.
    """
    shared = db.execute(
        "SELECT annotation_id FROM objects WHERE split = ? AND annotation_id IS NOT NULL "
        "GROUP BY annotation_id HAVING COUNT(*) > 1 ORDER BY MIN(rowid)",
        (split,),
    ).fetchall()
    if not shared:
        return
    largest = db.execute(
        "SELECT MAX(annotation_id) FROM objects WHERE split = ? AND typeof(annotation_id) = 'integer'", (split,)
    ).fetchone()[0]
    fresh_id = max(largest or 0, 0)
    for (annotation_id,) in shared:
        twins = db.execute(
            "SELECT rowid, image_id, text FROM objects WHERE split = ? AND annotation_id = ? ORDER BY rowid",
            (split, annotation_id),
        ).fetchall()
        seen: set[tuple[Any, str]] = set()
        for rowid, image_id, text in twins:
            if (image_id, text) in seen:
                db.execute("DELETE FROM objects WHERE rowid = ?", (rowid,))
                yield dropped(image_id, annotation_id, name, _COPY)
            elif seen:
                fresh_id += 1
                db.execute("UPDATE objects SET fresh_id = ? WHERE rowid = ?", (fresh_id, rowid))
            seen.add((image_id, text))


def dropped(image_id: Any, annotation_id: Any, name: str, reason: str) -> LedgerEntry:
    """Of an annotation, with the ids as the file has them; ``name`` is the split's."""
    return LedgerEntry(
        subject="annotation",
        fate="dropped",
        reason=reason,
        image_id=str(image_id),
        annotation_id=annotation_id if isinstance(annotation_id, int) else None,
        detail=f"split {name}",
    )
