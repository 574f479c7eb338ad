"""The ingest flow: a source into a dataset version."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import IngestConfig
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, show_table


# Not cached here: whether a source has changed is known from listing it, and ingest itself does that first.
@task(name="ingest", **DURABLE)
def ingest_task(config: IngestConfig) -> Result:
    return steps.ingest(config, current_progress())


@flow(name="ingest")
def ingest(config: IngestConfig) -> Result:
    """Reads a source into a dataset; the same source again finds the version that is there.

    Returns:
        ``reference``, ``digest``, ``num_images``, ``num_objects``, ``splits``, ``ledger``, ``duplicates``,
        ``near_duplicates``.
    """
    version = ingest_task(config)
    told = {key: version[key] for key in ("reference", "num_images", "num_objects")}
    told |= version["ledger"].get("reasons", {})
    told |= {f"same bytes: {name}": count for name, count in version["duplicates"].items()}
    told |= {f"looks alike: {name}": count for name, count in version["near_duplicates"].items()}
    show_table("dataset", told, "Dataset")
    return version
