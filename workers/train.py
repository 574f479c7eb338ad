"""Training as one call: check everything, train on Ray, hand back a reference to the model."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import detectors
from detectors.checkpoint import describe_report, summarise_report
from detectors.transforms import Augmentation
from pipelines.storage import Store, absolute, redact
from pipelines.versions import Dataset, open_dataset
from workers.cluster import ray_session
from workers.initial_weights import find_start, load_start, order_of_classes
from workers.loader import steps_per_epoch
from workers.needed_truth import check_truth, options_of_truth
from workers.progress import Progress, ProgressBoard
from workers.saved_model import read_trained
from workers.train_config import AugmentConfig, ModelRef, TrainConfig, TrainJob

__all__ = ["AugmentConfig", "ModelRef", "TrainConfig", "train"]

log = logging.getLogger("boxmill.train")


def train(config: TrainConfig, progress: Progress | None = None) -> ModelRef:
    """Trains a detector on a dataset's split, on ``config.workers`` processes.

    A run is named by the digest of its settings and inputs: the same call again goes on after the last epoch that
    was finished, and returns at once where the model is there already.

    Args:
        config: what to train on what, and where the model goes.
        progress: called as ``progress("train", steps_done, steps, epoch=..., loss=..., lr=..., AP=...)``.
    Returns:
        The model in ``config.out``.
    Raises:
        ValueError: before Ray starts, for a bad setting, split, detector, model or category; while it runs
            (``NonFiniteLoss``), where the loss is no number any more.
        RuntimeError: a worker failed.
    """
    dataset = open_dataset(config.dataset)
    job = prepare(config, dataset)
    finished = read_trained(job.config.out)
    if finished is not None:
        # A model with another history is this job's before its first step, see workers.untrained.
        if finished.job_digest == job.digest and len(finished.model.history) == config.epochs:
            return finished.model
        if not config.overwrite:
            raise ValueError(
                f"{redact(job.config.out)} holds a model of another training run (other settings or another "
                "dataset version); give another out, or set overwrite"
            )
    if job.loaded_weights is not None:
        log.info("%s", describe_report(job.loaded_weights))
    cores = os.cpu_count() or 1
    with ray_session(config.ray_address, num_cpus=max(cores, config.workers * (config.cpus_per_worker or 1))):
        _run(job, steps=_total_steps(config, dataset), progress=progress)
    trained = read_trained(job.config.out)
    assert trained is not None and trained.job_digest == job.digest, "rank 0 saves the model before it ends"
    return trained.model


def prepare(config: TrainConfig, dataset: Dataset) -> TrainJob:
    """Checks a run against its dataset and model, and names it.

    Raises:
        ValueError: see ``train``.
    """
    if not dataset.has_images:
        raise ValueError(
            f"{dataset.reference} holds predictions of an archive, whose images are not in it; ingest the archive, "
            "label that dataset, and train on its label set"
        )
    _check_split(dataset, config.train_split, config.workers)
    if config.val_split is not None:
        _check_split(dataset, config.val_split, config.workers)
    if sum(dataset.index((config.train_split,))["num_objects"].to_pylist()) == 0:
        raise ValueError(
            f"split {config.train_split!r} of {dataset.reference} has no objects; a detector cannot learn from it"
        )
    start = find_start(config)
    label_map = order_of_classes(start, dataset.label_map)
    name = config.detector if start.model is None else start.model.spec.name
    options = {**start.options, **config.detector_options, "image_size": config.image_size}
    # Built here once, so that an unknown name, option or bad number, and weights of another network, are told before
    # a cluster starts.
    Augmentation(size=config.image_size, **asdict(config.augment))
    detector = detectors.create(name, num_classes=len(label_map), **options)
    of_truth = options_of_truth(detector, label_map, config.detector_options)
    if of_truth:
        detector = detectors.create(name, num_classes=len(label_map), **{**options, **of_truth})
    for note in check_truth(config, dataset, name, detector.needs):
        log.warning("%s", note)
    load_start(detector, start, label_map.names)
    spec = detector.spec
    config = replace(
        config,
        dataset=dataset.reference,
        out=absolute(config.out),
        init_from=None if config.init_from is None else absolute(config.init_from),
        detector=name,
        detector_options=dict(spec.options),
    )
    return TrainJob(
        config=config,
        reference=dataset.reference,
        dataset_digest=dataset.digest,
        categories=tuple(label_map.to_json()),
        detector=name,
        detector_options=dict(spec.options),
        digest=config.job_digest(dataset=dataset.digest, **start.digests, categories=label_map.digest),
        cpus_per_worker=config.cpus_per_worker or 1,
        loaded_weights=summarise_report(detector.loaded_weights),
    )


def _run(job: TrainJob, *, steps: int, progress: Progress | None) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from workers.train_loop import train_worker

    config = job.config
    use_gpu = _use_gpu(config)
    job = replace(job, cpus_per_worker=config.cpus_per_worker or _cpus_per_worker(config.workers))
    storage_path, storage_filesystem = _storage(f"{config.out}/_train")
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=job.run_name,
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    _wait(trainer.fit, board, steps, progress)


def _wait(fit: Callable[[], Any], board: Any, steps: int, progress: Progress | None) -> None:
    """Runs ``fit`` in a thread of its own, so that progress is told in the caller's."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    told: tuple[int, dict[str, float]] = (-1, {})
    while thread.is_alive():
        thread.join(timeout=0.5)
        if progress is not None:
            done, numbers = _read(board) or told
            if (done, numbers) != told:
                told = (done, numbers)
                progress("train", done, steps, **numbers)
    if failure:
        raise _as_users_error(failure[0]) from failure[0]
    if progress is not None:
        progress("train", steps, steps, **(_read(board) or told)[1])


