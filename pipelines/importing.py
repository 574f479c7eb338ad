"""One ingest task, from items to files and a receipt, and the commit of all tasks. Plain functions, no cluster."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from types import TracebackType
from typing import Any

from pipelines.checks import BadImage, check_annotations
from pipelines.commits import DatasetVersion, commit_images, commit_labels
from pipelines.duplicates import Dedupe, count_duplicates, find_new_duplicates, leave_out_duplicates
from pipelines.in_order import in_order
from pipelines.jobs import Job, Plan, Receipt, files_of
from pipelines.label_commits import settle
from pipelines.ledger import SUBJECTS, Ledger, LedgerEntry
from pipelines.ledger_listing import write_commit_ledger
from pipelines.pixels import check_pixels
from pipelines.planning import items_from_arrow, plan_ledger
from pipelines.quarantine import QuarantineRow, write_quarantine
from pipelines.records import Annotations, ImageRecord, LabelMap
from pipelines.references import EmptyDataset
from pipelines.resuming import check_files
from pipelines.schema import LabelRow
from pipelines.shard_writing import MAX_SHARD_BYTES, ImageShardWriter, label_row, write_label_shard
from pipelines.shards import ShardFile
from pipelines.sources import Source, SourceItem, open_source
from pipelines.sources.frames import is_of_upright, turned_to_stored
from pipelines.storage import Store, redact

# A store answers late, so many ask at once. On a local disk handing an image from thread to thread costs more than
# waiting for it (an eighth of all work), and tasks run beside each other anyway; decoding is worth its threads.
_LOADERS, _LOCAL_LOADERS = 8, 2
_A_TIME = 8
_TURNED = "annotations moved from the upright frame to the stored one"


class StrictIngestError(ValueError):
    """Strict mode: something would have been mended, dropped or quarantined."""


def run_task(job: Job, task_id: int, source: Source | None = None) -> Receipt:
    """Import one task of a plan: read, check, write a shard with its labels, then put down the receipt.

    Running it again, or twice at once, is harmless: equal content has equal file names and the first receipt wins.

    Args:
        job: the plan's folder.
        task_id: which task.
        source: opened already, or None to open it from the plan.
    Returns:
        The receipt that counts.
    """
    plan = job.plan()
    if source is None:
        source = open_source(plan.metadata["kind"], **plan.metadata["options"])
    store = Store.open(job.dataset_uri)
    ledger = Ledger()
    category_ids = frozenset(c.category_id for c in LabelMap.from_json(plan.metadata["categories"]).categories)
    quarantined: list[QuarantineRow] = []
    loaded = 0
    with _TaskShards(store, plan.metadata["label_set"]) as shards:
        items = items_from_arrow(job.read_task(task_id))
        for item, found in _load(source, items, deep=bool(plan.metadata.get("settings", {}).get("deep_check"))):
            if item.annotations is None and isinstance(found, ImageRecord):
                loaded += _count(found.annotations)
            refusal = _refusal(item, found)
            if refusal is not None:
                quarantined.append(_quarantine(item, found, refusal, ledger))
                continue
            assert isinstance(found, ImageRecord)
            if item.coco_image_id not in (None, found.coco_image_id):
                found = replace(found, coco_image_id=item.coco_image_id)
            before = _mended(ledger)
            record = _check(found, item, category_ids, ledger)
            shards.add(record, mended=[now - then for now, then in zip(_mended(ledger), before)])
        files = shards.finish()
    if quarantined:
        write_quarantine(store, job.plan_id, f"{task_id:06d}", quarantined)
    extra: dict[str, Any] = {"loaded_annotations": loaded}
    if plan.metadata.get("settings", {}).get("dedupe") == "drop":
        extra["mended"] = shards.mended
    receipt = Receipt(task_id=task_id, files=tuple(files), ledger=ledger.to_json(), extra=extra)
    # Receipt last: a killed worker leaves orphan files, never a receipt without its files.
    return receipt if job.finish(task_id, receipt) else job.receipt(task_id)


class _TaskShards:
    """The shard that a task writes, with its labels; several where sizes that no listing told outgrow one.

    Leaving the ``with`` without ``finish`` leaves no half-written file behind.

    Attributes:
        mended: see ``pipelines.duplicates.Mended``.
    """

    def __init__(self, store: Store, label_set: str) -> None:
        self._store, self._label_set = store, label_set
        self._files: list[ShardFile] = []
        self.mended: dict[str, dict[str, list[int]]] = {}
        self._begin()

    def _begin(self) -> None:
        self._writer = ImageShardWriter(self._store)
        self._rows: list[LabelRow] = []
        self._mended_rows: dict[str, list[int]] = {}
        self._bytes = 0

    def __enter__(self) -> _TaskShards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, at)

    def add(self, record: ImageRecord, *, mended: list[int]) -> None:
        if self._rows and self._bytes + len(record.image) > MAX_SHARD_BYTES:
            self.finish()
            self._begin()
        if any(mended):
            self._mended_rows[str(len(self._rows))] = mended
        self._rows.append(label_row(record, len(self._rows), self._writer.add(record)))
        self._bytes += len(record.image)

    def finish(self) -> list[ShardFile]:
        """All files of the task so far, whole."""
        with self._writer:
            image_file = self._writer.finish()
        if image_file is not None:
            label_file = write_label_shard(self._store, self._label_set, image_file.path, self._rows)
            self._files += [image_file, label_file]
            self.mended[label_file.path] = self._mended_rows
        return self._files


def _load(
    source: Source, items: Sequence[SourceItem], *, deep: bool
) -> Iterator[tuple[SourceItem, ImageRecord | Exception]]:
    """Each item with its record or what is wrong with it, in order; a bounded number of images is read ahead."""

    def load(item: SourceItem) -> ImageRecord | Exception:
        try:
            record = source.load(item)
            return _checked_to_the_last_pixel(record) if deep else record
        except (BadImage, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            return error
        except (OSError, ValueError) as error:
            # A name that no file can have; anything else is the store's trouble, and the task is tried again.
            if "\0" in item.uri or getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.ELOOP):
                return BadImage(f"no file can be read by this name: {error}")
            raise

    local = all("://" not in item.uri for item in items[:1])
    if local and not deep:
        yield from ((item, load(item)) for item in items)
        return
    # Some at a time: handing over each image alone costs as much as reading it.
    parts = [items[first : first + _A_TIME] for first in range(0, len(items), _A_TIME)]
    loaders = _LOCAL_LOADERS if local else _LOADERS
    found = in_order(lambda part: [load(item) for item in part], parts, threads=loaders)
    yield from zip(items, chain.from_iterable(found), strict=True)


def _checked_to_the_last_pixel(record: ImageRecord) -> ImageRecord:
    try:
        check_pixels(record.image, record.format)
    except BadImage as error:
        error.sha256 = record.sha256
        raise
    return record


def _quarantine(
    item: SourceItem, found: ImageRecord | Exception, refusal: tuple[str, str], ledger: Ledger
) -> QuarantineRow:
    reason, detail = refusal
    held = found.annotations if isinstance(found, ImageRecord) else item.annotations
    ledger.add(
        LedgerEntry(
            subject="image",
            fate="quarantined",
            reason=reason,
            image_id=item.image_id,
            detail=detail,
            annotations=_count(held),
        )
    )
    sha256 = found.sha256 if isinstance(found, ImageRecord | BadImage) else None
    return QuarantineRow(
        image_id=item.image_id,
        source=redact(item.uri),
        stage="read" if sha256 is None else "decode",
        error_class=type(found).__name__ if isinstance(found, Exception) else "BadImage",
        error=f"{reason}: {detail}",
        sha256=sha256,
    )


def _refusal(item: SourceItem, found: ImageRecord | Exception) -> tuple[str, str] | None:
    """Why an image goes into quarantine: (reason, detail); None for a good one."""
    if isinstance(found, FileNotFoundError):
        return "image file missing", redact(item.uri)
    return ("image cannot be read", str(found)) if isinstance(found, Exception) else None


def _check(record: ImageRecord, item: SourceItem, category_ids: frozenset[int], ledger: Ledger) -> ImageRecord:
    """The record as it is stored; the ledger is told of everything that was mended or dropped."""
    size = (record.width, record.height)
    mended = item.mended
    if is_of_upright(record, item.declared_size):
        record = turned_to_stored(record)
        ledger.add(
            LedgerEntry(
                subject="image",
                fate="mended",
                reason=_TURNED,
                image_id=record.image_id,
                detail=f"EXIF orientation {record.exif_orientation}, stored as {record.width}x{record.height}",
            )
        )
        mended = {str(i): _TURNED for i in range(_count(record.annotations))} | dict(mended)
    elif item.declared_size is not None and item.declared_size != size:
        declared = "x".join(map(str, item.declared_size))
        ledger.add(
            LedgerEntry(
                subject="image",
                fate="mended",
                reason="size differs from the file's header, the header is used",
                image_id=record.image_id,
                detail=f"annotations say {declared}, the file is {record.width}x{record.height}",
            )
        )
    elif "" in item.mended:
        told = item.mended[""]
        ledger.add(LedgerEntry(subject="image", fate="imported", reason=told, image_id=record.image_id))
    else:
        ledger.imported("image")
    if record.annotations is None:
        return record
    annotations = check_annotations(
        record.annotations,
        width=record.width,
        height=record.height,
        category_ids=category_ids,
        ledger=ledger,
        image_id=record.image_id,
        clip_tolerance=item.clip_tolerance,
        mended=mended,
    )
    return replace(record, annotations=annotations)


def _mended(ledger: Ledger) -> list[int]:
    """Images and annotations so far."""
    return [ledger.counts[subject]["mended"] for subject in SUBJECTS]


def _count(annotations: Annotations | None) -> int:
    return 0 if annotations is None else len(annotations)


def commit_job(job: Job, plan: Plan, *, strict: bool = False, dedupe: Dedupe = "report") -> DatasetVersion:
    """Commit a plan whose receipts are all there; finds the commit if another was first.

    Args:
        job, plan: what was done.
        strict: refuse what was not simply imported.
        dedupe: what to do with images of the same bytes, in the plan and in the label set's newest version.
    Raises:
        LedgerMismatch: the receipts do not account for everything the source holds.
        EmptyDataset: not one image could be imported.
        StrictIngestError: strict, and something was not simply imported.
        FilesLost: files or receipts were deleted meanwhile.
    """
    label_set = plan.metadata["label_set"]
    ledger = plan_ledger(plan)
    image_files: list[ShardFile] = []
    label_files: list[ShardFile] = []
    mended: dict[str, Any] = {}
    done = loaded = 0
    for receipt in job.each_receipt():
        done += 1
        ledger.merge(Ledger.from_json(receipt.ledger))
        loaded += int(receipt.extra["loaded_annotations"])
        mended |= receipt.extra.get("mended", {})
        image_files += files_of([receipt], "images")
        label_files += files_of([receipt], f"labels/{label_set}")
    check_files(job, [*image_files, *label_files], plan.num_tasks)
    assert done == plan.num_tasks, "a commit needs every receipt"
    seen = plan.metadata["seen"]
    where = redact(job.dataset_uri)

    duplicates = [] if dedupe == "keep" else find_new_duplicates(job.dataset_uri, label_set, label_files)
    if dedupe == "drop" and duplicates:
        dropped = Ledger()
        store = Store.open(job.dataset_uri)
        label_files = leave_out_duplicates(store, label_set, label_files, duplicates, mended, ledger, dropped)
        write_commit_ledger(job, dropped)
    ledger.check(images=seen["images"], annotations=seen["annotations"] + loaded)
    if strict and ledger.reasons:
        raise StrictIngestError(f"strict: nothing is committed to {where}, because of {_first_entries(ledger)}")
    if not ledger.kept("image"):
        raise EmptyDataset(f"not one image could be imported to {where}: {_first_entries(ledger)}")
    images_version = commit_images(job.dataset_uri, image_files, plan_id=plan.plan_id)
    version = commit_labels(
        job.dataset_uri,
        label_set,
        label_files,
        plan_id=plan.plan_id,
        label_map=LabelMap.from_json(plan.metadata["categories"]),
        images_version=images_version,
        ledger=ledger.sums(),
        provenance={
            "source": plan.metadata["kind"],
            "options": plan.metadata["options"],
            "about": plan.metadata["about"],
            "duplicates": count_duplicates(duplicates),
        },
    )
    return settle(Store.open(job.dataset_uri), label_set) or version


def _first_entries(ledger: Ledger) -> str:
    shown = [f"{e.subject} {e.image_id!r} {e.fate}: {e.reason} {e.detail}".strip() for e in ledger.entries[:5]]
    more = sum(ledger.reasons.values()) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
