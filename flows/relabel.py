"""The relabel flow: other labels for images that a dataset has, such as those that people have corrected."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import RelabelConfig
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, show_table


@task(name="relabel", **DURABLE)
def relabel_task(config: RelabelConfig) -> Result:
    return steps.relabel(config, current_progress())


@flow(name="relabel")
def relabel(config: RelabelConfig) -> Result:
    """Puts a source's labels on a dataset's images; the same labels again find the version that is there.

    Returns:
        ``reference``, ``digest``, ``num_images``, ``num_objects``, ``splits``, ``ledger``.
    """
    version = relabel_task(config)
    show_table("labels", {key: version[key] for key in ("reference", "num_images", "num_objects")}, "Labels")
    return version
