"""The route flow: predictions divided by confidence into what is taken, reviewed and left out."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import RouteConfig
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, show_table


@task(name="route", **DURABLE)
def route_task(config: RouteConfig) -> Result:
    return steps.route(config, current_progress())


@flow(name="route")
def route(config: RouteConfig) -> Result:
    """Makes a label set of each route; the same rules on the same predictions find the sets that are there.

    Returns:
        ``sets`` (route -> version, null where no image takes it), ``reasons``, ``num_images``, ``num_noise``.
    """
    routed = route_task(config)
    images = {one: version["num_images"] if version else 0 for one, version in routed["sets"].items()}
    show_table("routes", images, "Images by route")
    return routed
