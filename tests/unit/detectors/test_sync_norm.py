"""BatchNorm over two workers is BatchNorm over their batches together, on CPUs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from detectors.blocks.norms import make_norm
from detectors.blocks.sync_norm import SyncBatchNorm2d, to_sync


def whole_batch() -> tuple[Tensor, Tensor]:
    """Values far from zero, where careless sums of squares lose their digits, and weights of a loss."""
    generator = torch.Generator().manual_seed(0)
    x = 300 + torch.randn(5, 3, 4, 6, generator=generator) * torch.tensor([1.0, 5, 20])[:, None, None]
    return x, torch.randn(x.shape, generator=generator)


def lively(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    return norm


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        x, weight = (part[:2] if rank == 0 else part[2:] for part in whole_batch())
        x.requires_grad_()
        norm = lively(SyncBatchNorm2d(3)).train()
        y = norm(x)
        (y * weight).sum().backward()
        evaluated = norm.eval()(x)
        result = {
            "y": y,
            "gradient": x.grad,
            "weight": norm.weight.grad,
            "bias": norm.bias.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
            "count": norm.num_batches_tracked,
            "evaluated": evaluated,
        }
        torch.save({key: value.detach() for key, value in result.items()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_workers_with_unequal_batches_equal_one_with_both(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    x, weight = whole_batch()
    x.requires_grad_()
    norm = lively(nn.BatchNorm2d(3)).train()
    y = norm(x)
    (y * weight).sum().backward()
    close: Any = torch.testing.assert_close
    close(torch.cat([first["y"], second["y"]]), y.detach(), atol=1e-4, rtol=1e-4)
    close(torch.cat([first["gradient"], second["gradient"]]), x.grad, atol=1e-4, rtol=1e-4)
    # What DDP adds up over the workers.
    for name in ("weight", "bias"):
        close(first[name] + second[name], norm.get_parameter(name).grad, atol=1e-3, rtol=1e-4)
    for part in (first, second):
        close(part["mean"], norm.running_mean)
        close(part["var"], norm.running_var)
        assert part["count"] == 1
    close(torch.cat([first["evaluated"], second["evaluated"]]), norm.eval()(x).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_a_batch_norm(training: bool) -> None:
    x, _ = whole_batch()
    plain = lively(nn.BatchNorm2d(3)).train(training)
    alone = to_sync(copy.deepcopy(plain)).train(training)
    assert torch.equal(alone(x), plain(x))
    assert alone.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(alone.state_dict().values(), plain.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_an_activation_comes_along() -> None:
    norm = lively(BatchNormAct2d(3, act_layer=nn.ReLU6)).eval()
    x, _ = whole_batch()
    torch.testing.assert_close(to_sync(norm)(x), norm(x))
    assert norm(x).max().item() == 6.0


def test_heads_can_have_it() -> None:
    assert isinstance(make_norm("sync_bn", 8), SyncBatchNorm2d)
