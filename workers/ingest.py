"""Ingest: plan on the driver, import tasks on Ray, commit once.

Running it again resumes: finished tasks have receipts, and a finished plan is found in the table's log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from pipelines.commits import DatasetVersion, check_appends, find_version
from pipelines.credentials import check_options, check_uri
from pipelines.duplicates import Dedupe
from pipelines.importing import commit_job, run_task
from pipelines.inputs import check_unchanged, list_inputs
from pipelines.jobs import Job
from pipelines.near_duplicates import count_near_duplicates, find_near_duplicates
from pipelines.planning import plan_id_of, save_ingest_plan
from pipelines.records import LabelMap
from pipelines.references import check_label_set_name
from pipelines.resuming import resume
from pipelines.sources import Source
from pipelines.storage import Store, absolute
from workers.exits import exit_within
from workers.memory import keep_freed_memory
from workers.task_window import as_done

Progress = Callable[..., None]
# Starting Ray costs seconds: a few tasks are done sooner in this process.
_TASKS_WITHOUT_RAY = 2
_RETRIES = 3


def ingest(
    source: Source,
    dataset_uri: str,
    *,
    label_set: str = "gt",
    strict: bool = False,
    hash_inputs: bool = False,
    deep_check: bool = False,
    dedupe: Dedupe = "report",
    near_duplicates: bool = False,
    ray_address: str | None = None,
    num_cpus: int | None = None,
    progress: Progress | None = None,
) -> DatasetVersion:
    """Import a source into a dataset and commit it as one version.

    The same source into the same dataset gives the version that is already there. Another source appends its images
    to the label set: its categories must be the same and its image ids new.

    Args:
        source: see ``pipelines.sources.open_source``.
        dataset_uri: any fsspec URI; created where there is none.
        label_set: name of the truth.
        strict: refuse instead of mending, dropping or quarantining.
        hash_inputs: recognise changed inputs by sha256 instead of size and etag or modification time.
        deep_check: decode every image to its last pixel, and quarantine what is damaged.
        dedupe: of images with the same bytes, in the source or in the label set: ``report`` counts them, ``drop``
            leaves the later ones out (never the only labelled one) with an entry in the ledger, ``keep`` does not look.
        near_duplicates: count the version's images that look like an earlier one (decodes all of them once); they stay.
            ``pipelines.near_duplicates.find_near_duplicates`` lists them.
        ray_address: of a cluster; None uses RAY_ADDRESS, or else a cluster of this machine's own.
        num_cpus: of a cluster of this machine's own.
        progress: called as ``progress(stage, done, total)`` with stages ``plan``, ``import``, ``commit`` and,
            with ``near_duplicates``, ``compare``.
    Returns:
        The version, with the ledger sums of this plan.
    Raises:
        EmptyDataset, StrictIngestError, CategoryMismatch, DuplicateImages, LedgerMismatch, SourceChanged,
            FilesLost: all ValueErrors.
    """
    report: Progress = progress or (lambda *_, **__: None)
    dataset_uri = absolute(dataset_uri)
    check_uri(dataset_uri, "dataset")
    Store.open(dataset_uri)
    check_label_set_name(label_set)

    report("plan", 0, 1)
    if dedupe not in get_args(Dedupe):
        raise ValueError(f"dedupe={dedupe!r}: choose one of {', '.join(get_args(Dedupe))}")
    # Only what is not as usual: a plan's id stays what it was.
    settings: dict[str, Any] = {"deep_check": True} if deep_check else {}
    settings |= {"dedupe": dedupe} if dedupe == "drop" else {}
    check_options(source.kind, source.options)
    inputs = list_inputs(source, hash_inputs=hash_inputs)
    plan_id = plan_id_of(source, label_set, inputs=inputs, settings=settings)
    found = find_version(dataset_uri, label_set, plan_id)
    if found is not None and not (strict and _has_losses(found)):
        return _with_looks(found, report) if near_duplicates else found
    job = Job(dataset_uri, plan_id)
    plan = job.plan() if job.has_plan() else save_ingest_plan(job, source, label_set, settings)
    label_map = LabelMap.from_json(plan.metadata["categories"])
    if found is None:
        check_appends(dataset_uri, label_set, label_map=label_map, image_ids=set(job.read_column("image_id")))
    report("plan", 1, 1)

    pending = resume(job, plan.num_tasks)
    done = plan.num_tasks - len(pending)
    report("import", done, plan.num_tasks)
    if len(pending) <= _TASKS_WITHOUT_RAY and not _ray_is_running():
        for task_id in pending:
            run_task(job, task_id, source)
            done += 1
            report("import", done, plan.num_tasks)
    else:
        _run_on_ray(job, pending, plan.num_tasks, report, ray_address, num_cpus)

    report("commit", 0, 1)
    if found is None:
        check_unchanged(source, inputs, without=dataset_uri)
    version = commit_job(job, plan, strict=strict, dedupe=dedupe)
    report("commit", 1, 1)
    return _with_looks(version, report) if near_duplicates else version


def _with_looks(version: DatasetVersion, report: Progress) -> DatasetVersion:
    found = find_near_duplicates(version.reference, progress=partial(report, "compare"))
    return replace(version, near_duplicates=count_near_duplicates(found))


def _has_losses(version: DatasetVersion) -> bool:
    return bool(version.ledger.get("reasons"))


def _ray_is_running() -> bool:
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _run_on_ray(
    job: Job, pending: list[int], total: int, report: Progress, address: str | None, num_cpus: int | None
) -> None:
    import ray

    from workers.cluster import ray_session

    with ray_session(address=address, num_cpus=num_cpus, lean_workers=True):
        task = ray.remote(max_retries=_RETRIES, retry_exceptions=[OSError])(_remote_task)
        at_once = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        finished = as_done(lambda task_id: task.remote(job, task_id), pending, at_once=at_once)
        for done, _ in enumerate(finished, start=total - len(pending) + 1):
            report("import", done, total)


def _remote_task(job: Job, task_id: int) -> int:
    keep_freed_memory()
    exit_within()
    run_task(job, task_id)
    return task_id