def _read(board: Any) -> tuple[int, dict[str, float]] | None:
    """What the board says; None where it was lost with its node, which is no reason to stop the training."""
    import ray

    try:
        return ray.get(board.read.remote())
    except ray.exceptions.RayActorError:
        return None


def _as_users_error(error: BaseException) -> BaseException:
    """What went wrong on a worker, without the frames of Ray around it."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    if not isinstance(error, WorkerGroupError):
        return error
    causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    # A ValueError is about what the user gave; the other workers may only have lost their peer.
    for cause in causes:
        if isinstance(cause, ValueError):
            return cause
    return RuntimeError(f"a training worker failed: {causes[0] if causes else error}")


def _storage(uri: str) -> tuple[str, Any]:
    """Path and filesystem for Ray Train; any fsspec URL works, with the options of ours."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    store = Store.open(uri)
    return store.root, None if store.is_local else PyFileSystem(FSSpecHandler(store.fs))


def _use_gpu(config: TrainConfig) -> bool:
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    if config.use_gpu is True and gpus < config.workers:
        raise ValueError(f"use_gpu is set, but the cluster has {gpus:g} GPUs for {config.workers} workers")
    return gpus >= config.workers if config.use_gpu == "auto" else bool(config.use_gpu)


def _cpus_per_worker(workers: int) -> int:
    """The cluster's CPUs shared out evenly, at least 1 and at most 8, and never more than a node has."""
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(8, sum(nodes) // workers, max(nodes, default=1)))


def _check_split(dataset: Dataset, split: str, workers: int) -> None:
    if split not in dataset.splits:
        has = ", ".join(repr(name) for name in sorted(dataset.splits)) or "none"
        raise ValueError(
            f"there is no split {split!r} in {dataset.reference}; it has {has}. Choose train_split and val_split "
            "among these (val_split null, --val-split none, trains without validation)"
        )
    if dataset.splits[split] < workers:
        raise ValueError(
            f"split {split!r} of {dataset.reference} has {dataset.splits[split]} image(s), too few for {workers} "
            "workers; use fewer"
        )


def _total_steps(config: TrainConfig, dataset: Dataset) -> int:
    images = dataset.splits[config.train_split]
    return config.epochs * steps_per_epoch(images, batch_size=config.batch_size, world=config.workers)
