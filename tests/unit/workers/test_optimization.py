"""Learning rate, parameter groups and moving average, by hand-computed values."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from workers.optimization import learning_rate, make_optimizer, set_learning_rate, update_average
from workers.train_config import TrainConfig


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
        self.head = nn.Conv2d(4, 2, 1)
        self.register_buffer("count", torch.tensor(0))


def config(**changes):
    return TrainConfig(dataset="d", out="o", **changes)


@pytest.mark.parametrize(("kind", "of"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_norms_and_biases_are_not_decayed_and_the_backbone_has_its_own_rate(kind, of):
    module = Small()
    module.head.bias.requires_grad_(False)
    optimizer = make_optimizer(module, config(optimizer=kind, weight_decay=0.1, backbone_lr_ratio=0.5))
    assert isinstance(optimizer, of)
    groups = {
        name: (group["weight_decay"], group["lr_ratio"])
        for name, parameter in module.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is p for p in group["params"])
    }
    assert groups == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.0, 0.5),
        "backbone.1.weight": (0.0, 0.5),
        "backbone.1.bias": (0.0, 0.5),
        "head.weight": (0.1, 1.0),
    }
    set_learning_rate(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.2}


def test_sgd_without_momentum_is_plain():
    (group, *_) = make_optimizer(Small(), config(optimizer="sgd", momentum=0.0)).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


def test_a_detector_that_cannot_learn_is_an_error():
    with pytest.raises(ValueError, match="no parameter of Small learns"):
        make_optimizer(Small().requires_grad_(False), config())


def test_the_rate_warms_up_linearly_and_falls_by_a_cosine_to_its_end():
    rates = [learning_rate(s, total_steps=101, lr=1.0, warmup_steps=20, final_lr_ratio=0.1) for s in range(101)]
    assert rates[:3] == pytest.approx([1 / 21, 2 / 21, 3 / 21])
    assert max(rates) == rates[20] == 1.0
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[20:]))


def test_a_short_run_still_reaches_its_rate():
    rates = [learning_rate(s, total_steps=8, lr=1.0, warmup_steps=500) for s in range(8)]
    assert rates[2] == 1.0 and rates[-1] == pytest.approx(0.01)
    assert learning_rate(0, total_steps=1, lr=1.0, warmup_steps=5) == pytest.approx(0.5)


def test_the_average_follows_the_weights():
    torch.manual_seed(0)
    average, module = Small(), Small()
    module.count += 7
    before, target = average.head.weight.clone(), module.head.weight
    update_average(average, module, decay=0.9, step=10**6)
    assert torch.allclose(average.head.weight, 0.9 * before + 0.1 * target)
    assert average.count == 7
    early = Small()
    before = early.head.weight.clone()
    update_average(early, module, decay=0.9, step=0)
    assert torch.allclose(early.head.weight, 0.1 * before + 0.9 * target)
