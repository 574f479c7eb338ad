"""Rows of images that show the same picture as another one: they carry that one's predictions, and say so."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.checks import ImageHeader
from pipelines.in_order import in_order
from pipelines.jobs import Job, Receipt
from pipelines.ledger import Ledger
from pipelines.predictions import STATUS_FAILED
from pipelines.schema import LabelRow, labels_from_arrow
from pipelines.shards import read_label_file
from workers.exits import exit_within
from workers.label_job import LabelJob
from workers.label_looks import attempted
from workers.label_readers import Failure, RawImage
from workers.label_tasks import TASK, read_task

if TYPE_CHECKING:  # torch comes with it, which whoever plans does without
    from workers.label_write import Outcome

COPIED = "carries the predictions of an image that shows the same"
COPIES = pa.schema(
    [
        *TASK,
        # Null where an image is labelled itself.
        ("copy_of", pa.string()),  # image id
        ("copy_task", pa.int32()),  # in which that one is labelled
        ("sha256", pa.string()),  # these as in ``pipelines.look_alikes.LOOKS``
        ("format", pa.string()),
        ("exif_orientation", pa.int32()),
        ("image_offset", pa.int64()),
        ("image_length", pa.int64()),
    ]
)
"""``TASK`` of a plan in which pictures are labelled once: tasks of labelling come first, then those of copying."""


class CopyShard:
    """A Ray Data actor: writes the rows of one task of copies, one task a call; no model and no image is touched."""

    def __init__(self, jobs: Sequence[LabelJob], board: Any) -> None:
        exit_within()
        (job,) = jobs
        self._job, self._board = job, board
        self._tasks = Job(job.root, job.plan_id)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """See ``workers.label_looks.attempted``; every task of labelling has its receipt."""
        task_id = int(row["task"])
        return attempted(self._tasks, self._board, self._job.max_attempts, task_id, partial(self._copy, task_id))

    def _copy(self, task_id: int, attempt: int) -> Receipt:
        from workers.label_write import write_task

        started = time.perf_counter()
        task = read_task(self._job, self._tasks, task_id)
        planned = task.to_pylist()
        found = self._labelled(planned)
        outcomes = [_carried(place, row, found[row["copy_of"]]) for place, row in enumerate(planned)]
        copied = sum(outcome.annotations is not None for outcome in outcomes)
        written = write_task(self._job, task_id, task, outcomes, {"attempts": attempt, "copied": copied})
        ledger = Ledger.from_json(written.ledger)
        if copied:
            ledger.reasons[f"image imported: {COPIED}"] = copied
        told = {"rows": task.num_rows, "seconds": round(time.perf_counter() - started, 4)}
        return replace(written, ledger=ledger.to_json(), extra={**written.extra, **told})

    def _labelled(self, planned: Sequence[Mapping[str, Any]]) -> dict[str, LabelRow]:
        """The rows of the images that are carried, by id; one label file of another task at a time."""
        wanted: dict[int, set[str]] = {}
        for row in planned:
            wanted.setdefault(row["copy_task"], set()).add(row["copy_of"])
        parts = in_order(lambda item: self._rows(*item), sorted(wanted.items()), threads=4)
        return {row.image_id: row for part in parts for row in part}

    def _rows(self, task_id: int, image_ids: Collection[str]) -> list[LabelRow]:
        wanted = pa.array(sorted(image_ids), pa.string())
        rows: list[LabelRow] = []
        for file in self._tasks.receipt(task_id).files:
            table = read_label_file(self._job.root, file.path)
            rows += labels_from_arrow(table.filter(pc.is_in(table["image_id"], value_set=wanted)))
        return rows


def _carried(place: int, planned: Mapping[str, Any], original: LabelRow) -> Outcome:
    """An image as if it had been labelled; where its original failed it has failed as well, for the same reason."""
    from workers.label_inputs import DecodedImage
    from workers.label_write import Outcome

    failure = None
    if original.status == STATUS_FAILED:
        stage, error_class, error = (original.error or "").split(": ", 2)
        same: Any = stage
        failure = Failure(stage=same, error_class=error_class, error=f"as {original.image_id!r}, the same: {error}")
    decoded = DecodedImage(
        raw=RawImage(place=place, offset=planned["image_offset"], length=planned["image_length"]),
        size=(planned["height"], planned["width"]),
        header=ImageHeader(
            format=planned["format"],
            width=planned["width"],
            height=planned["height"],
            exif_orientation=planned["exif_orientation"],
        ),
        sha256=planned["sha256"],
        failure=failure,
    )
    return Outcome(decoded=decoded, annotations=original.annotations if failure is None else None)
