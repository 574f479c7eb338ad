"""A detector beside its oracle: lively weights, the same input for both, and detections in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detectors.structures import Batch, Prediction, Target

TARGETS = {"objects": (2, 3), "one image empty": (2, 0), "both images empty": (0, 0)}


@torch.no_grad()
def freeze_lively_norms(model: nn.Module) -> None:
    """BatchNorms frozen with statistics that are not trivial."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
            frozen.load_state_dict(lively_statistics(module.num_features, gain=0.3 if name.endswith("bn3") else 1.0))
            model.set_submodule(name, frozen)


def lively_statistics(channels: int, *, gain: float) -> dict[str, Tensor]:
    """Of a BatchNorm; the last one of a residual block needs a small gain, or 16 blocks would explode."""
    return {
        "weight": gain * (1 + 0.1 * torch.randn(channels)),
        "bias": 0.1 * torch.randn(channels),
        "running_mean": 0.1 * torch.randn(channels),
        "running_var": 1 + 0.2 * torch.rand(channels),
    }


def batch_of_noise(sizes: Sequence[tuple[int, int]]) -> Batch:
    """Normalised images of several (height, width), padded to the largest."""
    height, width = (max(side) for side in zip(*sizes))
    padded = torch.zeros(len(sizes), 3, height, width)
    for canvas, (h, w) in zip(padded, sizes):
        canvas[:, :h, :w] = torch.randn(3, h, w)
    each = torch.tensor(sizes)
    return Batch(images=padded.to(memory_format=torch.channels_last), sizes=each, original_sizes=each)


def make_targets(
    counts: Sequence[int], *, num_classes: int = 7, corner: float = 60, least: float = 15, spread: float = 50
) -> list[Target]:
    """So many objects of each image: left and top below ``corner``, sides of ``least`` to ``least + spread`` pixels."""
    generator = torch.Generator().manual_seed(1)
    targets = []
    for n in counts:
        low = torch.rand(n, 2, generator=generator) * corner
        targets.append(
            Target(
                boxes=torch.cat([low, low + least + torch.rand(n, 2, generator=generator) * spread], 1),
                labels=torch.randint(0, num_classes, (n,), generator=generator),
                iscrowd=torch.zeros(n, dtype=torch.bool),
            )
        )
    return targets


def canonical(labels: Tensor, boxes: Tensor) -> Tensor:
    """An order that does not depend on scores, so that near-ties may swap."""
    keys = [(int(label), *(round(v, 1) for v in box)) for label, box in zip(labels, boxes.tolist())]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)


def assert_same_detections(
    found: Prediction, boxes: Tensor, labels: Tensor, scores: Tensor, *, least: int = 50
) -> tuple[Tensor, Tensor]:
    """As many (``least`` at least), scores within 1e-5, boxes within 1e-3 px; returns both in the same order."""
    assert len(found) == len(scores) >= least
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=0)
    order, their_order = canonical(found.labels, found.boxes), canonical(labels, boxes)
    assert torch.equal(found.labels[order], labels[their_order])
    torch.testing.assert_close(found.boxes[order], boxes[their_order], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores[order], scores[their_order], atol=1e-5, rtol=0)
    return order, their_order
