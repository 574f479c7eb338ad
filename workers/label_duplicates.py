"""Labelling what shows the same picture once: who carries whose predictions, and the plan that follows from it.

1. A pass over the input finds out what every image looks like (``label_looks``): tasks and receipts of its own.
2. Images are grouped by that, in the input's order (``pipelines.look_alikes``). The first of a group is labelled; the
   others carry its predictions as they are, which is exact because only images of one stored size and orientation go
   together. A copy that was scaled is labelled on its own.
3. The plan has tasks of labelling, then tasks of copying (``label_copies``); every image is in one of them.

Memory of the driver: about 180 bytes an image while groups are looked for, then 10 bytes an image and the id of each
group's first one; workers hold one task. Groups follow from receipts alone, so that a run that is resumed, or another
one at the same time, makes the same plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.jobs import Job
from pipelines.look_alikes import concatenate, looks_from_arrow, originals
from workers.label_attempts import give_up
from workers.label_config import LabelConfig
from workers.label_copies import COPIES, CopyShard
from workers.label_listing import LabelInput
from workers.label_looks import LooksShard, each_looks, each_task, give_up_looks, looks_plan
from workers.label_plan import LabelPlan, ModelFacts
from workers.label_run import LABELLING, Finished, Work, make_label_job, run_tasks
from workers.label_tasks import save_tasks
from workers.progress import Progress

LOOKING = Work(actor=LooksShard, give_up=give_up_looks, model=False)
COPYING = Work(actor=CopyShard, give_up=give_up, model=False)
FIRST_COPIES = "first_task_of_copies"
_PLACE = "place"  # of an image in the input

Planned = tuple[LabelInput, LabelPlan, ModelFacts]


def save_tasks_once(
    job: Job, config: LabelConfig, planned: Planned, facts: Mapping[str, Any], progress: Progress | None
) -> float:
    """As ``label_tasks.save_tasks``, with each picture labelled once.

    Args:
        facts: as there; how many images carry others' predictions is added.
        progress: called as ``progress("compare", images_done, images)``.
    Returns:
        The seconds that it took.
    """
    started = time.perf_counter()
    source, plan, model = planned
    passed = looks_plan(source, plan)
    _look(config, (source, passed, model), progress)
    metadata = dict(facts)
    job.save_plan(_tasks(config, (source, passed, model), plan.task_images, metadata), COPIES, metadata)
    return time.perf_counter() - started


def phases(job: Job, pending: Sequence[int]) -> list[tuple[Sequence[int], Work]]:
    """What a plan lacks, with who does it, in this order; in most plans all of it is labelling."""
    first = job.plan().metadata.get(FIRST_COPIES)
    if first is None:
        return [(pending, LABELLING)]
    labelled, copied = [t for t in pending if t < first], [t for t in pending if t >= first]
    return [(tasks, work) for tasks, work in ((labelled, LABELLING), (copied, COPYING)) if tasks]


def _look(config: LabelConfig, passed: Planned, progress: Progress | None) -> None:
    """The pass over the input, as far as it was not made before."""
    source, plan, model = passed
    job = Job(plan.root, plan.plan_id)
    if not job.has_plan():
        save_tasks(job, source, plan, {"looks_of": source.reference, "digest": source.digest})
    pending = job.missing()
    done = 0

    def told(finished: Finished) -> None:
        nonlocal done
        done += finished["images"]
        if progress is not None:
            progress("compare", done, source.num_images)

    if pending:
        run_tasks(
            [pending],
            lambda device: [make_label_job(config, source, plan, model, device=device)],
            config,
            told,
            LOOKING,
        )


def _tasks(config: LabelConfig, passed: Planned, limit: int, metadata: dict[str, Any]) -> Iterator[pa.Table]:
    """Tables of ``COPIES``; ``metadata`` is told where the tasks of copying begin."""
    source, plan, model = passed
    label_job = make_label_job(config, source, plan, model, device="cpu")
    looks = concatenate([looks_from_arrow(looks) for _, looks in each_looks(source, plan, label_job)])
    found = originals(looks, config.near_duplicate_bits)
    del looks
    itself = found == np.arange(len(found))
    carried = np.zeros(len(found), np.bool_)
    carried[found[~itself]] = True
    firsts: dict[int, tuple[str, int]] = {}
    number = 0
    for task in packed(_kept(each_task(source, plan, label_job), itself), limit):
        for place, image_id in zip(task[_PLACE].to_pylist(), task["image_id"].to_pylist(), strict=True):
            if carried[place]:
                firsts[place] = (image_id, number)
        yield _as_copies(task)
        number += 1
    metadata |= {FIRST_COPIES: number, "images_that_carry_others": int((~itself).sum())}
    together = (_with_looks(task, looks) for task, looks in each_looks(source, plan, label_job))
    for task in packed(_kept(together, ~itself), limit):
        yield _as_copies(task, [firsts[original] for original in found[task[_PLACE].to_numpy()].tolist()])


def _kept(tasks: Iterable[pa.Table], wanted: np.ndarray) -> Iterator[pa.Table]:
    """The images at wanted places, with their places."""
    first = 0
    for task in tasks:
        places = np.arange(first, first + task.num_rows)
        first += task.num_rows
        yield task.append_column(_PLACE, pa.array(places)).filter(pa.array(wanted[places]))
    assert first == len(wanted), "every image has its looks"


def packed(tasks: Iterable[pa.Table], limit: int) -> Iterator[pa.Table]:
    """Images that follow each other and lie in one shard, or in none, ``limit`` in a task: many were left out."""
    waiting: pa.Table | None = None
    for task in tasks:
        if not task.num_rows:
            continue
        if waiting is not None and waiting["image_path"][0].as_py() != task["image_path"][0].as_py():
            yield waiting
            waiting = None
        waiting = task if waiting is None else pa.concat_tables([waiting, task])
        while waiting.num_rows > limit:
            yield waiting.slice(0, limit)
            waiting = waiting.slice(limit)
    if waiting is not None:
        yield waiting


def _with_looks(task: pa.Table, looks: pa.Table) -> pa.Table:
    for name in ("width", "height"):  # an archive's are not known before
        task = task.set_column(task.schema.get_field_index(name), name, looks[name])
    for field in COPIES:
        if field.name in looks.column_names and field.name not in task.column_names:
            task = task.append_column(field, looks[field.name])
    return task


def _as_copies(task: pa.Table, firsts: Sequence[tuple[str, int]] | None = None) -> pa.Table:
    if firsts is not None:
        for at, name in enumerate(("copy_of", "copy_task")):
            task = task.append_column(COPIES.field(name), pa.array([f[at] for f in firsts], COPIES.field(name).type))
    columns = [task[f.name] if f.name in task.column_names else pa.nulls(task.num_rows, f.type) for f in COPIES]
    return pa.table(columns, schema=COPIES)
