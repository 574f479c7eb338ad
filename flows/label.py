"""The label flow: images and a model into predictions."""

from __future__ import annotations

from typing import Any

from prefect import flow, task

from flows import steps
from flows.config import LabelConfig
from flows.progress import current_progress
from flows.steps import Result, config_digest
from flows.summaries import account_rows
from flows.tasks import DURABLE, digest_of_dataset, digest_of_model, predictions_are_there, show_table, verified


def _cache_key(context: Any, parameters: dict[str, Any]) -> str | None:
    config: LabelConfig = parameters["config"]
    if config.retry is not None:
        return None  # asked for twice, it is done twice: a store may have come back
    try:
        images = digest_of_dataset(config.input)
    except ValueError:
        # A folder or an archive: whether it has changed is known from listing it, which labelling does first.
        return None
    return config_digest(
        "label", config.with_thresholds_read(), images=images, model=[digest_of_model(uri) for uri in config.models]
    )


@task(name="label", cache_key_fn=_cache_key, **DURABLE)
def label_task(config: LabelConfig) -> Result:
    return steps.label(config, current_progress())


@flow(name="label")
def label(config: LabelConfig) -> Result:
    """Labels a dataset, or a folder, tar or zip; the same call again does only what is missing.

    Returns:
        ``reference``, ``digest``, ``num_images``, ``num_quarantined``, ``coco_results_uri``, ``seconds``, ``account``;
        ``others`` with the same of further models.
    """
    return run_label(config)


def run_label(config: LabelConfig) -> Result:
    """The task with its checks and artifacts, for any flow."""
    predictions = verified(label_task, config, predictions_are_there)
    for at, one in enumerate((predictions, *predictions["others"])):
        behind = f"-{at + 1}" if at else ""
        told = {k: v for k, v in one.items() if k not in ("account", "others")}
        show_table(f"predictions{behind}", told, "Predictions")
        if one["account"] is not None:
            show_table(f"labelling-account{behind}", account_rows(one["account"]), "What labelling took")
    return predictions
