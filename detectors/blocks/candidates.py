"""The few (anchor, class) pairs of a dense head's raw outputs that may become detections.

A head says something of hundreds of thousands of pairs and hundreds matter, so what costs is to look at all of them
once. They are compared as they lie in memory, as raw outputs, in groups of a few: one vectorised maximum over groups
tells which need a closer look, and only for those are scores ever computed.

Shape legend: B images, n anchors of a level, N of all, K values an anchor (its classes, and background with softmax),
M = n * K, S candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from detectors.blocks.heads import DenseOutputs

Activation = Literal["sigmoid", "softmax", "identity"]
Background = Literal["none", "first", "last"]
TopkOf = Literal["level", "image", "class"]
LabelsPerAnchor = Literal["all", "best"]

_GROUP = 8
"""Pairs that share a maximum: enough to make all that follows cheap, few enough to stream through."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Pairs whose score exceeds the threshold, by image.

    Attributes:
        image: (S,) int64, ascending.
        anchor: (S,) int64 in 0..N-1, over all levels.
        label: (S,) int64 in 0..C-1.
        score: (S,) float32.
        deltas: (S, 4) float32, what the head regressed for the anchor.
    """

    image: Tensor
    anchor: Tensor
    label: Tensor
    score: Tensor
    deltas: Tensor


def find_candidates(
    outputs: DenseOutputs,
    *,
    score_threshold: float,
    topk: int,
    activation: Activation = "sigmoid",
    background: Background = "none",
    topk_of: TopkOf = "level",
    labels_per_anchor: LabelsPerAnchor = "all",
    class_thresholds: Sequence[float] = (),
) -> Candidates:
    """Every pair that scores more than the threshold, at most ``topk`` a level, image or class.

    Args:
        outputs: of the head; with ``objectness``, scores are its sigmoid times those of the classes.
        score_threshold: scores must exceed this.
        topk, topk_of: the best that are kept, of each level of an image, of each image, or of each class of an image.
        activation: from logits to scores: ``sigmoid`` of each class, ``softmax`` over classes and background, or
            ``identity`` where the outputs are scores.
        background: where among the K values of softmax background is.
        labels_per_anchor: an anchor is a candidate for each class that passes, or for its best class alone.
        class_thresholds: (C,) that scores of each class must exceed as well; what does not takes no place among
            ``topk``. Empty: ``score_threshold`` alone.
    """
    of_class = None
    if class_thresholds:
        of_class = torch.tensor(class_thresholds, device=outputs.logits[0].device)
        if activation != "softmax" and outputs.objectness is None:
            outputs = replace(
                outputs, logits=[_cut(x, of_class, activation, labels_per_anchor) for x in outputs.logits]
            )
    levels = _search_levels(outputs, score_threshold, topk, activation, background, topk_of, labels_per_anchor)
    first, found = 0, []
    for (image, anchor, label, score), deltas in zip(levels, outputs.deltas):
        found.append((image, anchor + first, label, score, deltas[image, anchor]))
        first += deltas.shape[1]
    image, anchor, label, score, deltas = (torch.cat(parts) for parts in zip(*found))
    match topk_of:
        case "level":
            counts = torch.tensor([len(part[0]) for part in found], device=image.device)
            level = torch.repeat_interleave(counts, output_size=len(image))
            group = image * len(found) + level
        case "image":
            group = image
        case "class":
            group = image * outputs.logits[0].shape[-1] + label
    if of_class is not None:
        passes = score > of_class[label]
        image, anchor, label, score, deltas, group = (x[passes] for x in (image, anchor, label, score, deltas, group))
    best = best_of_groups(score, group, topk)
    best = best[score[best] > score_threshold]  # exact, now that there are few
    return Candidates(
        image=image[best], anchor=anchor[best], label=label[best], score=score[best], deltas=deltas[best].float()
    )


def best_of_groups(scores: Tensor, group: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` best of each group, by ascending group, within it by descending score, ties by index.

    Args:
        scores: (S,).
        group: (S,) int64.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    ordered = group[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return order[rank < k]


_Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one level: image, anchor of the level, label, score; (S,) each."""


def _cut(logits: Tensor, of_class: Tensor, activation: Activation, labels_per_anchor: LabelsPerAnchor) -> Tensor:
    """Logits (B, n, C) without those below their class's threshold: they must not raise the floor for other classes.

    An anchor's best class stays its best, and if it does not pass the anchor has none.
    """
    if labels_per_anchor == "best":
        best, label = logits.max(-1, keepdim=True)
        return logits.masked_fill(~(_activate(best, activation) > of_class[label]), -math.inf)
    return logits.masked_fill(~(_activate(logits, activation) > of_class), -math.inf)


