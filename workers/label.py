"""Labelling as one call: plan, run what has no receipt yet on Ray, commit once.

A run that was killed at any point goes on where it was when it is started again: the plan is a function of input,
model and settings, a receipt says what is done, and the commit carries the plan's id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from detectors.checkpoint import read_description
from pipelines.commits import DatasetVersion
from pipelines.jobs import Job, Receipt
from pipelines.ledger import Ledger
from pipelines.predictions import commit_predictions, open_predictions, to_coco_results
from pipelines.quarantine import LISTED, QuarantineRow, write_quarantine
from pipelines.sources.archive import member_uri
from pipelines.storage import Store, absolute, redact
from workers.cluster import ray_session
from workers.label_actor import LabelJob, LabelShard
from workers.label_config import LabelConfig, PredictionSetRef
from workers.label_plan import (
    TASK,
    LabelInput,
    LabelPlan,
    ModelFacts,
    find_or_check,
    is_dataset_root,
    make_plan,
    open_input,
    plan_tasks,
    refusals,
)
from workers.models import fetch_model
from workers.progress import Progress
from workers.software import software_versions

__all__ = ["LabelConfig", "PredictionSetRef", "label"]

_MAX_BLOCKS = 1000
_HEADROOM = 0.5
_PACKAGES = ("boxmill", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow")


def label(config: LabelConfig, progress: Progress | None = None) -> PredictionSetRef:
    """Runs a model over a dataset's or an archive's images, each exactly once.

    The same call again resumes an interrupted run, and finds the version of a finished one. Images that cannot be
    read or decoded get a row with status ``failed`` and an entry in ``_quarantine``; they never stop the run.

    Args:
        config: what to label with what.
        progress: called as ``progress("label", images_done, images, images_per_second=..., quarantined=...)``.
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
    if source.kind == "archive" and is_dataset_root(plan.root):
        raise ValueError(f"out={redact(plan.root)} is a dataset; give the archive's predictions a place of their own")
    made = find_or_check(source, plan)
    job = Job(plan.root, plan.plan_id)
    tasks = resumed = 0
    if made is None:
        if not job.has_plan():
            job.save_plan(plan_tasks(source, plan), TASK, plan_facts(source, plan, model))
        tasks = job.plan().num_tasks
        pending = job.missing(tasks)
        resumed = tasks - len(pending)
        if pending:
            _run(pending, config, source, plan, model, progress)
        made = _commit(source, plan, model, job, seconds=time.perf_counter() - started)
    else:
        # The version says all that is needed: nobody has to keep the plan of a finished run.
        tasks = job.plan().num_tasks if job.has_plan() else 0
        if progress is not None:
            progress("label", source.num_images, source.num_images)
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
        resumed=tasks if made.found else resumed,
    )


def describe(uri: str) -> ModelFacts:
    """What the plan needs of a model; its weights are checked when a worker loads them.

    Raises:
        FileNotFoundError, ValueError: there is no model, or a broken one.
    """
    description = read_description(fetch_model(uri))
    return ModelFacts(
        uri=absolute(uri),
        digest=description["digest"],
        categories=tuple(description["categories"]),
        spec=description["spec"],
        preprocessing=description["preprocessing"],
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


def _run(
    pending: Sequence[int],
    config: LabelConfig,
    source: LabelInput,
    plan: LabelPlan,
    model: ModelFacts,
    progress: Progress | None,
) -> None:
    # One logical CPU more than the workers take: a pool that fills a cluster can hang when a node is lost.
    cpus = max(os.cpu_count() or 1, config.workers * config.cpus_per_worker) + 1
    with ray_session(config.ray_address, num_cpus=cpus):
        gpus = gpus_per_worker(config)
        job = LabelJob(
            root=plan.root,
            label_set=plan.label_set,
            plan_id=plan.plan_id,
            input_kind=source.kind,
            input_uri=source.uri,
            model_uri=model.uri,
            model_digest=model.digest,
            categories=tuple(plan.model_map.to_json()),
            score_threshold=plan.settings["score_threshold"],
            max_detections=plan.settings["max_detections"],
            image_size=plan.settings["image_size"],
            batch_size=plan.settings["batch_size"],
            precision=plan.settings["precision"],
            threads=config.cpus_per_worker,
            device="cuda" if gpus else "cpu",
        )
        started = time.perf_counter()
        rows = Job(plan.root, plan.plan_id).task_rows()
        resumed = source.num_images - sum(rows[task] for task in pending)
        done, quarantined = resumed, 0
        for finished in _stream(pending, job, config, gpus):
            done += finished["images"]
            quarantined += finished["failed"]
            if progress is not None:
                seconds = time.perf_counter() - started
                progress(
                    "label",
                    done,
                    source.num_images,
                    images_per_second=(done - resumed) / seconds,
                    quarantined=quarantined,
                )


def _stream(pending: Sequence[int], job: LabelJob, config: LabelConfig, gpus: float) -> Iterator[dict[str, Any]]:
    """Tasks through a pool of actors; the engine replaces lost actors and gives their tasks to others."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    tasks = ray.data.from_items([{"task": t} for t in pending], override_num_blocks=min(len(pending), _MAX_BLOCKS))
    done = tasks.map(
        LabelShard,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=min(config.workers, len(pending))),
        num_cpus=cpus_asked(config.workers, config.cpus_per_worker, ray.cluster_resources().get("CPU", 1.0)),
        num_gpus=gpus or None,
    )
    yield from done.iter_rows()


def cpus_asked(workers: int, cpus_per_worker: int, total: float) -> float:
    """Logical CPUs that a worker asks of the cluster: as many as it uses, less where nothing would be left over."""
    return max(0.1, min(float(cpus_per_worker), int(100 * (total - _HEADROOM) / workers) / 100))


def gpus_per_worker(config: LabelConfig) -> float:
    """GPUs, or the part of one, that a worker gets; 0 means the CPU.

    Raises:
        ValueError: they were asked for and the cluster has none.
    """
    import ray

    total = ray.cluster_resources().get("GPU", 0.0)
    if config.use_gpu is True and not total:
        raise ValueError("use_gpu is set, but the cluster has no GPU")
    if not config.use_gpu or not total:
        return 0.0
    return 1.0 if total >= config.workers else int(100 * total / config.workers) / 100


def _commit(source: LabelInput, plan: LabelPlan, model: ModelFacts, job: Job, *, seconds: float) -> DatasetVersion:
    receipts = job.receipts()
    ledger = _ledger(source, receipts)
    if source.refused:
        _write_refusals(source, plan)
    return commit_predictions(
        plan.root,
        plan.label_set,
        [file for receipt in receipts for file in receipt.files],
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


def _ledger(source: LabelInput, receipts: Sequence[Receipt]) -> Ledger:
    """The sums of a finished plan.

    Raises:
        LedgerMismatch: an image is missing or there twice; nothing is committed then.
    """
    ledger = Ledger()
    ledger.extend(refusals(source))
    for receipt in receipts:
        ledger.merge(Ledger.from_json(receipt.ledger))
    files = [file for receipt in receipts for file in receipt.files]
    assert sum(f.rows for f in files) == source.num_images, "the plan's tasks cover every image once"
    ledger.check(images=source.num_images + len(source.refused), annotations=sum(file.num_objects for file in files))
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
