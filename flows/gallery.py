"""The gallery flow: a folder of static files in which people look through a dataset or through predictions."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import GalleryConfig
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, show_link


@task(name="gallery", **DURABLE)
def gallery_task(config: GalleryConfig) -> Result:
    return steps.gallery(config, current_progress())


@flow(name="gallery")
def gallery(config: GalleryConfig) -> Result:
    """Writes the gallery.

    Returns:
        ``uri`` of the page, ``num_images``, ``num_objects``, ``total``, ``unreadable``, ``files``, ``size``.
    """
    written = gallery_task(config)
    show_link("gallery", written["uri"], f"{written['num_images']:,} images to look through")
    return written
