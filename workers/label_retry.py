"""Images that failed once, tried again: only those are read and labelled, and their rows replaced in one commit."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import delta
from pipelines.commits import describe_version
from pipelines.jobs import Job, make_plan_id
from pipelines.label_commits import commit_revision, revised_metadata, rewrite_label_file
from pipelines.prediction_makers import differences
from pipelines.predictions import STATUS_FAILED, PredictionSet, open_predictions
from pipelines.quarantine import LABEL, forget_quarantined
from pipelines.references import Reference, parse_reference
from pipelines.resuming import check_files, resume
from pipelines.schema import LabelRow
from pipelines.shards import ShardFile, read_label_file, read_labels
from pipelines.storage import Store, redact
from pipelines.versions import list_label_sets
from workers.label_account import account_uri, add_up, write_account
from workers.label_config import LabelConfig, PredictionSetRef
from workers.label_listing import LISTING, LabelInput
from workers.label_plan import LabelPlan, ModelFacts
from workers.label_run import run_plan
from workers.label_tasks import TASK, dataset_task, listed_task
from workers.progress import Progress

Retried = Literal["failed", "quarantined"]
RETRY = "retry"


class _Nothing(Exception):
    """Another run has committed the same."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FailedImages:
    """What is tried again.

    Attributes:
        predictions: the version that has them.
        rows: theirs, by the path of their shard (in a dataset) or "" (elsewhere).
    """

    predictions: PredictionSet
    rows: Mapping[str, Sequence[LabelRow]]

    @property
    def image_ids(self) -> list[str]:
        return sorted(row.image_id for rows in self.rows.values() for row in rows)


def retry(
    config: LabelConfig, source: LabelInput, plan: LabelPlan, model: ModelFacts, progress: Progress | None
) -> PredictionSetRef:
    """Label again what has failed, with the same model and settings.

    Args:
        config: its ``retry`` says what: "failed" are images of tasks that were given up, "quarantined" those that could
            not be read or decoded.
        source, plan, model: of the same call without ``retry``.
    Raises:
        ValueError: there are no predictions by this model with these settings.
    """
    started = time.perf_counter()
    assert config.retry is not None
    failed = find_failed(_predictions(source, plan, model), config.retry, plan.settings["splits"])
    wanted = parse_reference(failed.predictions.reference)
    job = _job(plan.root, failed, source, model)
    again = replace(plan, plan_id=job.plan_id, label_set=wanted.label_set)
    tasks = list(_tasks(failed, source, again.task_images))
    account: dict[str, Any] | None = None
    reference, mended = failed.predictions.reference, 0
    if tasks:
        if not job.has_plan():
            job.save_plan(tasks, TASK, {"retry": config.retry, "of": redact(reference)})
        pending = resume(job, len(tasks))
        part = replace(source, num_images=sum(task.num_rows for task in tasks))
        run = run_plan(pending, config, part, again, model, progress) if pending else None
        sums = add_up(job.each_receipt())
        check_files(job, sums.files, len(tasks))
        told = sums.account(again.plan_id, price_per_hour=config.price_per_hour, run=run)
        account = write_account(again.root, told)
        reference, mended = _replace_rows(again.root, wanted, sums.files, again.plan_id)
    made = open_predictions(reference)
    return PredictionSetRef(
        reference=made.reference,
        digest=made.labels.digest,
        num_images=made.num_images,
        num_objects=made.num_objects,
        num_quarantined=made.status()[STATUS_FAILED],
        coco_results_uri=None,
        seconds=time.perf_counter() - started,
        found=not mended,
        tasks=len(tasks),
        resumed=0,
        account_uri=None if account is None else account_uri(again.root, again.plan_id),
        account=account,
    )


def _predictions(source: LabelInput, plan: LabelPlan, model: ModelFacts) -> PredictionSet:
    """The newest version of what the model made of the input with the plan's settings."""
    names = list_label_sets(plan.root)
    if source.dataset is not None:
        names = [name for name in names if name == plan.label_set]
    for name in names:
        found = open_predictions(f"{plan.root}@labels/{name}")
        if _made_by(found.provenance, source, plan, model):
            return found
    raise ValueError(
        f"{redact(plan.root)} has no predictions of {source.reference} by this model with these settings, so there is "
        "nothing to try again; label it first, or give the settings that it was labelled with"
    )


def _made_by(provenance: Mapping[str, Any], source: LabelInput, plan: LabelPlan, model: ModelFacts) -> bool:
    """Of one set several calls may have labelled a split each; of a repaired archive tasks may be of another size."""
    ours = {"model": {"digest": model.digest}, "settings": plan.settings}
    return (
        "routed" not in provenance  # a part of the set, under a name of its own
        and not differences(provenance, ours)
        and (source.dataset is not None or provenance.get("input", {}).get("uri") == redact(source.uri))
    )


def find_failed(predictions: PredictionSet, what: Retried, splits: Collection[str] | None = None) -> FailedImages:
    """The rows that failed in labelling as a whole task ("failed"), or in reading or decoding ("quarantined").

    Args:
        splits: only images of these; None for all.
    """
    rows: dict[str, list[LabelRow]] = {}
    for shard in predictions.labels.shards:
        for row in read_labels(shard):
            asked = splits is None or row.split in splits
            if asked and row.status == STATUS_FAILED and _of_task(row) == (what == "failed"):
                rows.setdefault("" if predictions.is_archive else shard.image_path, []).append(row)
    return FailedImages(predictions=predictions, rows=rows)


