"""Labelling as one call: plan, run what has no receipt yet on Ray, commit once.

A run that was killed at any point goes on where it was when it is started again: the plan is a function of input,
model and settings, a receipt says what is done, and the commit carries the plan's id.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from pipelines.commits import DatasetVersion
from pipelines.jobs import Job
from pipelines.ledger import Ledger
from pipelines.predictions import commit_predictions, open_predictions, to_coco_results
from pipelines.quarantine import LISTED, QuarantineRow, write_quarantine
from pipelines.sources.archive import member_uri
from pipelines.storage import Store, redact
from workers.label_account import ReceiptSums, account_uri, add_up, read_account, write_account
from workers.label_config import LabelConfig, PredictionSetRef
from workers.label_duplicates import phases, save_tasks_once
from workers.label_listing import LabelInput, open_input, refusals
from workers.label_plan import LabelPlan, ModelFacts, describe, find_or_check, is_dataset_root, make_plan
from workers.label_retry import retry
from workers.label_run import run_plan, session
from workers.label_tasks import save_tasks
from workers.progress import Progress
from workers.software import software_versions

__all__ = ["LabelConfig", "PredictionSetRef", "label"]

_PACKAGES = ("boxmill", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow")


def label(config: LabelConfig, progress: Progress | None = None) -> PredictionSetRef:
    """Runs a model over a dataset's or an archive's images, each exactly once.

    The same call again resumes an interrupted run, and finds the version of a finished one. Images that cannot be
    read or decoded get a row with status ``failed`` and an entry in ``_quarantine``; they never stop the run.

    Args:
        config: what to label with what.
        progress: called as ``progress("label", images_done, images, **numbers)`` with ``images_per_second``,
            ``model_busy`` (a share), ``retries``, ``quarantined``.
    Returns:
        The committed prediction set; its ``found`` says that it was there already.
    Raises:
        ValueError: for a bad setting, input, model or category, before Ray starts.
        FileNotFoundError: there is no such model or archive.
    """
    started = time.perf_counter()
    model = describe(config.model)
    source = open_input(config)
    plan = make_plan(config, source, model)
    if source.kind != "dataset" and is_dataset_root(plan.root):
        raise ValueError(f"out={redact(plan.root)} is a dataset; give these predictions a place of their own")
    if config.retry is not None:
        return retry(config, source, plan, model, progress)
    made = find_or_check(source, plan)
    job = Job(plan.root, plan.plan_id)
    tasks = resumed = 0
    if made is None:
        # One Ray for all that comes in several parts.
        with session(config) if config.near_duplicates else nullcontext():
            facts, before = plan_facts(source, plan, model), 0.0
            if not job.has_plan() and config.near_duplicates:
                before = save_tasks_once(job, config, (source, plan, model), facts, progress)
            elif not job.has_plan():
                save_tasks(job, source, plan, facts)
            tasks = job.plan().num_tasks
            pending = job.missing(tasks)
            resumed = tasks - len(pending)
            run = None
            if pending:
                parts = phases(job, pending)
                run = run_plan(pending, config, source, plan, model, progress, phases=parts, before=before)
        sums = add_up(job.each_receipt())
        # Before the commit: who finds the version finds what it took as well.
        write_account(plan.root, sums.account(plan.plan_id, price_per_hour=config.price_per_hour, run=run))
        made = _commit(source, plan, model, sums, seconds=time.perf_counter() - started)
    else:
        # The version says all that is needed: nobody has to keep the plan of a finished run.
        tasks = resumed = job.plan().num_tasks if job.has_plan() else 0
        if progress is not None:
            progress("label", source.num_images, source.num_images)
    account = read_account(plan.root, plan.plan_id)
    return PredictionSetRef(
        reference=made.reference,
        digest=made.digest,
        num_images=made.num_images,
        num_objects=made.num_objects,
        num_quarantined=int(made.ledger["images"]["quarantined"]),
        coco_results_uri=_results(config, made),
        seconds=time.perf_counter() - started,
        found=made.found,
        tasks=tasks,
        resumed=resumed,
        account_uri=account_uri(plan.root, plan.plan_id) if account is not None else None,
        account=account,
    )


def plan_facts(source: LabelInput, plan: LabelPlan, model: ModelFacts) -> dict[str, Any]:
    """What a plan is about, for whoever looks into ``_jobs``; also the core of the commit's provenance."""
    return {
        "model": {"uri": redact(model.uri), "digest": model.digest, "spec": dict(model.spec)},
        "settings": dict(plan.settings),
        "preprocessing": {**model.preprocessing, "size": plan.settings["image_size"]},
        "input": {
            "kind": source.kind,
            "uri": redact(source.uri),
            "reference": source.reference,
            "digest": source.digest,
            "images": source.num_images,
            "refused": len(source.refused),
        },
        "label_set": plan.label_set,
    }


def _commit(
    source: LabelInput, plan: LabelPlan, model: ModelFacts, sums: ReceiptSums, *, seconds: float
) -> DatasetVersion:
    ledger = _ledger(source, sums)
    if source.refused:
        _write_refusals(source, plan)
    return commit_predictions(
        plan.root,
        plan.label_set,
        sums.files,
        plan_id=plan.plan_id,
        label_map=plan.label_map,
        images_version=None if source.dataset is None else int(source.dataset.metadata["images_version"]),
        ledger=ledger,
        provenance={
            **plan_facts(source, plan, model),
            "versions": software_versions(*_PACKAGES),
            "seconds": round(seconds, 3),
        },
    )


def _ledger(source: LabelInput, sums: ReceiptSums) -> Ledger:
    """The sums of a finished plan.

    Raises:
        LedgerMismatch: an image is missing or there twice; nothing is committed then.
    """
    ledger = Ledger()
    ledger.extend(refusals(source))
    ledger.merge(sums.ledger)
    assert sum(f.rows for f in sums.files) == source.num_images, "the plan's tasks cover every image once"
    ledger.check(
        images=source.num_images + len(source.refused), annotations=sum(file.num_objects for file in sums.files)
    )
    return ledger


def _write_refusals(source: LabelInput, plan: LabelPlan) -> None:
    rows = [
        QuarantineRow(
            image_id=refused.name,
            source=member_uri(source.uri, refused.name),
            stage="list",
            error_class="Refused",
            error=refused.reason,
        )
        for refused in source.refused
    ]
    write_quarantine(Store.open(plan.root), plan.plan_id, LISTED, rows)


def _results(config: LabelConfig, made: DatasetVersion) -> str | None:
    if config.coco_results is None:
        return None
    return to_coco_results(open_predictions(made.reference), config.coco_results, config.splits)["bbox"]
