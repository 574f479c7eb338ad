"""Everything, from a source to a report. Start reading here: each line is a stage, each stage is one function."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import ExportConfig, LifecycleConfig, TrainConfig
from flows.evaluate import run_evaluate
from flows.export import export_task
from flows.ingest import ingest_task
from flows.label import run_label
from flows.progress import current_progress
from flows.steps import Result, config_digest
from flows.tasks import DURABLE, dataset_is_there, model_is_there, rounded, show_table, verified
from flows.train import run_train

Metrics = dict[str, float | None]


@task(name="untrained", **DURABLE)
def untrained_task(config: TrainConfig) -> Result:
    """The detector as it is before its first step: what chance and the backbone alone are worth."""
    return steps.untrained(config, current_progress())


@flow(name="lifecycle")
def lifecycle(config: LifecycleConfig) -> Result:
    """Runs all stages; the same call again resumes each of them, and a grown source makes a new model beside the old.

    Returns:
        ``dataset``, ``model``, ``predictions``, ``metrics``, ``baseline`` (metrics, or None), ``report``, ``export``.
    """
    with steps.shared_ray(config):
        dataset = verified(ingest_task, config.ingest_config(), dataset_is_there)
        # Other settings or another dataset version are another model, and get a folder of their own.
        name = config_digest("train", config.train, dataset=dataset["digest"])[:12]
        baseline = _baseline(config, dataset["reference"], config.place(f"models/{name}-untrained"))
        model = run_train(config.train_config(dataset["reference"], config.place(f"models/{name}")))
        predictions = run_label(config.label_config(dataset["reference"], model["uri"]))
        found = run_evaluate(
            config.evaluate_config(
                dataset["reference"],
                predictions["reference"],
                model=model["uri"],
                report=config.place("report.html"),
                metrics=config.place("metrics.json"),
                baseline=baseline,
            )
        )
        exported = export_task(ExportConfig(dataset=predictions["reference"], out=config.place("predictions.json")))
    show_table("lifecycle", _summary(found["metrics"], baseline), "Before and after training")
    return {
        "dataset": dataset,
        "model": {key: model[key] for key in ("uri", "digest", "seconds")},
        "predictions": predictions,
        "metrics": found["metrics"],
        "baseline": baseline,
        "report": found["report"],
        "export": exported["files"]["results"],
    }


def _baseline(config: LifecycleConfig, dataset: str, out: str) -> Metrics | None:
    """The untrained detector's numbers, where they are wanted."""
    if not config.baseline:
        return None
    model = verified(untrained_task, config.train_config(dataset, out), model_is_there)
    predictions = run_label(config.label_config(dataset, model["uri"]))
    found = run_evaluate(config.evaluate_config(dataset, predictions["reference"]), key="metrics-untrained")
    return found["metrics"]


def _summary(metrics: Metrics, baseline: Metrics | None) -> Metrics:
    summary = {name: metrics[name] for name in ("AP", "AP50")}
    if baseline is not None:
        summary["untrained AP50"] = baseline["AP50"]
    return rounded(summary)
