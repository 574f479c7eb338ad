"""The maintain flow: verify a dataset and vacuum it, on a schedule."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import MaintainConfig
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, show_table


class DamagedDataset(ValueError):
    """Files of a dataset are not what was written."""


@task(name="maintain", **DURABLE)
def maintain_task(config: MaintainConfig) -> Result:
    return steps.maintain(config, current_progress())


@flow(name="maintain")
def maintain(config: MaintainConfig) -> Result:
    """Verifies the newest version of every label set, and vacuums the dataset if it is sound.

    Returns:
        ``problems`` (none), ``vacuumed``.
    Raises:
        DamagedDataset: so that the run fails and whoever watches runs is told; names the first files. The table
            artifact has them all.
    """
    done = maintain_task(config)
    problems = done["problems"]
    if problems:
        show_table("damage", {problem["path"]: problem["what"] for problem in problems}, "Damaged files")
        first = "; ".join(f"{problem['path']}: {problem['what']}" for problem in problems[:5])
        raise DamagedDataset(f"{config.dataset}: {len(problems)} problems, nothing was vacuumed: {first}")
    vacuumed = done["vacuumed"]
    if vacuumed is not None:
        show_table("vacuumed", {"files": len(vacuumed["paths"]), "bytes": vacuumed["size"]}, "Vacuumed")
    return done
