"""What is looked at in groups, on logits, with raised floors, against scores of everything one after the other."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.blocks.candidates import best_of_groups, find_candidates
from detectors.blocks.heads import DenseOutputs

IMAGES, CLASSES = 2, 3
# Maps whose sizes are not multiples of a group, down to one position.
SHAPES = ((4, 8), (3, 3), (1, 1))


def outputs(seed: int = 0, *, extra: int = 0, objectness: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def maps(values: int, shift: float) -> list[Tensor]:
        return [(torch.randn(IMAGES, 2 * h * w, values, generator=generator) * 2 + shift).to(dtype) for h, w in SHAPES]

    return DenseOutputs(
        logits=maps(CLASSES + extra, -2.0),
        deltas=maps(4, 0.0),
        shapes=SHAPES,
        objectness=[o.squeeze(-1) for o in maps(1, -1.0)] if objectness else None,
    )


def scores_of(found: DenseOutputs, activation: str, background: str) -> list[Tensor]:
    """(B, n, C) scores of each level, all of them."""
    match activation:
        case "sigmoid":
            scores = [x.float().sigmoid() for x in found.logits]
        case "softmax":
            rest = slice(1, None) if background == "first" else slice(0, -1)
            scores = [x.float().softmax(-1)[..., rest] for x in found.logits]
        case _:
            scores = [x.float() for x in found.logits]
    if found.objectness is not None:
        scores = [s * o.float().sigmoid()[..., None] for s, o in zip(scores, found.objectness)]
    return scores


Pair = tuple[int, int, int]  # image, anchor, label


def naive(
    scores: list[Tensor],
    threshold: float,
    topk: int,
    topk_of: str,
    labels_per_anchor: str,
    of_class: tuple[float, ...] = (0.0,) * CLASSES,
) -> dict[Pair, float]:
    groups: dict[tuple[int, ...], list[tuple[float, Pair]]] = {}
    first = 0
    for level, of_level in enumerate(scores):
        table = of_level.tolist()
        for image, anchor, label in product(*map(range, of_level.shape)):
            score = table[image][anchor][label]
            if labels_per_anchor == "best" and score < max(table[image][anchor]):
                continue
            group = {"level": (image, level), "image": (image,), "class": (image, label)}[topk_of]
            if score > max(threshold, of_class[label]):
                groups.setdefault(group, []).append((score, (image, first + anchor, label)))
        first += of_level.shape[1]
    return {pair: score for group in groups.values() for score, pair in sorted(group, reverse=True)[:topk]}


KINDS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid times objectness": {"objectness": True},
    "softmax, background first": {"activation": "softmax", "background": "first"},
    "softmax, background last": {"activation": "softmax", "background": "last"},
    "identity": {"activation": "identity"},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("topk_of", ["level", "image", "class"])
@pytest.mark.parametrize("labels_per_anchor", ["all", "best"])
@pytest.mark.parametrize(("threshold", "topk"), [(0.3, 1000), (0.05, 7), (0.0, 20), (0.99, 5)])
def test_equals_scores_of_everything(
    kind: dict[str, Any], topk_of: Any, labels_per_anchor: Any, threshold: float, topk: int
) -> None:
    activation, background = kind.get("activation", "sigmoid"), kind.get("background", "none")
    raw = outputs(extra=activation == "softmax", objectness=kind.get("objectness", False))
    expected = naive(scores_of(raw, activation, background), threshold, topk, topk_of, labels_per_anchor)
    found = find_candidates(
        raw,
        score_threshold=threshold,
        topk=topk,
        activation=activation,
        background=background,
        topk_of=topk_of,
        labels_per_anchor=labels_per_anchor,
    )
    pairs = list(zip(found.image.tolist(), found.anchor.tolist(), found.label.tolist()))
    assert len(pairs) == len(set(pairs)) and set(pairs) == set(expected)
    assert expected or threshold == 0.99  # which is more than many of these reach
    torch.testing.assert_close(found.score, torch.tensor([expected[p] for p in pairs]), atol=1e-6, rtol=1e-6)
    assert found.image.tolist() == sorted(found.image.tolist())
    deltas = torch.cat(raw.deltas, 1)
    assert torch.equal(found.deltas, deltas[found.image, found.anchor])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("topk_of", ["level", "image", "class"])
@pytest.mark.parametrize("labels_per_anchor", ["all", "best"])
def test_what_its_class_refuses_takes_no_place_among_the_best(
    kind: dict[str, Any], topk_of: Any, labels_per_anchor: Any
) -> None:
    activation, background = kind.get("activation", "sigmoid"), kind.get("background", "none")
    raw = outputs(extra=activation == "softmax", objectness=kind.get("objectness", False))
    of_class = (0.9, 0.02, 0.3)
    expected = naive(scores_of(raw, activation, background), 0.02, 4, topk_of, labels_per_anchor, of_class)
    found = find_candidates(
        raw,
        score_threshold=0.02,
        topk=4,
        activation=activation,
        background=background,
        topk_of=topk_of,
        labels_per_anchor=labels_per_anchor,
        class_thresholds=of_class,
    )
    assert {*zip(found.image.tolist(), found.anchor.tolist(), found.label.tolist())} == set(expected)
    assert expected


def test_a_score_at_the_threshold_is_refused_and_the_next_float_is_not() -> None:
    logit = torch.full((1, 1, 1), 0.7)
    score = float(logit.sigmoid())
    below = float(torch.nextafter(torch.tensor(score), torch.tensor(0.0)))
    raw = DenseOutputs(logits=[logit], deltas=[torch.zeros(1, 1, 4)], shapes=((1, 1),))
    assert len(find_candidates(raw, score_threshold=score, topk=5).score) == 0
    assert len(find_candidates(raw, score_threshold=below, topk=5).score) == 1


@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.3, 0.5, 0.7])
def test_bfloat16_loses_nobody(threshold: float) -> None:
    """The threshold is rounded with the logits; scores are computed from them in float32 all the same."""
    raw = outputs(3, dtype=torch.bfloat16)
    expected = sum(int((s > threshold).sum()) for s in scores_of(raw, "sigmoid", "none"))
    found = find_candidates(raw, score_threshold=threshold, topk=10_000)
    assert len(found.score) == expected > 0 and found.score.dtype == found.deltas.dtype == torch.float32


def test_nan_hides_nothing_beside_it() -> None:
    raw = outputs(1)
    raw.logits[0][:, ::3, 0] = math.nan
    scores = torch.cat(scores_of(raw, "sigmoid", "none"), 1)
    for topk in (10_000, 10):
        found = find_candidates(raw, score_threshold=0.3, topk=topk, topk_of="image")
        assert len(found.score) == (scores > 0.3).flatten(1).sum(1).clamp(max=topk).sum()


def test_equal_scores_fill_the_topk_and_no_more() -> None:
    raw = DenseOutputs(logits=[torch.zeros(2, 64, 3)], deltas=[torch.zeros(2, 64, 4)], shapes=((8, 8),))
    found = find_candidates(raw, score_threshold=0.05, topk=10)
    assert torch.bincount(found.image).tolist() == [10, 10]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_nothing_is_found_in_nothing(kind: dict[str, Any]) -> None:
    activation, background = kind.get("activation", "sigmoid"), kind.get("background", "none")
    raw = outputs(extra=activation == "softmax", objectness=kind.get("objectness", False))
    for level in raw.logits:
        level.fill_(-30.0)
        level[..., {"first": 0, "last": -1}.get(background, 0)] += 0 if background == "none" else 60
    found = find_candidates(raw, score_threshold=0.05, topk=10, activation=activation, background=background)
    assert found.score.shape == (0,) and found.deltas.shape == (0, 4)


def test_best_of_groups() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.7, 0.5])
    group = torch.tensor([2, 0, 2, 0, 0, 2])
    assert best_of_groups(scores, group, 2).tolist() == [1, 4, 0, 2]  # ties by index
    assert best_of_groups(scores, group, 10).tolist() == [1, 4, 3, 0, 2, 5]
