"""The export flow: a dataset version into another format, predictions into COCO results."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import ExportConfig
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, show_link


@task(name="export", **DURABLE)
def export_task(config: ExportConfig) -> Result:
    return steps.export(config, current_progress())


@flow(name="export")
def export(config: ExportConfig) -> Result:
    """Writes what ``config.format`` names.

    Returns:
        ``files`` (name -> URI), ``num_images``, ``num_objects``, and ``losses`` where the format cannot carry all.
    """
    written = export_task(config)
    for name, uri in written["files"].items():
        show_link("export", uri, f"{config.format}: {name or 'all'}")
    return written
