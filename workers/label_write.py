"""What a labelled task leaves behind: rows of predictions, rows of quarantine, and the receipt that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import pyarrow as pa

from pipelines.jobs import Receipt
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.predictions import STATUS_FAILED, STATUS_OK, ArchivePlace, write_predictions
from pipelines.quarantine import QuarantineRow, write_quarantine
from pipelines.records import Annotations
from pipelines.schema import STORED_FRAME, LabelRow
from pipelines.shard_paths import shard_stem
from pipelines.sources.archive import member_uri
from pipelines.storage import Store, redact
from workers.label_inputs import DecodedImage
from workers.label_job import LabelJob

CARRIES = "predictions_of"
"""In a row's ``extra``: the image whose predictions it carries, as it shows the same."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """One image when the model is done with it; ``annotations`` None means that it failed."""

    decoded: DecodedImage
    annotations: Annotations | None


def write_task(
    job: LabelJob, task_id: int, task: pa.Table, outcomes: Sequence[Outcome], measured: Mapping[str, Any]
) -> Receipt:
    """Write a task's predictions and its bad images; returns the receipt, which is not yet put down.

    Args:
        outcomes: one a row of the task, in its order.
        measured: JSON-ready, goes into the receipt's ``extra``.
    """
    store, planned = Store.open(job.root), task.to_pylist()
    rows = [label_row(p, o) for p, o in zip(planned, outcomes, strict=True)]
    places = None
    stem = f"archive-{job.plan_id[:16]}"
    if job.input_kind == "dataset":
        stem = shard_stem(planned[0]["image_path"])
    else:
        places = [_place(job, p, o.decoded) for p, o in zip(planned, outcomes, strict=True)]
    bad = [_quarantine_row(job, p, o.decoded) for p, o in zip(planned, outcomes) if o.annotations is None]
    quarantine = write_quarantine(store, job.plan_id, f"{task_id:06d}", bad) if bad else None
    file = write_predictions(store, job.label_set, stem, rows, places)
    return Receipt(
        task_id=task_id,
        files=(file,),
        ledger=_ledger(outcomes, bad).to_json(),
        extra={"failed": len(bad), "quarantine": quarantine, **measured},
    )


def label_row(planned: Mapping[str, Any], outcome: Outcome) -> LabelRow:
    """The row of one image; an archive's size is known only now."""
    decoded = outcome.decoded
    failure = decoded.failure
    height, width = decoded.size
    turned = decoded.header is not None and decoded.header.exif_orientation != 1
    return LabelRow(
        image_id=planned["image_id"],
        row=planned["row"],
        row_group=planned["row_group"],
        split=planned["split"],
        coco_image_id=planned["coco_image_id"],
        width=planned["width"] or width,
        height=planned["height"] or height,
        annotations=outcome.annotations,
        box_frame=STORED_FRAME if turned else None,
        status=STATUS_OK if failure is None else STATUS_FAILED,
        error=None if failure is None else f"{failure.stage}: {failure.error_class}: {failure.error}",
        input_sha256=decoded.sha256,
        extra={CARRIES: planned["copy_of"]} if failure is None and planned.get("copy_of") is not None else {},
    )


def _place(job: LabelJob, planned: Mapping[str, Any], decoded: DecodedImage) -> ArchivePlace:
    header = decoded.header
    return ArchivePlace(
        source=redact(job.input_uri) if planned.get("uri") is None else planned["uri"],
        member=planned["image_id"],
        offset=decoded.raw.offset,
        length=decoded.raw.length,
        format=None if header is None else header.format,
        exif_orientation=None if header is None else header.exif_orientation,
    )


def _quarantine_row(job: LabelJob, planned: Mapping[str, Any], decoded: DecodedImage) -> QuarantineRow:
    assert decoded.failure is not None
    return QuarantineRow(
        image_id=planned["image_id"],
        source=_source(job, planned),
        stage=decoded.failure.stage,
        error_class=decoded.failure.error_class,
        error=decoded.failure.error,
        sha256=decoded.sha256,
    )


def _source(job: LabelJob, planned: Mapping[str, Any]) -> str:
    match job.input_kind:
        case "dataset":
            return f"{redact(job.root)}/{planned['image_path']}"
        case "archive":
            return member_uri(job.input_uri, planned["image_id"])
        case "webdataset":
            return member_uri(planned["uri"], planned["image_id"].partition("/")[2])
        case "url_list":
            return str(planned["uri"])
        case _:
            assert_never(job.input_kind)


def _ledger(outcomes: Sequence[Outcome], bad: Sequence[QuarantineRow]) -> Ledger:
    ledger = Ledger()
    ledger.imported("image", len(outcomes) - len(bad))
    ledger.imported("annotation", sum(len(o.annotations) for o in outcomes if o.annotations is not None))
    ledger.extend(
        LedgerEntry(
            subject="image",
            fate="quarantined",
            reason=f"{row.stage}: {row.error_class}",
            image_id=row.image_id,
            detail=row.error,
        )
        for row in bad
    )
    return ledger
