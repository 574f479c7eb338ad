"""The stages as plain functions: a config in, a JSON-ready reference out. No Prefect here.

The command line calls these directly, and flows wrap them. A stage whose ``ray_address`` is a dashboard (http...) is
run as a Ray Job there, by this same module.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from flows.config import (
    EvaluateConfig,
    ExportConfig,
    GalleryConfig,
    IngestConfig,
    LabelConfig,
    LifecycleConfig,
    MaintainConfig,
    RelabelConfig,
    RouteConfig,
    TrainConfig,
)
from flows.mirror import Strict
from flows.progress import Progress, stage

Result = dict[str, Any]


def ingest(config: IngestConfig, progress: Progress | None = None) -> Result:
    """Source into dataset version: ``reference``, ``digest``, ``num_images``, ``ledger``, ``duplicates``, ..."""
    if _is_dashboard(config.ray_address):
        return _as_job("ingest", config, progress)
    from workers import ingest
    from workers.memory import keep_freed_memory

    keep_freed_memory()
    version = ingest(
        _source(config),
        config.dataset,
        label_set=config.label_set,
        strict=config.strict,
        hash_inputs=config.hash_inputs,
        deep_check=config.deep_check,
        dedupe=config.dedupe,
        near_duplicates=config.near_duplicates,
        ray_address=config.ray_address,
        progress=progress,
    )
    return asdict(version)


def _source(config: IngestConfig) -> Any:
    from pipelines.sources import open_source

    if config.split_ratio is None:
        return open_source(config.source, **config.options)
    return open_source(
        "resplit",
        source={"kind": config.source, "options": config.options},
        ratios=config.split_ratio,
        seed=config.split_seed,
        group_pattern=config.split_pattern,
        group_column=None if config.split_pattern is not None else config.split_by,
        keep=config.split_keep,
    )


def relabel(config: RelabelConfig, progress: Progress | None = None) -> Result:
    """Other labels for a dataset's images: as of ``ingest``, its ``ledger`` tells of the new labels.

    ``review`` tells what came back from a labelling tool: ``returned``, ``missing``, ``missing_images``.
    """
    from pipelines.relabelling import add_labels
    from pipelines.sources.reviewed import Reviewed

    try:
        source = _labels(config)
    except TypeError as error:
        raise ValueError(f"labels of {config.source!r}: {error}; given were {sorted(config.options)}") from None
    version = add_labels(config.dataset, source, label_set=config.label_set, others=config.others, strict=config.strict)
    review = {"review": dict(source.about())} if isinstance(source, Reviewed) else {}
    return asdict(version) | review


def _labels(config: RelabelConfig) -> Any:
    from pipelines.relabelling import coco_labels
    from pipelines.reviewing import LabelSetLabels, reviewed_labels
    from pipelines.sources import open_source

    match config.source:
        case "coco":
            return coco_labels(config.dataset, **config.options)
        case "labels":
            return LabelSetLabels.of(**config.options)
        case "label_studio" | "cvat" if "images" not in config.options:
            return reviewed_labels(config.dataset, config.source, **config.options)
        case _:
            return open_source(config.source, **config.options)


def route(config: RouteConfig, progress: Progress | None = None) -> Result:
    """Predictions into label sets by confidence: ``sets``, ``reasons``, ``num_images``, ``num_noise``, ``found``."""
    from pipelines.routing import route

    return route(config.predictions, config.rules(), name=config.name).to_json()


def gallery(config: GalleryConfig, progress: Progress | None = None) -> Result:
    """Images into a folder for a browser: ``uri`` of the page, ``num_images``, ``num_objects``, ``files``, ..."""
    from pipelines.predictions import open_predictions
    from pipelines.report.browse import write_gallery
    from pipelines.versions import open_dataset

    written = write_gallery(
        config.out,
        open_dataset(config.dataset),
        None if config.predictions is None else open_predictions(config.predictions),
        splits=config.splits,
        most=config.images,
        choose=config.choose,
        size=config.size,
        measure=config.uncertainty,
        aggregate=config.aggregate,
        title=config.title,
        progress=stage(progress, "gallery"),
    )
    return asdict(written)


def maintain(config: MaintainConfig, progress: Progress | None = None) -> Result:
    """Verify, then vacuum: ``problems`` (``path`` and ``what`` of each damaged file), ``vacuumed`` (None if not asked).

    Nothing is deleted from a dataset that is damaged.
    """
    from pipelines.maintenance import vacuum, verify_newest

    problems = verify_newest(config.dataset, progress=stage(progress, "verify")) if config.verify else []
    vacuumed = vacuum(config.dataset, grace_hours=config.grace_hours) if config.vacuum and not problems else None
    return {
        "dataset": config.dataset,
        "problems": [asdict(problem) for problem in problems],
        "vacuumed": None if vacuumed is None else asdict(vacuumed),
    }


def train(config: TrainConfig, progress: Progress | None = None) -> Result:
    """Dataset version into model: ``uri``, ``digest``, ``metrics``, ``history``, ``seconds``."""
    if _is_dashboard(config.ray_address):
        return _as_job("train", config, progress)
    from workers import train

    return asdict(train(config.to_worker(), progress))


def untrained(config: TrainConfig, progress: Progress | None = None) -> Result:
    """The detector that training would start from, as a model in ``config.out``; result as of ``train``."""
    from workers.untrained import write_untrained

    return asdict(write_untrained(config.to_worker()))


@contextmanager
def shared_ray(config: LifecycleConfig) -> Iterator[None]:
    """One Ray for several stages, as starting it takes seconds; Ray Jobs have their own."""
    if _is_dashboard(config.ray_address):
        yield
        return
    from workers.cluster import ray_session

    # As many as training itself would start; with fewer it would wait for ever.
    cpus = max(os.cpu_count() or 1, config.train.workers * (config.train.cpus_per_worker or 1))
    with ray_session(config.ray_address, num_cpus=cpus):
        yield


def label(config: LabelConfig, progress: Progress | None = None) -> Result:
    """Images and models into predictions: ``reference``, ``digest``, ``num_images``, ``num_quarantined``, ...

    Those of the first model; of ``more_models`` the same is in ``others``.
    """
    if _is_dashboard(config.ray_address):
        return _as_job("label", config.with_thresholds_read(), progress)
    from workers.label import label_each

    first, *others = label_each(config.to_worker(), config.models, progress)
    return {**asdict(first), "others": [asdict(other) for other in others]}


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> Result:
    """Truth and predictions into ``metrics`` (None without truth), ``per_class``, ``report``, ``figure`` (SVG), ...

    ``markdown`` is the text for people, ``gates`` are the numbers that must be reached with whether they are.
    """
    from pipelines.metrics.gates import check_gates
    from pipelines.report import pr_curve_svg
    from pipelines.report.markdown import to_markdown
    from workers import evaluate

    found = evaluate(
        config.dataset,
        config.predictions,
        splits=config.splits,
        report_uri=config.report,
        history=_history(config.model),
        metrics_uri=config.metrics,
        markdown_uri=config.markdown,
        matches_uri=config.matches,
        cache_uri=config.cache,
        workers=config.workers,
        ray_address=config.ray_address,
        iou_type=config.iou_type,
        protocol=config.protocol,
        by=config.by,
        compare_ref=config.compare,
        resamples=config.resamples,
        oks_sigmas=config.oks_sigmas,
        baseline=None if config.baseline is None else {k: v for k, v in config.baseline.items() if v is not None},
        progress=progress,
        **({"title": config.title} if config.title else {}),
    )
    numbers = found.to_json()
    gates = check_gates(numbers["stats"], config.fail_under)
    told = [f"{'passed' if gate.passed else 'MISSED'}: {gate}" for gate in gates]
    analysis = numbers.get("analysis")
    return {
        "dataset": found.dataset_ref,
        "predictions": found.predictions_ref,
        "protocol": numbers["protocol"],
        "iou_type": numbers["iou_type"],
        "metrics": numbers["stats"],
        "per_class": numbers["per_class"],
        "num_images": numbers["num_images"],
        "images_without_predictions": len(found.images_without_row) + len(found.failed_images),
        "slices": [] if analysis is None else analysis["slices"],
        "comparison": None if analysis is None else analysis["comparison"],
        "gates": [{"name": g.name, "least": g.least, "value": g.value, "passed": g.passed} for g in gates],
        "missed": [str(gate) for gate in gates if not gate.passed],
        "report": found.report_uri,
        "matches": found.matches_uri,
        "shards_matched": found.shards_matched,
        "shards_known": found.shards_known,
        "markdown": to_markdown(numbers, title=config.title or "Evaluation", gates=told),
        "figure": pr_curve_svg(found.metrics),
    }


def export(config: ExportConfig, progress: Progress | None = None) -> Result:
    """Truth into another format, predictions into a results file: ``files``, ``num_images``, ``num_objects``, ..."""
    from pipelines.exports import find_export
    from pipelines.predictions import open_predictions, to_coco_results
    from pipelines.versions import open_dataset

    write = find_export(config.format)
    dataset = open_dataset(config.dataset)
    if config.format == "coco" and dataset.metadata.get("kind") == "predictions":
        if config.images:
            raise ValueError(f"{dataset.reference} holds predictions; their results file has no images, the truth has")
        written = to_coco_results(open_predictions(dataset.reference), config.out, config.splits)
        files = {"results" if kind == "bbox" else f"results_{kind}": uri for kind, uri in written.items()}
        return {"files": files, "num_images": dataset.num_images, "num_objects": dataset.num_objects}
    if not dataset.has_images:
        raise ValueError(
            f"{dataset.reference} holds predictions of images that lie where they were labelled; only their results "
            "file is written (export coco). For another format ingest the images, and label that dataset"
        )
    options = config.options if config.images is None else config.options | {"images": config.images}
    try:
        inspect.signature(write).bind(dataset, config.out, splits=config.splits, **options)
    except TypeError as error:
        raise ValueError(f"export {config.format!r}: {error}; given were {sorted(options)}") from None
    return asdict(write(dataset, config.out, splits=config.splits, **options))


STEPS: dict[str, tuple[type[Strict], Callable[..., Result]]] = {
    "ingest": (IngestConfig, ingest),
    "train": (TrainConfig, train),
    "label": (LabelConfig, label),
    "evaluate": (EvaluateConfig, evaluate),
    "export": (ExportConfig, export),
    "relabel": (RelabelConfig, relabel),
    "route": (RouteConfig, route),
    "gallery": (GalleryConfig, gallery),
    "maintain": (MaintainConfig, maintain),
}


def config_digest(step: str, config: Strict, **inputs: str) -> str:
    """sha256 of a stage, its settings (not where they run) and the digests of its inputs."""
    settings = config.model_dump(mode="json", exclude={"ray_address"})
    text = json.dumps({"step": step, "settings": settings, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _history(model: str | None) -> list[Mapping[str, Any]] | None:
    if model is None:
        return None
    from workers.saved_model import read_trained

    trained = read_trained(model)
    return None if trained is None else list(trained.model.history)


def _is_dashboard(address: str | None) -> bool:
    return address is not None and address.startswith(("http://", "https://"))


def _as_job(step: str, config: Strict, progress: Progress | None) -> Result:
    from workers.jobs_client import source_root, submit_job

    # Inside the job RAY_ADDRESS names its cluster.
    there = config.model_copy(update={"ray_address": None})
    return submit_job(
        config.ray_address,
        ["python", "-m", "flows.cli", "step", step, there.model_dump_json()],
        submission_id=f"boxmill-{step}-{config_digest(step, config)[:24]}",
        working_dir=source_root(),
        progress=progress,
    )


def run_marked(step: str, config_json: str, attempt: str) -> int:
    """Runs a stage inside a Ray Job; progress, result or error go to standard output as marked lines."""
    from flows.errors import describe, is_bad_input
    from workers.jobs_client import ERROR, PROGRESS, RESULT, marked_line

    def tell(mark: str, what: Mapping[str, Any]) -> None:
        print(marked_line(mark, attempt, what), flush=True)

    def progress(stage: str, done: int, total: int, **numbers: float) -> None:
        tell(PROGRESS, {"stage": stage, "done": done, "total": total, **numbers})

    config_type, function = STEPS[step]
    try:
        tell(RESULT, function(config_type.model_validate_json(config_json), progress))
    except Exception as error:
        if not is_bad_input(error):
            import traceback

            traceback.print_exc(file=sys.stderr)
        tell(ERROR, {"message": describe(error), "bad_input": is_bad_input(error)})
        return 1
    return 0
