"""The tasks of a plan on Ray: a pool of actors, rounds for what failed, and the end of trying."""

from __future__ import annotations

import math
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
"""What a worker says of a task: ``task``, ``attempts``, ``error`` ("" where it is done), numbers; ``receipts``, JSON,
by the jobs' places ("" for one that did not lack it)."""

_MAX_BLOCKS = 1000
_HEADROOM = 0.5
_PAUSE_SECONDS = 2.0
_MAX_PAUSE_SECONDS = 60.0


Phase = tuple[Sequence[int], "Work"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unfinished:
    """What a plan lacks.

    Attributes:
        plan, model: of one model.
        config: with that model.
        phases: tasks without a receipt, in parts, one after the other, with who does them.
    """

    plan: LabelPlan
    model: ModelFacts
    config: LabelConfig
    phases: Sequence[Phase]

    @property
    def pending(self) -> list[int]:
        return sorted(task for tasks, _ in self.phases for task in tasks)


def run_plan(
    pending: Sequence[int],
    config: LabelConfig,
    source: LabelInput,
    plan: LabelPlan,
    model: ModelFacts,
    progress: Progress | None,
) -> RunAccount:
    """``run_plans`` of one plan, all of whose ``pending`` tasks are labelled."""
    return run_plans(
        [Unfinished(plan=plan, model=model, config=config, phases=[(pending, LABELLING)])], source, progress
    )


def run_plans(
    unfinished: Sequence[Unfinished], source: LabelInput, progress: Progress | None, *, before: float = 0.0
) -> RunAccount:
    """Label what plans of the same images and tasks lack, and add up what it takes; see ``run_tasks``.

    Args:
        unfinished: of each model; what several of them lack is read and decoded once.
        source: its ``num_images`` are the plans'.
        progress: see ``workers.label.label``.
        before: seconds that this call has worked already.
    """
    config = unfinished[0].config
    rows = planned_images(Job(unfinished[0].plan.root, unfinished[0].plan.plan_id))
    lacking = set().union(*(one.pending for one in unfinished))
    resumed = source.num_images - sum(rows[task] for task in lacking)
    clock: RunClock | None = None
    ended: set[int] = set()

    def told(finished: Finished) -> None:
        assert clock is not None, "workers tell something after they were told what to do"
        again = finished["task"] in ended  # by another plan, which copies on its own
        clock.add({**finished, "images": 0, "failed": 0} if again else finished)
        if not finished["error"]:
            ended.add(finished["task"])
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

    for work, parts in _together(unfinished):

        def make_jobs(device: str, parts: Sequence[Part] = parts) -> list[LabelJob]:
            nonlocal clock
            clock = clock or RunClock(min(config.workers, len(lacking)), before=before, models=len(unfinished))
            return [make_label_job(one.config, source, one.plan, one.model, device=device) for one, _ in parts]

        run_tasks([tasks for _, tasks in parts], make_jobs, config, told, work)
    assert clock is not None, "run_tasks made the jobs"
    return clock.account(config.price_per_hour)


Part = tuple[Unfinished, Sequence[int]]


def _together(unfinished: Sequence[Unfinished]) -> list[tuple[Work, list[Part]]]:
    """All models label first, over one read; what is done without a model comes behind, plan by plan."""
    labelled = [(one, tasks) for one in unfinished for tasks, work in one.phases if work.model]
    rest = [(work, [(one, tasks)]) for one in unfinished for tasks, work in one.phases if not work.model]
    return [(LABELLING, labelled), *rest] if labelled else rest


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

    def __init__(self, jobs: Sequence[LabelJob], board: Any) -> None:
        from workers import label_actor

        self._label = label_actor.LabelShard(jobs, board)

    def __call__(self, row: Mapping[str, Any]) -> Finished:
        return self._label(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done with tasks.

    Attributes:
        actor: made with the jobs and the board, called with a task's number and the places of the jobs that lack it,
            ``{"task": 3, "jobs": [0]}``; says ``Finished``.
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
    return ray_session(config.ray_address, num_cpus=cpus, lean_workers=True)


def run_tasks(
    pending: Sequence[Sequence[int]],
    make_jobs: Callable[[str], Sequence[LabelJob]],
    config: LabelConfig,
    told: Callable[[Finished], None],
    work: Work = LABELLING,
) -> None:
    """Do tasks until each has a receipt.

    What fails is tried again when everything else was tried, up to ``max_attempts`` times, and then given up.

    Args:
        pending: of each job, its tasks without a receipt; jobs are of the same images, cut into the same tasks.
        make_jobs: from the device (``cpu`` or ``cuda``) to what the workers are told.
        config: pool, attempts and cluster.
        told: called with each attempt that ended, in this thread.
        work: what is done with them.
    Raises:
        LabellingFailed: too many tasks had to be given up.
        ValueError: GPUs were asked for and there are none.
    """
    with session(config):
        gpus = gpus_per_worker(config) * work.model
        label_jobs = make_jobs("cuda" if gpus else "cpu")
        folders = [Job(label_job.root, label_job.plan_id) for label_job in label_jobs]
        num_tasks = folders[0].plan().num_tasks
        lacking: dict[int, list[int]] = {}
        for at, tasks in enumerate(pending):
            for task in tasks:
                lacking.setdefault(task, []).append(at)
        dead: list[FailedTask] = []
        board = _start_board()
        left, bundles = sorted(lacking), [ReceiptBundle(folder) for folder in folders]
        for attempt in range(1, config.max_attempts + 1):
            again = []
            rows = [{"task": task, "jobs": lacking[task]} for task in left]
            for finished in _stream(work.actor, rows, label_jobs, config, gpus, board):
                told(finished)
                if not finished["error"]:
                    for bundle, receipt in zip(bundles, finished["receipts"]):
                        bundle.add(receipt)
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
            num_done = min(len(folder.done()) for folder in folders)
            check_failures(dead, num_tasks=num_tasks, num_done=num_done, share=config.max_dead_share)
            missing = [frozenset(folder.missing(num_tasks)) for folder in folders]
            for failed in dead:
                for at in lacking[failed.task]:
                    if failed.task in missing[at]:
                        work.give_up(label_jobs[at], folders[at], failed)


def _start_board() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver, whose end is the run's end in any case; a busy cluster must not keep it waiting for a CPU.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(AttemptBoard).options(**options).remote()


def _stream(
    actor: type,
    pending: Sequence[Mapping[str, Any]],
    jobs: Sequence[LabelJob],
    config: LabelConfig,
    gpus: float,
    board: Any,
) -> Iterator[Finished]:
    """Tasks through a pool of actors; the engine replaces lost actors and gives their tasks to others."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    tasks = ray.data.from_items(list(pending), override_num_blocks=min(len(pending), _MAX_BLOCKS))
    most, least = (min(size, len(pending)) for size in (config.workers, config.min_workers or config.workers))
    done = tasks.map(
        actor,
        fn_constructor_args=(jobs, board),
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
    # A part of one GPU cannot span two: each GPU has as many workers, the last ones maybe fewer.
    return 1.0 if total >= config.workers else max(0.01, int(100 / math.ceil(config.workers / total)) / 100)