def _of_task(row: LabelRow) -> bool:
    return (row.error or "").partition(":")[0] == LABEL


def _job(root: str, failed: FailedImages, source: LabelInput, model: ModelFacts) -> Job:
    """The retry that is under way, or mended something; a new one where all before it are done and mended nothing."""
    generation = 0
    while True:
        job = Job(root, _plan_id(failed, source, model, generation))
        if not job.has_plan() or job.missing() or add_up(job.each_receipt()).num_labelled:
            return job
        generation += 1


def _plan_id(failed: FailedImages, source: LabelInput, model: ModelFacts, generation: int) -> str:
    """The version is named by its digest: what was mended is another plan's business.

    Args:
        generation: how many retries of the same have mended nothing.
    """
    return make_plan_id(
        job="label-retry",
        base=failed.predictions.labels.digest,
        images=make_plan_id(images=failed.image_ids),
        input=source.digest,
        model=model.digest,
        **({"generation": generation} if generation else {}),
    )


def _tasks(failed: FailedImages, source: LabelInput, task_images: int) -> Iterator[pa.Table]:
    """Tables of ``TASK``; what an archive does not hold any more is left as it is."""
    images = _still_there(source, failed.image_ids)
    for path, rows in failed.rows.items():
        if source.dataset is not None:
            for first in range(0, len(rows), task_images):
                yield dataset_task(_planned(rows[first : first + task_images]), path)
            continue
        there = [(images[row.image_id], row) for row in rows if row.image_id in images]
        for first in range(0, len(there), task_images):
            yield _listed(there[first : first + task_images])


def _still_there(source: LabelInput, image_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As they are listed now, by name; nothing of a dataset."""
    if source.listing is None:
        return {}
    found = source.listing.filter(pc.is_in(source.listing["name"], value_set=pa.array(image_ids, pa.string())))
    return {image["name"]: image for image in found.to_pylist()}


def _planned(rows: Sequence[LabelRow]) -> pa.Table:
    names = ("image_id", "row", "row_group", "split", "coco_image_id", "width", "height")
    rows = sorted(rows, key=lambda row: row.row)
    return pa.table([pa.array([getattr(r, n) for r in rows], TASK.field(n).type) for n in names], names=list(names))


def _listed(images: Sequence[tuple[dict[str, Any], LabelRow]]) -> pa.Table:
    """As they are listed now, with the numbers that they have."""
    table = listed_task(pa.Table.from_pylist([image for image, _ in images], schema=LISTING), 0)
    for name in ("row", "coco_image_id"):
        field = TASK.field(name)
        values = pa.array([getattr(row, name) for _, row in images], field.type)
        table = table.set_column(TASK.get_field_index(name), field, values)
    return table


def _replace_rows(root: str, wanted: Reference, files: Sequence[ShardFile], plan_id: str) -> tuple[str, int]:
    """One commit with the new rows in place of the failed ones; its reference, and how many images are mended."""
    store = Store.open(root)
    fresh = pa.concat_tables([read_label_file(store.uri, file.path) for file in files])
    mended = fresh.filter(pc.not_equal(fresh["status"], STATUS_FAILED))
    newest = replace(wanted, version=None)

    def change(before: delta.Snapshot) -> delta.Change:
        add, remove = [], []
        for file in before.files:
            table = read_label_file(store.uri, f"labels/{wanted.label_set}/{file.path}")
            merged = _merged(table, mended)
            if merged is not None:
                remove.append(file)
                add.append(rewrite_label_file(store, wanted.label_set, file.path, merged))
        if not add:
            raise _Nothing
        gone = {file.path for file in remove}
        after = [file for file in before.files if file.path not in gone] + add
        done = {"operation": RETRY, "plan_id": plan_id, "mended": mended.num_rows, "from_version": before.version}
        metadata = revised_metadata(store, wanted.label_set, before.metadata, after, done)
        return delta.Change(add=tuple(add), remove=tuple(remove), metadata=metadata)

    try:
        version = commit_revision(store, newest, change)
    except _Nothing:
        table = store.sub("labels", wanted.label_set)
        version = describe_version(store.uri, wanted.label_set, delta.newest_version(table), found=True)
    forget_quarantined(root, _ids(mended))
    return version.reference, mended.num_rows


def _merged(table: pa.Table, mended: pa.Table) -> pa.Table | None:
    """A label file's rows with those that are mended in place of failed ones; None where there are none."""
    ids = pa.array(_ids(mended), pa.string())  # typed: of nothing it would be of no type
    failed = pc.and_(pc.equal(table["status"], STATUS_FAILED), pc.is_in(table["image_id"], value_set=ids))
    if not pc.any(failed).as_py():
        return None
    mine = mended.filter(pc.is_in(mended["image_id"], value_set=table.filter(failed)["image_id"].combine_chunks()))
    kept = table.filter(pc.invert(failed))
    return pa.concat_tables([kept, mine.select(table.column_names).cast(table.schema)]).sort_by("row")


def _ids(table: pa.Table) -> Collection[str]:
    return list(table["image_id"].to_pylist())
