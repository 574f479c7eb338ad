"""The train flow: a dataset version into a model."""

from __future__ import annotations

from typing import Any

from prefect import flow, task

from flows import steps
from flows.config import TrainConfig
from flows.progress import current_progress
from flows.steps import Result, config_digest
from flows.tasks import DURABLE, digest_of_dataset, digest_of_model, model_is_there, show_table, verified


def _cache_key(context: Any, parameters: dict[str, Any]) -> str | None:
    config: TrainConfig = parameters["config"]
    start = "" if config.init_from is None else digest_of_model(config.init_from)
    return config_digest("train", config, dataset=digest_of_dataset(config.dataset), init_from=start)


@task(name="train", cache_key_fn=_cache_key, **DURABLE)
def train_task(config: TrainConfig) -> Result:
    return steps.train(config, current_progress())


@flow(name="train")
def train(config: TrainConfig) -> Result:
    """Trains a detector; the same call again goes on after the last epoch that was finished.

    Returns:
        ``uri``, ``digest``, ``metrics``, ``history``, ``seconds``.
    """
    return run_train(config)


def run_train(config: TrainConfig) -> Result:
    """The task with its checks and artifacts, for any flow."""
    model = verified(train_task, config, model_is_there)
    show_table("model", {"uri": model["uri"], "digest": model["digest"], **model["metrics"]}, "Validation metrics")
    return model
