"""The tasks of a plan on Ray: a pool of actors, rounds for what failed, and the end of trying."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pipelines.jobs import Job
from workers.cluster import ray_session
from workers.label_account import RunAccount, RunClock
from workers.label_attempts import AttemptBoard, FailedTask, check_failures, give_up
from workers.label_config import LabelConfig
from workers.label_job import TASKS_AT_ONCE, LabelJob
from workers.label_listing import LabelInput
from workers.label_plan import LabelPlan, ModelFacts
from workers.label_receipts import ReceiptBundle
from workers.label_tasks import planned_images
from workers.progress import Progress

Finished = dict[str, Any]
"""What a worker says of a task: ``task``, ``attempts``, ``error`` ("" where it is done), numbers; ``receipt``, JSON."""

_MAX_BLOCKS = 1000
_HEADROOM = 0.5
_PAUSE_SECONDS = 2.0
_MAX_PAUSE_SECONDS = 60.0


def run_plan(
    pending: Sequence[int],
    config: LabelConfig,
    source: LabelInput,
    plan: LabelPlan,
    model: ModelFacts,
    progress: Progress | None,
    *,
    phases: Sequence[tuple[Sequence[int], Work]] | None = None,
    before: float = 0.0,
) -> RunAccount:
    """Label what a plan lacks, and add up what it takes; see ``run_tasks``.

    Args:
        pending: tasks without a receipt.
        source: its ``num_images`` are the plan's.
        progress: see ``workers.label.label``.
        phases: the same tasks in parts, one after the other, with who does them; None: all at once, by labelling.
        before: seconds that this call has worked already.
    """
    rows = planned_images(Job(plan.root, plan.plan_id))
    resumed = source.num_images - sum(rows[task] for task in pending)
    clock: RunClock | None = None

    def make_job(device: str) -> LabelJob:
        nonlocal clock
        clock = clock or RunClock(min(config.workers, len(pending)), before=before)
        return make_label_job(config, source, plan, model, device=device)

    def told(finished: Finished) -> None:
        assert clock is not None, "workers tell something after they were told what to do"
        clock.add(finished)
        if progress is not None:
            now = clock.account(config.price_per_hour)
            progress(
                "label",
                resumed + clock.images,
                source.num_images,
                images_per_second=now.images_per_second,
                model_busy=now.model_busy,
                retries=clock.retries,
                quarantined=clock.failed,
            )

    for tasks, work in phases or [(pending, LABELLING)]:
        run_tasks(tasks, make_job, config, told, work)
    assert clock is not None, "run_tasks made the job"
    return clock.account(config.price_per_hour)


def make_label_job(
    config: LabelConfig, source: LabelInput, plan: LabelPlan, model: ModelFacts, *, device: str
) -> LabelJob:
    """What the workers of a plan are told."""
    settings = plan.settings
    of_class = settings.get("class_thresholds", {})
    views = tiling = None
    if "scales" in settings:
        from detectors.test_time import Views

        views = Views(
            scales=tuple(settings["scales"]),
            horizontal_flip=settings["flips"],
            max_detections=settings["max_detections"],
        )
    if "tile" in settings:
        from detectors.tiling import Tiling

        tiling = Tiling(size=settings["tile"], overlap=settings["tile_overlap"])
    return LabelJob(
        root=plan.root,
        label_set=plan.label_set,
        plan_id=plan.plan_id,
        input_kind=source.kind,
        input_uri=source.uri,
        splits=None if settings["splits"] is None else tuple(settings["splits"]),
        model_uri=model.uri,
        model_digest=model.digest,
        categories=tuple(plan.model_map.to_json()),
        thresholds=tuple(of_class.get(name, settings["score_threshold"]) for name in plan.model_map.names),
        tiling=tiling,
        views=views,
        max_detections=settings["max_detections"],
        image_size=settings["image_size"],
        batch_size=settings["batch_size"],
        precision=settings["precision"],
        threads=config.cpus_per_worker,
        device=device,
        max_attempts=config.max_attempts,
    )


class LabelShard:
    """``label_actor.LabelShard`` as the driver names it: torch is imported where it works, and not in the driver."""

    def __init__(self, job: LabelJob, board: Any) -> None:
        from workers import label_actor

        self._label = label_actor.LabelShard(job, board)

    def __call__(self, row: Mapping[str, Any]) -> Finished:
        return self._label(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done with tasks.

    Attributes:
        actor: made with the job and the board, called with ``{"task": number}``; says ``Finished``.
        give_up: puts down the receipt of a task that failed each time.
        model: whether it needs one, and its GPUs.
    """

    actor: type
    give_up: Callable[[LabelJob, Job, FailedTask], None]
    model: bool


