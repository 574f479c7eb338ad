"""What could not be taken in: one row a bad input, kept with the plan that met it.

``DATASET/_quarantine/<plan_id>/<name>.parquet``: one file a task, and ``listed`` for what was refused before there were
tasks. Ingestion and labelling write the same rows. A repeated task replaces its file.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.storage import Store

Stage = Literal["list", "read", "decode", "label"]
STAGES: tuple[Stage, ...] = get_args(Stage)
LABEL: Stage = "label"
LISTED = "listed"
"""File name of what was refused before there were tasks."""

QUARANTINE = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("stage", pa.string()),
        ("error_class", pa.string()),
        ("error", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRow:
    """One bad input.

    Attributes:
        image_id: as the dataset would have called it.
        source: URI of the file or the archive's member, without credentials; empty where none is known.
        stage: ``list``: refused by its name or entry alone; ``read``: there are no bytes, or not those that were
            listed, or a file of its annotations cannot be read; ``decode``: the bytes are no sound image; ``label``:
            labelling gave up the task that the image was in.
        error_class: of the exception; empty in rows of an older boxmill.
        error: what was wrong, in words.
        sha256: of the bytes; None where there are none.
    """

    image_id: str
    source: str
    stage: str
    error_class: str
    error: str
    sha256: str | None = None


def write_quarantine(store: Store, plan_id: str, name: str, rows: Sequence[QuarantineRow]) -> str:
    """Write the bad inputs of one task to ``_quarantine/<plan_id>/<name>.parquet``; returns the path."""
    table = pa.Table.from_pylist([{f: getattr(r, f) for f in QUARANTINE.names} for r in rows], schema=QUARANTINE)
    path = f"_quarantine/{plan_id}/{name}.parquet"
    store.write_bytes(path, _to_parquet(table))
    return path


def read_quarantine(uri: str, plan_id: str | None = None) -> list[QuarantineRow]:
    """All bad inputs of a plan, or of every plan, by file and row; files of older versions too.

    Args:
        uri: the dataset, or the place of an archive's predictions.
        plan_id: None for all plans.
    """
    store = Store.open(uri)
    folder = "_quarantine" if plan_id is None else f"_quarantine/{plan_id}"
    return [
        _row(row)
        for file in store.list_files(folder)
        if file.path.endswith(".parquet")
        for row in pq.read_table(pa.BufferReader(store.read_bytes(file.path))).to_pylist()
    ]


def forget_quarantined(uri: str, image_ids: Collection[str]) -> None:
    """Take the rows of some images out of all plans' quarantine."""
    store = Store.open(uri)
    gone = pa.array(list(image_ids), pa.string())
    for file in store.list_files("_quarantine"):
        if not file.path.endswith(".parquet"):
            continue
        table = pq.read_table(pa.BufferReader(store.read_bytes(file.path)))
        kept = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=gone)))
        if kept.num_rows < table.num_rows:
            store.write_bytes(file.path, _to_parquet(kept))


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _row(values: dict[str, str | None]) -> QuarantineRow:
    """Ingestion once wrote no class, an empty digest for none, and ``load`` for both later stages."""
    sha256 = values.get("sha256") or None
    stage = values["stage"] or ""
    if stage == "load":
        stage = "read" if sha256 is None else "decode"
    return QuarantineRow(
        image_id=values["image_id"] or "",
        source=values["source"] or "",
        stage=stage,
        error_class=values.get("error_class") or "",
        error=values["error"] or "",
        sha256=sha256,
    )
