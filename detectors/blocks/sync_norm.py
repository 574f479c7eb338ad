"""BatchNorm over the batches of all workers, on any device.

torch's own SyncBatchNorm refuses to work on CPUs. This one takes part in whatever process group the training has, and
is a plain BatchNorm2d wherever there is none: in one process, and in prediction.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch statistics, and their gradients, are those of all workers together.

    All workers must call it equally often, as they do when they train copies of one model. It is a BatchNorm2d by
    type and by its tensors' names, so that weights, folding and saving know it.

    Args:
        channels: C of the (B, C, H, W) input.
        eps, momentum: see BatchNorm2d.
        act: activation behind it, as timm's BatchNorms bring theirs along.
    Source: Peng et al. 2017, 1711.07240, section 3.3.
    """

    def __init__(
        self, channels: int, *, eps: float = 1e-5, momentum: float | None = 0.1, act: nn.Module | None = None
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if alone or not self.training:
            return self.act(super().forward(x))
        with torch.autocast(x.device.type, enabled=False):
            mean, variance, count = _shared_statistics(x.float())
            self._remember(mean.detach(), variance.detach(), count)
            scale = torch.rsqrt(variance + self.eps) * self.weight
            shift = self.bias - mean * scale
            y = torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None])
        return self.act(y.to(x.dtype))

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Moves the running statistics as BatchNorm2d does, towards the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), part)


def _shared_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and biased variance (C,) over all workers' batches, and how many values of a channel they have."""
    count = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    mean, variance = mean.double(), variance.double()
    # In float64 the difference of squares loses nothing that float32 could hold.
    moments = torch.cat([mean * count, (variance + mean**2) * count, mean.new_full((1,), count)])
    total: Tensor = _SumOverWorkers.apply(moments)
    mean, square = (total[:-1] / total[-1]).chunk(2)
    return mean.float(), (square - mean**2).clamp(min=0).float(), total[-1].detach().float()


class _SumOverWorkers(torch.autograd.Function):
    """Sum of every worker's tensor; what each sends in has the gradient of all losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def to_sync(norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """A BatchNorm2d, or one of timm's with an activation, with the same values, synchronised."""
    act = getattr(norm, "act", None)
    synced = SyncBatchNorm2d(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, act=act if isinstance(act, nn.Module) else None
    ).to(norm.weight.device if norm.affine else "cpu")
    synced.load_state_dict(norm.state_dict())
    return synced.train(norm.training)
