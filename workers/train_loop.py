"""What one training worker does, from top to bottom; ``train_worker`` is the recipe."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectors import Detector, create
from detectors.batching import make_batch
from detectors.structures import Target
from detectors.transforms import Augmentation
from pipelines.records import LabelMap
from pipelines.versions import open_dataset
from workers.exits import exit_within
from workers.initial_weights import find_start, load_start
from workers.loader import RowGroupReader, Sample, epoch_plan, list_row_groups, training_batches
from workers.memory import keep_freed_memory
from workers.optimization import (
    autocast_for,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    update_average,
)
from workers.saved_model import save_trained
from workers.train_config import TrainConfig, TrainJob
from workers.validation import Validator

CHECKPOINT = "checkpoint.pt"


class NonFiniteLoss(ValueError):
    """The loss or its gradient is not a finite number any more; the message names the batch."""


@dataclass(slots=True, kw_only=True)
class TrainState:
    """All of a run that changes; a checkpoint holds it between two epochs.

    Attributes:
        detector: the weights that learn.
        average: their moving average, None where it is off.
        epoch: epochs done.
        history: one entry an epoch.
    """

    detector: Detector
    average: Detector | None
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def final(self) -> Detector:
        """What is validated and saved."""
        return self.detector if self.average is None else self.average


def train_worker(loop: dict[str, Any]) -> None:
    """Trains on one of the run's workers; Ray Train calls it on each with the same argument.

    Args:
        loop: ``job``: the TrainJob; ``board``: handle of the ProgressBoard.
    Raises:
        NonFiniteLoss: on all workers in the same step.
    """
    job: TrainJob = loop["job"]
    config, board = job.config, loop["board"]
    worker = ray.train.get_context()
    rank, world = worker.get_world_rank(), worker.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.cpus_per_worker)
    keep_freed_memory()
    exit_within()
    torch.manual_seed(config.seed)

    label_map = LabelMap.from_json(job.categories)
    dataset = open_dataset(job.reference)
    training = list_row_groups(dataset, config.train_split)
    reader = RowGroupReader(training, max_bytes=config.cache_mb * 2**20)
    state = start_or_resume(job, device)
    validator = Validator(config, dataset, label_map, rank=rank, world=world)
    model = _distribute(state.detector, world, device)

    while state.epoch < config.epochs:
        started = time.perf_counter()
        plan = epoch_plan(
            [len(group.image_ids) for group in training],
            batch_size=config.batch_size,
            epoch=state.epoch,
            seed=config.seed,
            world=world,
            rank=rank,
        )
        batches = training_batches(
            reader,
            plan,
            label_map=label_map,
            augmentation=augmentation(config, state.detector),
            seed=(config.seed, state.epoch, rank),
            needs=state.detector.needs,
            threads=max(1, job.cpus_per_worker // 2),
        )
        numbers = train_epoch(model, state, batches, len(plan), config, rank, board)
        numbers["seconds_training"] = round(time.perf_counter() - started, 3)
        state.epoch += 1
        numbers |= validator.after_epoch(state.epoch, state.final, device, board)
        numbers["seconds"] = round(time.perf_counter() - started, 3)
        state.history.append({"epoch": state.epoch, **numbers})
        report(state, rank)

    if rank == 0:
        save_trained(state.final, job, state.history)


def start_or_resume(job: TrainJob, device: torch.device) -> TrainState:
    """The state after the last checkpoint of this run, or the one before the first step."""
    checkpoint = ray.train.get_checkpoint()
    config = job.config
    detector = build_detector(job, pretrained=checkpoint is None)
    # Convolutions on the CPU, and tensor cores, work on channels-last memory without a copy.
    detector = detector.to(device).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(detector).eval().requires_grad_(False) if config.ema else None
    state = TrainState(detector=detector, average=average, optimizer=make_optimizer(detector, config))
    if checkpoint is None:
        return state
    with checkpoint.as_directory() as folder:
        saved = torch.load(Path(folder) / CHECKPOINT, map_location=device, weights_only=True)
    detector.load_state_dict(saved["detector"])
    if average is not None:
        average.load_state_dict(saved["average"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.epoch, state.history = saved["epoch"], saved["history"]
    return state


def build_detector(job: TrainJob, *, pretrained: bool) -> Detector:
    """The detector of a job.

    Args:
        pretrained: False leaves random weights, for a checkpoint to replace.
    """
    detector = create(job.detector, num_classes=len(job.categories), **job.detector_options)
    if pretrained:
        load_start(detector, find_start(job.config), [str(category["name"]) for category in job.categories])
    return detector


def augmentation(config: TrainConfig, detector: Detector) -> Augmentation:
    """The run's augmentation at the detector's input size."""
    red, green, blue = (round(mean) for mean in detector.preprocessing.mean)
    return Augmentation(
        size=detector.preprocessing.size,
        resize=detector.preprocessing.resize,
        fill=(red, green, blue),
        **asdict(config.augment),
    )


def train_epoch(
    model: nn.Module,
    state: TrainState,
    batches: Iterator[list[Sample]],
    steps: int,
    config: TrainConfig,
    rank: int,
    board: Any,
) -> dict[str, float]:
    """One pass over the training images.

    Returns:
        Means over all steps and workers: ``loss``, ``loss_<name>``, ``grad_norm``; the last ``lr``; ``images`` seen.
    """
    detector = state.detector
    device = next(detector.parameters()).device
    autocast = autocast_for(config, device)
    learning = [p for p in detector.parameters() if p.requires_grad]
    model.train()
    torch.manual_seed(int(np.random.default_rng([config.seed, state.epoch, rank]).integers(2**31)))
    sums: dict[str, float] = {}
    for step, samples in enumerate(batches):
        done = state.epoch * steps + step
        lr = learning_rate(
            done,
            total_steps=config.epochs * steps,
            lr=config.lr,
            warmup_steps=config.warmup_steps,
            final_lr_ratio=config.final_lr_ratio,
        )
        set_learning_rate(state.optimizer, lr)
        batch = make_batch([sample.image for sample in samples], detector.preprocessing).to(device)
        targets: list[Target] = [sample.target.to(device) for sample in samples]
        with autocast:
            losses = model(batch, targets)
            total = torch.stack(list(losses.values())).sum()
        state.optimizer.zero_grad(set_to_none=True)
        total.backward()
        grad_norm = nn.utils.clip_grad_norm_(learning, config.clip_norm or math.inf)
        values = torch.stack([total, grad_norm, *losses.values()]).detach().float().tolist()
        if not math.isfinite(values[0] + values[1]):
            # The gradient is the same on all workers, so all come here in the same step; a loss that breaks without
            # its gradient is one worker's own, and nobody else would answer it.
            shared = dist.is_initialized() and not math.isfinite(values[1])
            raise _non_finite(
                values[0], samples, epoch=state.epoch + 1, step=step + 1, steps=steps, rank=rank, shared=shared
            )
        state.optimizer.step()
        if state.average is not None:
            update_average(state.average, detector, decay=config.ema, step=done)
        names = ["loss", "grad_norm", *(f"loss_{name}" for name in losses)]
        for name, value in zip(names, values, strict=True):
            sums[name] = sums.get(name, 0.0) + value
        if rank == 0:
            board.step.remote(done + 1, epoch=state.epoch + 1, loss=round(values[0], 4), lr=lr)
    means = torch.tensor([value / steps for value in sums.values()], device=device)
    if dist.is_initialized():
        dist.all_reduce(means)
        means /= dist.get_world_size()
    return {**dict(zip(sums, means.tolist(), strict=True)), "lr": lr, "steps": steps}


def report(state: TrainState, rank: int) -> None:
    """Tells Ray Train the numbers of the epoch and gives it the checkpoint to keep."""
    numbers = state.history[-1]
    if rank != 0:
        ray.train.report(numbers)
        return
    with tempfile.TemporaryDirectory() as folder:
        saved = {
            "detector": state.detector.state_dict(),
            "average": None if state.average is None else state.average.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "epoch": state.epoch,
            "history": state.history,
        }
        torch.save(saved, Path(folder) / CHECKPOINT)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        # A name for each epoch: an upload that was cut off is overwritten by the rerun, not left behind.
        ray.train.report(numbers, checkpoint=checkpoint, checkpoint_dir_name=f"epoch_{state.epoch:04d}")


def _distribute(detector: Detector, world: int, device: torch.device) -> nn.Module:
    if world == 1:
        return detector
    # Only the running statistics of a BatchNorm that is not frozen change in training: rank 0's are everybody's.
    learns_statistics = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in detector.modules())
    return DistributedDataParallel(detector, broadcast_buffers=learns_statistics, gradient_as_bucket_view=True)


def _non_finite(
    loss: float, samples: Sequence[Sample], *, epoch: int, step: int, steps: int, rank: int, shared: bool
) -> NonFiniteLoss:
    """Names the batches whose own loss broke; the same error on every worker where all of them are here."""
    mine = (rank, loss, [sample.image_id for sample in samples])
    everyone: list[Any] = [mine]
    if shared:
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    culprits = [(r, value, ids) for r, value, ids in everyone if not math.isfinite(value)] or everyone
    named = "; ".join(f"rank {r}: loss {value:.4g} on images {', '.join(ids)}" for r, value, ids in culprits)
    return NonFiniteLoss(
        f"training diverged in epoch {epoch}, step {step} of {steps}: loss or gradient is not finite. {named}. "
        "Look at these images and their boxes, lower lr, or set clip_norm"
    )
