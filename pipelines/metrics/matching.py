"""COCO's greedy matching, all images and classes at once.

Within an image and class the detections choose one after the other, the highest score first, among the truths that
no better one has taken: a truth that counts before one that is ignored, then the one that overlaps most, of equal ones
the later. A crowd may be chosen by any number of detections, any other truth by one. For every IoU threshold and every
range of area the choice is made anew, because truths outside a range are ignored in it.

Legend: P pairs, D detections that have a pair, M truths, A area ranges, T IoU thresholds.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.similarity import Pairs
from pipelines.records import BoolArray, FloatArray, IntArray

UNMATCHED = -1
_ALMOST_ONE = 1 - 1e-10  # a threshold of 1 means equal boxes, up to rounding; pycocotools's number


def least_iou(thresholds: FloatArray) -> float:
    """What a pair must reach to matter to any threshold."""
    return float(min(thresholds.min(), _ALMOST_ONE))


def match_pairs(
    pairs: Pairs, groups: IntArray, ranks: IntArray, ignored: BoolArray, iscrowd: BoolArray, thresholds: FloatArray
) -> tuple[IntArray, NDArray[np.int32]]:
    """Who takes whom.

    Args:
        pairs: that reach ``least_iou``, of one image and class each.
        groups, ranks: of every detection: image and class as one number, and its place in there by score.
        ignored: (M, A) truths that do not count.
        iscrowd: (M,) truths that any number of detections may take.
        thresholds: (T,) ascending.
    Returns:
        rows: (D,) detections that have a pair, ascending.
        matched: (D, A, T) the truth that each takes, or -1.
    """
    rows, of_pair = np.unique(pairs.found, return_inverse=True)
    areas = ignored.shape[1]
    matched = np.full((len(rows), areas, len(thresholds)), UNMATCHED, np.int32)
    if not len(rows):
        return rows, matched
    turn = _turns(groups[rows], ranks[rows])[of_pair]
    order = np.lexsort((pairs.truths, pairs.iou, of_pair, turn))
    turn, of_pair = turn[order], of_pair[order]
    truths, iou = pairs.truths[order], pairs.iou[order]
    reached = iou[:, None] >= np.minimum(thresholds, _ALMOST_ONE)
    # The later of a detection's pairs is the better one; one that counts beats all that do not.
    counts = ~ignored[truths]
    value = np.arange(1, len(truths) + 1, dtype=np.int64)[:, None] + np.where(counts, len(truths) + 1, 0)
    free = np.ones((len(ignored), areas, len(thresholds)), np.bool_)
    bounds = np.append(np.flatnonzero(np.diff(turn, prepend=-1)), len(turn))
    for start, stop in pairwise(bounds):
        block = slice(start, stop)
        possible = free[truths[block]] & reached[block, None, :]
        offers = np.where(possible, value[block, :, None], 0)
        begins = np.flatnonzero(np.diff(of_pair[block], prepend=-1))
        best = np.maximum.reduceat(offers, begins, axis=0)
        chosen = np.where(best > len(truths) + 1, best - len(truths) - 1, best) - 1
        taken = np.where(chosen >= 0, truths[chosen], UNMATCHED)
        matched[of_pair[start + begins]] = taken
        _, area, threshold = places = np.nonzero(taken >= 0)
        targets = taken[places]
        kept = ~iscrowd[targets]
        free[targets[kept], area[kept], threshold[kept]] = False
    return rows, matched


def _turns(groups: IntArray, ranks: IntArray) -> IntArray:
    """The how manieth of its group each detection is to choose; those without a pair leave no gap."""
    order = np.lexsort((ranks, groups))
    ordered = groups[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.repeat(first, np.diff(np.append(first, len(groups))))
    return turns


def ranks_in_groups(groups: IntArray, scores: FloatArray) -> IntArray:
    """(N,) place of each detection in its group by descending score; of equal scores the earlier row is first."""
    order = best_first(groups, scores)
    ranks = np.empty(len(groups), np.int64)
    if len(groups):
        ordered = groups[order]
        first = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        ranks[order] = np.arange(len(groups)) - np.repeat(first, np.diff(np.append(first, len(groups))))
    return ranks


def best_first(keys: IntArray, scores: FloatArray) -> IntArray:
    """(N,) rows by ascending key, then by descending score; equal ones stay as they lie. Keys are 0 or more.

    As ``np.lexsort((-scores, keys))``, but integers of 16 bits are sorted by counting, which takes a tenth of the time.
    """
    order = np.argsort(-scores, kind="stable")
    highest = int(keys.max(initial=0))
    for shift in range(0, highest.bit_length(), 16):
        digits = ((keys >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
