"""Which anchors are sampled: torchvision's sample from the same seed, and counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detectors.blocks.matchers import BACKGROUND, IGNORED
from detectors.blocks.samplers import balanced, hard_negatives, ohem


def matched_idxs(positives: int, negatives: int, ignored: int) -> Tensor:
    """One row with these counts, mixed up."""
    values = [3] * positives + [BACKGROUND] * negatives + [IGNORED] * ignored
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(len(values)))
    return torch.tensor(values)[order]


@pytest.mark.parametrize("counts", [(40, 300, 10), (3, 300, 47), (200, 20, 130), (0, 350, 0)])
def test_balanced_draws_what_torchvision_draws(counts: tuple[int, int, int]) -> None:
    matched = torch.stack([matched_idxs(*counts), matched_idxs(*counts).flip(0)])
    theirs = BalancedPositiveNegativeSampler(64, 0.25)
    torch.manual_seed(5)
    labels = torch.where(matched >= 0, 1, torch.where(matched == BACKGROUND, 0, -1))
    positive, negative = theirs(list(labels))
    expected = torch.stack([p.bool() | n.bool() for p, n in zip(positive, negative)])
    torch.manual_seed(5)
    assert torch.equal(balanced(matched, batch_size=64, positive_fraction=0.25), expected)
    seeded = balanced(matched, batch_size=64, positive_fraction=0.25, generator=torch.Generator().manual_seed(5))
    assert torch.equal(seeded, expected)


def test_background_fills_the_place_of_missing_positives() -> None:
    chosen = balanced(matched_idxs(2, 300, 5)[None], batch_size=64, positive_fraction=0.5)
    matched = matched_idxs(2, 300, 5)[None][chosen]
    assert (matched >= 0).sum() == 2 and (matched == BACKGROUND).sum() == 62


def test_balanced_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        balanced(matched_idxs(1, 1, 1)[None], batch_size=0, positive_fraction=0.5)


def test_hard_negatives_are_those_of_torchvisions_ssd() -> None:
    matched = torch.stack([matched_idxs(40, 300, 10), matched_idxs(0, 340, 10), matched_idxs(200, 20, 130)])
    losses = torch.rand(matched.shape, generator=torch.Generator().manual_seed(0))
    # torchvision's rule for images without ignored anchors, with those put out of the way.
    negatives = losses.clone()
    negatives[matched != BACKGROUND] = -torch.inf
    ranks = negatives.argsort(1, descending=True).argsort(1)
    wanted = torch.minimum(3 * (matched >= 0).sum(1), (matched == BACKGROUND).sum(1))
    expected = (matched >= 0) | (ranks < wanted[:, None])
    assert torch.equal(hard_negatives(losses, matched), expected)
    assert hard_negatives(losses, matched, min_negatives=7).sum(1).tolist() == [160, 7, 220]


def test_ohem_is_exact_however_far_it_must_look() -> None:
    """All of the hardest 600 lie on one spot, so that the first prefixes give one survivor."""
    anchors = torch.cat(
        [torch.tensor([[0.0, 0, 10, 10]]).repeat(600, 1), torch.rand(50, 4) + 100 * torch.arange(50)[:, None]]
    )
    anchors[600:, 2:] = anchors[600:, :2] + 5
    losses = torch.linspace(1, 0, 650)[None]
    matched = torch.full((1, 650), BACKGROUND)
    chosen = ohem(losses, matched, anchors, batch_size=4, nms_iou=0.5)
    assert chosen[0].nonzero().squeeze(1).tolist() == [0, 600, 601, 602]
    # In ratio: the only positive is the easiest of all.
    matched[0, 649] = 0
    chosen = ohem(losses, matched, anchors, batch_size=4, nms_iou=0.5, negatives_per_positive=3.0)
    assert chosen[0].nonzero().squeeze(1).tolist() == [0, 600, 601, 649]


def test_in_ratio_nms_is_among_positives_and_among_background() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [0, 0, 9, 9], [50, 50, 60, 60]])
    losses = torch.tensor([[5.0, 4, 3, 2, 1]])
    matched = torch.tensor([[BACKGROUND, 0, 0, BACKGROUND, BACKGROUND]])
    chosen = ohem(losses, matched, anchors, batch_size=8, nms_iou=0.5, negatives_per_positive=3.0)
    assert chosen[0].tolist() == [True, True, False, False, True]
    assert ohem(losses, matched, anchors, batch_size=8, nms_iou=0.5)[0].tolist() == [True, False, False, False, True]


def test_ignored_anchors_are_never_sampled() -> None:
    matched = torch.full((1, 30), IGNORED)
    losses, anchors = torch.rand(1, 30), torch.rand(30, 4).cumsum(1)
    assert not balanced(matched, batch_size=8, positive_fraction=0.5).any()
    assert not hard_negatives(losses, matched, min_negatives=5).any()
    for ratio in (None, 3.0):
        assert not ohem(losses, matched, anchors, batch_size=8, nms_iou=0.5, negatives_per_positive=ratio).any()