LABELLING = Work(actor=LabelShard, give_up=give_up, model=True)


def session(config: LabelConfig) -> AbstractContextManager[str]:
    """Ray, for as long as the config's workers need it."""
    # One logical CPU more than the workers take: a pool that fills a cluster can hang when a node is lost.
    cpus = max(os.cpu_count() or 1, config.workers * config.cpus_per_worker) + 1
    return ray_session(config.ray_address, num_cpus=cpus)


def run_tasks(
    pending: Sequence[int],
    make_job: Callable[[str], LabelJob],
    config: LabelConfig,
    told: Callable[[Finished], None],
    work: Work = LABELLING,
) -> None:
    """Label tasks until each has a receipt.

    What fails is tried again when everything else was tried, up to ``max_attempts`` times, and then given up.

    Args:
        pending: tasks without a receipt.
        make_job: from the device (``cpu`` or ``cuda``) to what the workers are told.
        config: pool, attempts and cluster.
        told: called with each attempt that ended, in this thread.
        work: what is done with them.
    Raises:
        LabellingFailed: too many tasks had to be given up.
        ValueError: GPUs were asked for and there are none.
    """
    with session(config):
        gpus = gpus_per_worker(config) * work.model
        label_job = make_job("cuda" if gpus else "cpu")
        job = Job(label_job.root, label_job.plan_id)
        num_tasks = job.plan().num_tasks
        dead: list[FailedTask] = []
        board = _start_board()
        left, bundle = list(pending), ReceiptBundle(job)
        for attempt in range(1, config.max_attempts + 1):
            again = []
            for finished in _stream(work.actor, left, label_job, config, gpus, board):
                told(finished)
                if not finished["error"]:
                    bundle.add(finished.get("receipt", ""))
                    continue
                failed = FailedTask(**{name: finished[name] for name in FailedTask.__slots__})
                if failed.attempts < config.max_attempts and attempt < config.max_attempts:
                    again.append(failed.task)
                    continue
                dead.append(failed)
                check_failures(dead, num_tasks=num_tasks, num_done=None, share=config.max_dead_share)
            if not again:
                break
            left = sorted(again)
            time.sleep(min(_MAX_PAUSE_SECONDS, _PAUSE_SECONDS * 2 ** (attempt - 1)))
        if dead:
            check_failures(dead, num_tasks=num_tasks, num_done=len(job.done()), share=config.max_dead_share)
        for failed in dead:
            work.give_up(label_job, job, failed)


def _start_board() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver, whose end is the run's end in any case; a busy cluster must not keep it waiting for a CPU.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(AttemptBoard).options(**options).remote()


def _stream(
    actor: type, pending: Sequence[int], job: LabelJob, config: LabelConfig, gpus: float, board: Any
) -> Iterator[Finished]:
    """Tasks through a pool of actors; the engine replaces lost actors and gives their tasks to others."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    tasks = ray.data.from_items([{"task": t} for t in pending], override_num_blocks=min(len(pending), _MAX_BLOCKS))
    most, least = (min(size, len(pending)) for size in (config.workers, config.min_workers or config.workers))
    done = tasks.map(
        actor,
        fn_constructor_args=(job, board),
        compute=ray.data.ActorPoolStrategy(
            min_size=least,
            max_size=most,
            # A pool grows while more waits at its actors than they can do at once; otherwise nobody queues up behind
            # one actor while another is idle.
            max_tasks_in_flight_per_actor=TASKS_AT_ONCE if least == most else 2 * TASKS_AT_ONCE,
            max_concurrent_calls_per_actor=TASKS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
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
        ValueError: they were asked for and the cluster has none, or not one as large as asked for.
    """
    import ray

    return gpus_asked(config, ray.cluster_resources().get("GPU", 0.0))


def gpus_asked(config: LabelConfig, total: float) -> float:
    """As ``gpus_per_worker``, of a cluster with ``total`` GPUs."""
    wanted = config.gpus_per_worker
    if config.use_gpu is True and not total:
        raise ValueError("use_gpu is set, but the cluster has no GPU")
    if not config.use_gpu or not total:
        return 0.0
    if wanted is not None and wanted > total:
        raise ValueError(f"gpus_per_worker={wanted} is more than the {total:g} GPU(s) of the cluster")
    if wanted is not None:
        return wanted
    return 1.0 if total >= config.workers else max(0.01, int(100 * total / config.workers) / 100)
