"""Optimiser, learning-rate schedule, moving average and arithmetic of a training run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detectors.optimize import has_fast_bfloat16
from workers.train_config import TrainConfig


def make_optimizer(detector: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that learn; norms and biases (one dimension or none) are not decayed.

    Every group carries ``lr_ratio``, its learning rate relative to the schedule's.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            in_backbone = "backbone" in name.split(".")
            groups.setdefault((in_backbone, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ValueError(f"no parameter of {type(detector).__name__} learns; unfreeze some of it")
    settings = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr_ratio": config.backbone_lr_ratio if in_backbone else 1.0,
        }
        for (in_backbone, decayed), parameters in groups.items()
    ]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(settings, lr=config.lr)
        case "sgd":
            return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def learning_rate(step: int, *, total_steps: int, lr: float, warmup_steps: int, final_lr_ratio: float = 0.01) -> float:
    """Linear warm-up to ``lr``, then half a cosine down to ``lr * final_lr_ratio`` at the last step.

    Args:
        step: 0 is the first. A warm-up longer than a quarter of the run is cut to that.
    """
    warmup = min(warmup_steps, max(1, total_steps // 4))
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - 1 - warmup)
    return lr * (final_lr_ratio + (1 - final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]


@torch.no_grad()
def update_average(average: nn.Module, detector: nn.Module, *, decay: float, step: int) -> None:
    """Moves ``average`` towards ``detector``: average = decay * average + (1 - decay) * detector.

    Early on the decay is smaller, (1 + step) / (10 + step), or the random start would weigh in for long.
    """
    decay = min(decay, (1 + step) / (10 + step))
    floats: tuple[list[Tensor], list[Tensor]] = ([], [])
    for ours, theirs in zip(_tensors(average), _tensors(detector), strict=True):
        if ours.is_floating_point():
            floats[0].append(ours)
            floats[1].append(theirs)
        else:
            ours.copy_(theirs)
    torch._foreach_lerp_(floats[0], floats[1], 1 - decay)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def autocast_for(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast where it was asked for, or where "auto" finds it faster: where the hardware has it."""
    match config.precision:
        case "float32":
            use = False
        case "bfloat16":
            use = True
        case "auto":
            use = has_fast_bfloat16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16) if use else contextlib.nullcontext()
