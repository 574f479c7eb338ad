"""Labelling as one call: plan, run what has no receipt yet on Ray, commit once.

A run that was killed at any point goes on where it was when it is started again: the plan is a function of input,
model and settings, a receipt says what is done, and the commit carries the plan's id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from pipelines.commits import DatasetVersion
from pipelines.jobs import Job
from pipelines.ledger import Ledger
from pipelines.ledger_listing import write_commit_ledger
from pipelines.predictions import commit_predictions, open_predictions, to_coco_results
from pipelines.quarantine import LISTED, QuarantineRow, write_quarantine
from pipelines.resuming import check_files, resume
from pipelines.sources.archive import member_uri
from pipelines.storage import Store, redact
from workers.label_account import ReceiptSums, account_uri, add_up, read_account, write_account
from workers.label_config import LabelConfig, PredictionSetRef
from workers.label_duplicates import phases, save_tasks_once
from workers.label_listing import LabelInput, open_input, refusals
from workers.label_plan import LabelPlan, ModelFacts, describe, find_or_check, is_dataset_root, make_plan
from workers.label_retry import retry
from workers.label_run import Unfinished, run_plans, session
from workers.label_tasks import save_tasks
from workers.progress import Progress
from workers.software import software_versions

__all__ = ["LabelConfig", "PredictionSetRef", "label", "label_each"]

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
    return label_each(config, (config.model,), progress)[0]


def label_each(
    config: LabelConfig, models: Sequence[str], progress: Progress | None = None
) -> tuple[PredictionSetRef, ...]:
    """As ``label``, with several models over one read of the images.

    Each model has a plan, receipts, an account and a prediction set of its own, with the predictions that it would have
    made alone; what several of them lack is read and decoded once. Reading and decoding are in the first one's account.

    Args:
        config: for all of them; its ``model`` is not looked at. With several models the label sets of a dataset are
            named ``out``, a hyphen and eight digits of the model's digest.
        models: URIs of model directories.
        progress: see ``label``; an image is done when all of them have looked at it.
    Returns:
        One prediction set a model, in their order.
    Raises:
        ValueError, FileNotFoundError: as ``label``; or two models are the same.
    """
    started = time.perf_counter()
    described = [describe(uri) for uri in models]
    _check_models(config, described)
    source = open_input(config)
    runs = [_Run.of(_of_model(config, model, source, several=len(models) > 1), source, model) for model in described]
    if config.retry is not None:
        return tuple(retry(run.config, source, run.plan, run.model, progress) for run in runs)
    for run in runs:
        run.made = find_or_check(source, run.plan, run.model)
    left = [run for run in runs if run.made is None]
    if left:
        _label_missing(left, source, progress, started=started)
    elif progress is not None:
        progress("label", source.num_images, source.num_images)
    return tuple(run.reference(seconds=time.perf_counter() - started) for run in runs)


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """One model's part in a call.

    Attributes:
        config: with this model.
        made: its version, once there is one.
        tasks, resumed: of the plan, and of these done before; as ``PredictionSetRef`` tells them.
    """

    config: LabelConfig
    plan: LabelPlan
    model: ModelFacts
    job: Job
    made: DatasetVersion | None = None
    tasks: int = 0
    resumed: int = 0

    @classmethod
    def of(cls, config: LabelConfig, source: LabelInput, model: ModelFacts) -> _Run:
        plan = make_plan(config, source, model)
        if source.kind != "dataset" and is_dataset_root(plan.root):
            raise ValueError(f"out={redact(plan.root)} is a dataset; give these predictions a place of their own")
        return cls(config=config, plan=plan, model=model, job=Job(plan.root, plan.plan_id))

    def reference(self, *, seconds: float) -> PredictionSetRef:
        made, plan = self.made, self.plan
        assert made is not None, "every run ends in a version"
        if not self.tasks and self.job.has_plan():
            # The version says all that is needed: nobody has to keep the plan of a finished run.
            self.tasks = self.resumed = self.job.plan().num_tasks
        account = read_account(plan.root, plan.plan_id)
        return PredictionSetRef(
            reference=made.reference,
            digest=made.digest,
            num_images=made.num_images,
            num_objects=made.num_objects,
            num_quarantined=int(made.ledger["images"]["quarantined"]),
            coco_results_uri=_results(self.config, made),
            seconds=seconds,
            found=made.found,
            tasks=self.tasks,
            resumed=self.resumed,
            account_uri=account_uri(plan.root, plan.plan_id) if account is not None else None,
            account=account,
        )


def _check_models(config: LabelConfig, models: Sequence[ModelFacts]) -> None:
    by_digest: dict[str, str] = {}
    for model in models:
        if model.digest in by_digest:
            raise ValueError(
                f"{redact(by_digest[model.digest])} and {redact(model.uri)} are the same model, digest "
                f"{model.digest[:12]}; give each model once"
            )
        by_digest[model.digest] = model.uri
    if not models:
        raise ValueError("no model was given; give at least one")
    if len(models) > 1 and config.coco_results is not None:
        raise ValueError("coco_results with several models: write each one's with `boxmill export coco` afterwards")


def _of_model(config: LabelConfig, model: ModelFacts, source: LabelInput, *, several: bool) -> LabelConfig:
    out = config.out
    if several and source.dataset is not None and out is not None:
        out = f"{out}-{model.digest[:8]}"
    return replace(config, model=model.uri, out=out)


def _label_missing(runs: Sequence[_Run], source: LabelInput, progress: Progress | None, *, started: float) -> None:
    """Label what the runs lack, all models together, and commit each plan."""
    config, before, unfinished = runs[0].config, 0.0, []
    # One Ray for all that comes in several parts.
    with session(config) if config.near_duplicates else nullcontext():
        for run in runs:
            planned, facts = (source, run.plan, run.model), plan_facts(source, run.plan, run.model)
            if not run.job.has_plan() and config.near_duplicates:
                before += save_tasks_once(run.job, run.config, planned, facts, progress)
            elif not run.job.has_plan():
                save_tasks(run.job, source, run.plan, facts)
            run.tasks = run.job.plan().num_tasks
            pending = resume(run.job, run.tasks)
            run.resumed = run.tasks - len(pending)
            if pending:
                parts = phases(run.job, pending)
                unfinished.append(Unfinished(plan=run.plan, model=run.model, config=run.config, phases=parts))
        done = run_plans(unfinished, source, progress, before=before) if unfinished else None
    for run in runs:
        sums = add_up(run.job.each_receipt())
        check_files(run.job, sums.files, run.tasks)
        price = config.price_per_hour
        # Before the commit: who finds the version finds what it took as well.
        write_account(run.plan.root, sums.account(run.plan.plan_id, price_per_hour=price, run=done))
        run.made = _commit(source, run.plan, run.model, sums, seconds=time.perf_counter() - started)


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
        decided = Ledger()
        decided.extend(refusals(source))
        write_commit_ledger(Job(plan.root, plan.plan_id), decided)  # no task lists them
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
