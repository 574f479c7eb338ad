"""How often a task is tried, counted where no death of a worker forgets it; and the end of one that never succeeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipelines.jobs import Job
from pipelines.quarantine import LABEL
from workers.exits import exit_within
from workers.label_job import LabelJob
from workers.label_readers import Failure, RawImage
from workers.label_tasks import read_task


class LabellingFailed(RuntimeError):
    """Too many tasks failed for it to be their images' fault; nothing is committed, and the same call resumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedTask:
    """A task that failed in its last attempt.

    Attributes:
        task: its number.
        attempts: begun so far, this run.
        error_class, error: of the last one; ``WorkerDied`` where there was nobody left to tell.
    """

    task: int
    attempts: int
    error_class: str
    error: str


class AttemptBoard:
    """A Ray actor beside the driver: workers tell it what they begin, so that attempts which killed them count too."""

    def __init__(self) -> None:
        exit_within()
        self._begun: Counter[int] = Counter()

    def begun(self, task: int) -> int:
        """How many attempts at the task were begun."""
        return self._begun[task]

    def begin(self, task: int) -> int:
        """Counts one more; which it is, from 1."""
        self._begun[task] += 1
        return self._begun[task]


def check_failures(dead: Sequence[FailedTask], *, num_tasks: int, num_done: int | None, share: float) -> None:
    """Tell images that cannot be labelled from a store, a model or a cluster that is at fault.

    Args:
        dead: tasks that are given up.
        num_tasks: of the plan.
        num_done: tasks of the plan that succeeded; None while there may be more.
        share: of the plan that may be given up; one task always may, unless no other succeeded.
    Raises:
        LabellingFailed: more are.
    """
    if not dead or (num_done != 0 and len(dead) <= max(1, int(share * num_tasks))):
        return
    last = dead[-1]
    why = "not one succeeded" if num_done == 0 else f"more than max_dead_share={share} lets be given up"
    raise LabellingFailed(
        f"{len(dead)} of {num_tasks} tasks failed for good, {why}; the last after {last.attempts} attempts with "
        f"{last.error_class}: {last.error}. Nothing is committed: mend what is wrong and give the same command again, "
        "it goes on with what is missing"
    )


def give_up(label_job: LabelJob, job: Job, failed: FailedTask) -> None:
    """Write a task's dead letter, and a receipt by which its images are failed ones: counted, listed, tried again on
    request.

    A worker thought dead that finishes the task first wins, as always.
    """
    # They bring torch, which neither a driver whose tasks succeed needs nor the board.
    from workers.label_inputs import DecodedImage
    from workers.label_write import Outcome, write_task

    task = read_task(label_job, job, failed.task)
    failure = Failure(
        stage=LABEL,
        error_class=failed.error_class,
        error=f"given up after {failed.attempts} attempts at its task: {failed.error}",
    )
    outcomes = [
        Outcome(decoded=DecodedImage(raw=RawImage(place=place), failure=failure), annotations=None)
        for place in range(task.num_rows)
    ]
    receipt = write_task(label_job, failed.task, task, outcomes, {"attempts": failed.attempts, "dead": True})
    job.write_dead_letter(failed.task, {**asdict(failed), "images": task["image_id"].to_pylist()})
    job.finish(failed.task, receipt)
