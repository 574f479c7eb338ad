"""The choice of classification losses by hand, against torchvision's and against plain one-hot sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from detectors.blocks.class_losses import CLASS_LOSSES, ClassLossOptions, dense_class_loss
from detectors.blocks.matchers import BACKGROUND, IGNORED

# One image, five anchors far apart, two classes; only anchor 0 shows an object, of class 1.
MATCHED = torch.tensor([[0, BACKGROUND, BACKGROUND, BACKGROUND, IGNORED]])
LABELS = torch.tensor([1])
APART = torch.tensor([[100.0 * i, 0, 100.0 * i + 10, 10] for i in range(5)])
ZERO = torch.zeros(1, 5, 2)
LN2 = math.log(2)


def loss(logits: Tensor, matched: Tensor = MATCHED, labels: Tensor = LABELS, **options: Any) -> list[float]:
    anchors = options.pop("anchors", APART)
    background = options.pop("background", "none")
    values: list[float] = dense_class_loss(
        [logits], matched, labels, ClassLossOptions(**options), anchors=anchors, background=background
    ).tolist()
    return values


def test_sigmoid_losses_of_undecided_logits_by_hand() -> None:
    # p = 1/2 everywhere: four anchors count, one of their eight elements is an object.
    assert loss(ZERO, loss="ce") == pytest.approx([8 * LN2])
    assert loss(ZERO, loss="alpha_ce", ce_alpha=0.75) == pytest.approx([(0.75 + 7 * 0.25) * LN2])
    assert loss(ZERO, loss="focal") == pytest.approx([(0.25 + 7 * 0.75) * 0.25 * LN2])


def test_softmax_losses_of_undecided_logits_by_hand() -> None:
    logits = torch.zeros(1, 5, 3)
    for background in ("first", "last"):
        assert loss(logits, background=background, loss="ce") == pytest.approx([4 * math.log(3)])
        assert loss(logits, background=background, loss="alpha_ce", ce_alpha=0.75) == pytest.approx(
            [(0.75 + 3 * 0.25) * math.log(3)]
        )
        assert loss(logits, background=background, loss="focal") == pytest.approx(
            [(0.25 + 3 * 0.75) * (2 / 3) ** 2 * math.log(3)]
        )


@pytest.mark.parametrize(("background", "object_class", "none"), [("first", 2, 0), ("last", 1, 2)])
def test_where_the_background_class_is(background: str, object_class: int, none: int) -> None:
    sure = torch.zeros(1, 5, 3)
    sure[0, 0, object_class] = 50.0
    sure[0, 1:, none] = 50.0
    assert loss(sure, background=background, loss="ce") == pytest.approx([0.0], abs=1e-6)
    wrong = sure.roll(1, -1)
    assert loss(wrong, background=background, loss="ce") == pytest.approx([4 * 50.0])


# Background anchors 1, 2, 3 with losses of class 0 alone that fall: 3, 2, 1 (class 1 is sure to be none).
FALLING = torch.tensor([[[-99.0, 0.0], [3, -99], [2, -99], [1, -99], [9, 9]]])


def bce(x: float) -> float:
    return math.log1p(math.exp(x))


def test_hard_negatives_take_the_worst_background_in_ratio() -> None:
    assert loss(FALLING, loss="hard_negative", negatives_per_positive=2) == pytest.approx([LN2 + bce(3) + bce(2)])
    assert loss(FALLING, loss="hard_negative") == pytest.approx([LN2 + bce(3) + bce(2) + bce(1)])
    empty = torch.full((1, 5), BACKGROUND)
    assert loss(FALLING, empty, LABELS[:0], loss="hard_negative") == [0.0]
    assert loss(FALLING, empty, LABELS[:0], loss="hard_negative", min_negatives=1) == pytest.approx([2 * bce(9)])


def test_ohem_takes_the_worst_anchors_whatever_they_are() -> None:
    assert loss(FALLING, loss="ohem", ohem_batch=1) == pytest.approx([bce(3)])
    assert loss(FALLING, loss="ohem", ohem_batch=2) == pytest.approx([bce(3) + bce(2)])
    assert loss(FALLING, loss="ohem", ohem_batch=512) == pytest.approx([bce(3) + bce(2) + bce(1) + LN2])


def test_ohem_drops_anchors_beside_harder_ones() -> None:
    # Anchors 1 and 2 overlap with an IoU of 2/3: the easier one, 2, goes at a limit of 0.5 and stays at 0.7.
    near = APART.clone()
    near[2] = near[1] + torch.tensor([2.0, 0, 2, 0])
    assert loss(FALLING, loss="ohem", ohem_batch=2, ohem_nms_iou=0.5, anchors=near) == pytest.approx([bce(3) + bce(1)])
    assert loss(FALLING, loss="ohem", ohem_batch=2, ohem_nms_iou=0.7, anchors=near) == pytest.approx([bce(3) + bce(2)])


def test_balanced_ohem_makes_room_for_positives() -> None:
    # The object's anchor is the easiest but one, and yet one of a batch of four.
    four: dict[str, Any] = {"loss": "ohem", "ohem_batch": 4, "ohem_balanced": True}
    assert loss(FALLING, **four) == pytest.approx([LN2 + bce(3) + bce(2) + bce(1)])
    assert loss(FALLING, **four, negatives_per_positive=1) == pytest.approx([LN2 + bce(3)])
    empty = torch.full((1, 5), BACKGROUND)
    assert loss(FALLING, empty, LABELS[:0], **four) == [0.0]
    assert loss(FALLING, empty, LABELS[:0], **four, min_negatives=2) == pytest.approx([2 * bce(9) + bce(3)])


@dataclass(frozen=True, slots=True)
class Crowd:
    """Two images, three levels, many anchors, some ignored."""

    levels: list[Tensor]
    matched: Tensor
    labels: Tensor
    anchors: Tensor


@pytest.fixture
def crowd() -> Crowd:
    generator = torch.Generator().manual_seed(3)
    levels = [torch.randn(2, n, 4, generator=generator).mul(2).requires_grad_() for n in (300, 80, 20)]
    matched = torch.full((2, 400), BACKGROUND)
    where = torch.randperm(400, generator=generator)
    matched[0, where[:6]], matched[1, where[3:12]] = torch.arange(6) // 2, torch.arange(9) // 3
    matched[:, where[20:60]] = IGNORED
    corner = torch.rand(400, 2, generator=generator) * 60
    anchors = torch.cat([corner, corner + 10 + torch.rand(400, 2, generator=generator) * 20], 1)
    return Crowd(levels, matched, torch.randint(0, 3, (15,), generator=generator), anchors)


def one_hot(crowd: Crowd) -> Tensor:
    targets = torch.zeros(2, 400, 4)
    image, anchor = (crowd.matched >= 0).nonzero(as_tuple=True)
    targets[image, anchor, crowd.labels] = 1
    return targets


def of_anchor(kind: str, background: str, x: Tensor, crowd: Crowd) -> Tensor:
    """(B, N) losses by one-hot targets."""
    targets = one_hot(crowd)
    if background == "none":
        match kind:
            case "focal":
                return sigmoid_focal_loss(x, targets, alpha=0.25, gamma=2.0).sum(-1)
            case "alpha_ce":
                weight = torch.where(targets > 0, 0.75, 0.25)
                return (F.binary_cross_entropy_with_logits(x, targets, reduction="none") * weight).sum(-1)
            case _:
                return F.binary_cross_entropy_with_logits(x, targets, reduction="none").sum(-1)
    none = 0 if background == "first" else 3
    targets = targets.roll(1, -1) if background == "first" else targets
    targets[..., none] = targets.sum(-1) == 0
    p = (x.softmax(-1) * targets).sum(-1)
    alpha = targets[..., none]
    match kind:
        case "focal":
            return -(0.25 + 0.5 * alpha) * (1 - p) ** 2 * p.log()
        case "alpha_ce":
            return -(0.75 - 0.5 * alpha) * p.log()
        case _:
            return -p.log()


def mined(kind: str, losses: Tensor, crowd: Crowd) -> Tensor:
    """(B, N) bool by the plainest loops."""
    used = crowd.matched != IGNORED
    if kind not in ("hard_negative", "ohem"):
        return used
    chosen = torch.zeros_like(used)
    for i, row in enumerate(losses.tolist()):
        order = sorted((a for a in range(400) if used[i, a]), key=lambda a: -row[a])
        if kind == "hard_negative":
            positives = [a for a in order if crowd.matched[i, a] >= 0]
            negatives = [a for a in order if crowd.matched[i, a] < 0]
            chosen[i, positives + negatives[: 3 * len(positives)]] = True
            continue
        kept: list[int] = []
        for a in order:
            if all(iou(crowd.anchors[a], crowd.anchors[b]) <= 0.5 for b in kept):
                kept.append(a)
        chosen[i, kept[:50]] = True
    return chosen


def iou(a: Tensor, b: Tensor) -> float:
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    inside = float(sides.prod())
    return inside / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - inside)


@pytest.mark.parametrize("background", ["none", "first", "last"])
@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_losses_and_gradients_equal_the_plain_ones(kind: str, background: str, crowd: Crowd) -> None:
    options = ClassLossOptions(loss=kind, ohem_batch=50)  # type: ignore[arg-type]
    got = dense_class_loss(
        crowd.levels,
        crowd.matched,
        crowd.labels,
        options,
        anchors=crowd.anchors,
        background=background,  # type: ignore[arg-type]
    )
    plain = of_anchor(kind, background, torch.cat(crowd.levels, 1), crowd)
    expected = (plain * mined(kind, plain.detach(), crowd)).sum(1)
    torch.testing.assert_close(got, expected)
    assert bool((expected > 0).all())
    weights = torch.tensor([1.0, 0.3])
    gradients = torch.autograd.grad((got * weights).sum(), crowd.levels)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), crowd.levels)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_huge_logits_give_finite_losses_and_gradients(kind: str) -> None:
    logits = torch.tensor([[[1e4, -1e4], [1e4, 0], [-1e4, 0], [0, 0], [1e4, 1e4]]], requires_grad=True)
    options = ClassLossOptions(loss=kind)  # type: ignore[arg-type]
    total = dense_class_loss([logits], MATCHED, LABELS, options, anchors=APART).sum()
    total.backward()
    assert math.isfinite(total.item()) and logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "bce"}, "loss is 'bce'; choose one of focal"),
        ({"ce_alpha": 1.5}, r"ce_alpha is 1\.5"),
        ({"ohem_batch": 0}, "ohem_batch is 0"),
        ({"negatives_per_positive": -1.0}, r"negatives_per_positive is -1\.0"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassLossOptions(**wrong)
