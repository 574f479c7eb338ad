"""Everything, from a source to a report. Start reading here: each line is a stage, each stage is one function."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import ExportConfig, LifecycleConfig
from flows.evaluate import run_evaluate
from flows.export import export_task
from flows.ingest import ingest_task
from flows.label import run_label
from flows.steps import Result
from flows.tasks import DURABLE, dataset_is_there, model_is_there, rounded, show_table, verified
from flows.train import run_train


@task(name="untrained", **DURABLE)
def untrained_task(config: LifecycleConfig, dataset: str) -> Result:
    """The detector as it is before its first step: what chance and the backbone alone are worth."""
    return steps.untrained(config.train_config(dataset), config.place("untrained"))


@flow(name="lifecycle")
def lifecycle(config: LifecycleConfig) -> Result:
    """Runs all stages; the same call again resumes each of them.

    Returns:
        ``dataset``, ``model``, ``predictions``, ``metrics``, ``baseline`` (metrics, or None), ``report``, ``export``.
    """
    with steps.shared_ray(config):
        dataset = verified(ingest_task, config.ingest_config(), dataset_is_there)
        baseline = _baseline(config, dataset["reference"]) if config.baseline else None
        model = run_train(config.train_config(dataset["reference"]))
        predictions = run_label(config.label_config(dataset["reference"], model["uri"], "predictions"))
        found = run_evaluate(
            config.evaluate_config(
                dataset["reference"],
                predictions["reference"],
                model=model["uri"],
                report=config.place("report.html"),
                metrics=config.place("metrics.json"),
                baseline=None if baseline is None else baseline["metrics"],
            )
        )
        exported = export_task(ExportConfig(dataset=predictions["reference"], out=config.place("predictions.json")))
    show_table("lifecycle", _summary(found, baseline), "Before and after training")
    return {
        "dataset": dataset,
        "model": {key: model[key] for key in ("uri", "digest", "seconds")},
        "predictions": predictions,
        "metrics": found["metrics"],
        "baseline": None if baseline is None else baseline["metrics"],
        "report": found["report"],
        "export": exported["files"]["results"],
    }


def _baseline(config: LifecycleConfig, dataset: str) -> Result:
    model = untrained_task(config, dataset)
    if not model_is_there(model):
        model = untrained_task.with_options(refresh_cache=True)(config, dataset)
    predictions = run_label(config.label_config(dataset, model["uri"], "untrained"))
    return run_evaluate(config.evaluate_config(dataset, predictions["reference"]), key="metrics-untrained")


def _summary(found: Result, baseline: Result | None) -> dict[str, float | None]:
    summary = {name: found["metrics"][name] for name in ("AP", "AP50")}
    if baseline is not None:
        summary["untrained AP50"] = baseline["metrics"]["AP50"]
    return rounded(summary)