def _search_levels(
    outputs: DenseOutputs,
    score_threshold: float,
    topk: int,
    activation: Activation,
    background: Background,
    topk_of: TopkOf,
    labels_per_anchor: LabelsPerAnchor,
) -> list[_Found]:
    """Candidates of each level and some that the threshold will still refuse."""
    if activation == "softmax":
        found = [_search_softmax(logits, score_threshold, background) for logits in outputs.logits]
    elif outputs.objectness is not None:
        found = [
            _search_objects(logits, objectness, score_threshold, activation)
            for logits, objectness in zip(outputs.logits, outputs.objectness)
        ]
    else:
        least = _safe_logit(score_threshold) if activation == "sigmoid" else score_threshold
        if labels_per_anchor == "best":
            best = [logits.amax(-1) for logits in outputs.logits]
            return [
                (image, anchor, logits[image, anchor].argmax(-1), _activate(value, activation))
                for logits, (image, anchor, value) in zip(outputs.logits, _search(best, least, topk, topk_of))
            ]
        pairs = _search([logits.flatten(1) for logits in outputs.logits], least, topk, topk_of)
        classes = outputs.logits[0].shape[-1]
        return [
            (image, place // classes, place % classes, _activate(value, activation)) for image, place, value in pairs
        ]
    return [_best_label(level) for level in found] if labels_per_anchor == "best" else found


def _search(levels: Sequence[Tensor], least: float, topk: int, topk_of: TopkOf) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Image, place and value (S,) of what is at least ``least`` in each level's (B, M), and enough for the top-k.

    Where more than ``topk`` groups pass, the k-th best maximum of a group takes the place of ``least``: at least k
    values are as large, so the best k are all among them.
    """
    # M in rows of M / 8: a maximum over rows is vectorised, streams through memory and copies nothing.
    grouped = [level.unflatten(1, (math.gcd(level.shape[1], _GROUP), -1)) for level in levels]
    maxima = [level.amax(1) for level in grouped]
    floors = [level.new_full((len(level), 1), least) for level in maxima]
    places = [_passing(level, floor) for level, floor in zip(maxima, floors)]
    match topk_of:
        case "level":
            crowded = [[at] for at, place in enumerate(places) if _count_most([place]) > topk]
        case "image":
            crowded = [list(range(len(levels)))] if _count_most(places) > topk else []
        case "class":
            crowded = []
    for together in crowded:
        floor = _raised_floor([maxima[at] for at in together], floors[together[0]], topk)
        for at in together:
            floors[at], places[at] = floor, _passing(maxima[at], floor)
    found = []
    for level, floor, (image, column) in zip(grouped, floors, places):
        members = level[image, :, column]
        row, member = (members >= floor[image]).nonzero(as_tuple=True)
        found.append((image[row], member * level.shape[2] + column[row], members[row, member]))
    return found


def _passing(maxima: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Image and group of the maxima (B, groups) that a floor (B, 1) lets pass; NaN hides nothing beside it."""
    image, group = (~(maxima < floor)).nonzero(as_tuple=True)
    return image, group


def _count_most(places: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Groups that pass, of the image of which most do."""
    images = torch.cat([image for image, _ in places])
    return int(images.bincount().amax()) if len(images) else 0


def _raised_floor(maxima: Sequence[Tensor], floor: Tensor, topk: int) -> Tensor:
    """(B, 1) value that at least ``topk`` of each image's maxima (B, groups) reach, or the floor if fewer do."""
    best = torch.cat(list(maxima), 1).topk(topk, dim=1, sorted=False).values
    return torch.fmax(best.amin(1, keepdim=True), floor)


def _search_objects(logits: Tensor, objectness: Tensor, score_threshold: float, activation: Activation) -> _Found:
    """Of what is an object with more than the threshold; no class makes its score larger."""
    image, anchor = (objectness >= _safe_logit(score_threshold)).nonzero(as_tuple=True)
    scores = _activate(logits[image, anchor], activation) * objectness[image, anchor].float().sigmoid()[:, None]
    return _pairs(image, anchor, scores, score_threshold)


def _search_softmax(logits: Tensor, score_threshold: float, background: Background) -> _Found:
    """Of what beats background: p > t needs p / (p + background) > t, a difference of two logits."""
    if background == "first":
        behind, classes = logits[..., 0], slice(1, None)
    else:
        behind, classes = logits[..., -1], slice(0, -1)
    lead = logits[..., classes].amax(-1) - behind
    image, anchor = (lead >= _safe_logit(score_threshold)).nonzero(as_tuple=True)
    scores = logits[image, anchor].float().softmax(-1)[:, classes]
    return _pairs(image, anchor, scores, score_threshold)


def _pairs(image: Tensor, anchor: Tensor, scores: Tensor, score_threshold: float) -> _Found:
    """From (S, C) scores of anchors to those of pairs."""
    row, label = (scores > score_threshold).nonzero(as_tuple=True)
    return image[row], anchor[row], label, scores[row, label]


def _best_label(found: _Found) -> _Found:
    """The best class alone of each anchor."""
    image, anchor, label, score = found
    if len(score) == 0:
        return found
    best = best_of_groups(score, image * (anchor.amax() + 1) + anchor, 1)
    return image[best], anchor[best], label[best], score[best]


def _activate(values: Tensor, activation: Activation) -> Tensor:
    return values.float().sigmoid() if activation == "sigmoid" else values.float()


def _safe_logit(probability: float) -> float:
    """A logit just below that of ``probability``: rounding may let a few more pass, never fewer."""
    if probability <= 0:
        return -math.inf
    return math.log(probability / (1 - probability)) - 1e-3
