"""A detector before its first training step, saved like a trained one: the baseline to compare with."""

from __future__ import annotations

import torch

import detectors
from pipelines.versions import open_dataset
from workers.initial_weights import find_start, load_start
from workers.saved_model import read_trained, save_trained
from workers.train import prepare
from workers.train_config import ModelRef, TrainConfig


def write_untrained(config: TrainConfig) -> ModelRef:
    """Writes what training with ``config`` would start from to ``config.out``; the same call again finds it.

    Raises:
        ValueError: as ``workers.train.train``.
    """
    job = prepare(config, open_dataset(config.dataset))
    found = read_trained(job.config.out)
    if found is not None and found.job_digest == job.digest and not found.model.history:
        return found.model
    torch.manual_seed(config.seed)
    detector = detectors.create(job.detector, num_classes=len(job.categories), **job.detector_options)
    load_start(detector, find_start(job.config), [str(category["name"]) for category in job.categories])
    save_trained(detector, job, history=[])
    saved = read_trained(job.config.out)
    assert saved is not None
    return saved.model
