"""COCO's greedy matching, all images and classes at once.

Within an image and class the detections choose one after the other, the highest score first, among the truths that
no better one has taken: a truth that counts before one that is ignored, then the one that overlaps most, of equal ones
the later. A crowd may be chosen by any number of detections, any other truth by one. For every IoU threshold and every
range of area the choice is made anew, because truths outside a range are ignored in it.
Every range of area with every threshold is one bit of a word, so that one operation chooses in all of them.

Legend: P pairs, D detections that have a pair, M truths, A area ranges, T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.similarity import Pairs
from pipelines.records import BoolArray, FloatArray, IntArray

UNMATCHED = -1
_ALMOST_ONE = 1 - 1e-10  # a threshold of 1 means equal boxes, up to rounding; pycocotools's number
_BITS = 64
_ALL = np.uint64(2**64 - 1)
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """Who takes whom.

    Attributes:
        rows: (D,) int64, detections that have a pair, ascending.
        takes: (D, A, T) whether it takes a truth.
        right: (D, A, T) whether it takes one that counts.
        truths: (D, T) int32, the truth that it takes in the first range of area, or -1.
    """

    rows: IntArray
    takes: BoolArray
    right: BoolArray
    truths: NDArray[np.int32]


def least_iou(thresholds: FloatArray) -> float:
    """What a pair must reach to matter to any threshold."""
    return float(min(thresholds.min(), _ALMOST_ONE))


def match_pairs(
    pairs: Pairs, groups: IntArray, ranks: IntArray, ignored: BoolArray, iscrowd: BoolArray, thresholds: FloatArray
) -> Matches:
    """Let the detections choose.

    Args:
        pairs: that reach ``least_iou``, of one image and class each, detections ascending.
        groups, ranks: of every detection: image and class as one number, and its place in there by score.
        ignored: (M, A) truths that do not count.
        iscrowd: (M,) truths that any number of detections may take.
        thresholds: (T,) ascending.
    """
    starts = np.flatnonzero(np.diff(pairs.found, prepend=-1))
    rows = pairs.found[starts]
    shape = (len(rows), ignored.shape[1], len(thresholds))
    takes, right = np.zeros((2, shape[0], shape[1] * shape[2]), np.bool_)
    matched = np.full((shape[0], shape[2]), UNMATCHED, np.int32)
    if not len(rows):
        return Matches(rows=rows, takes=takes.reshape(shape), right=right.reshape(shape), truths=matched)
    choices = _Choices.of(pairs, starts, _turns(groups[rows], ranks[rows]))
    level = np.searchsorted(np.minimum(thresholds, _ALMOST_ONE), choices.iou, side="right")
    every = list(product(range(shape[1]), range(shape[2])))
    for first in range(0, len(every), _BITS):
        cells = every[first : first + _BITS]
        reached = [sum(1 << bit for bit, (_, t) in enumerate(cells) if t < n) for n in range(shape[2] + 1)]
        counts = np.zeros(len(ignored), np.uint64)
        for area in {area for area, _ in cells}:
            own = np.uint64(sum(1 << bit for bit, (a, _) in enumerate(cells) if a == area))
            counts |= np.where(ignored[:, area], np.uint64(0), own)
        taken = choices.make(np.array(reached, np.uint64)[level], counts, iscrowd)
        block = slice(first, first + len(cells))
        takes[:, block] = _unpacked(np.bitwise_or.reduceat(taken, starts), len(cells))
        right[:, block] = _unpacked(np.bitwise_or.reduceat(taken & counts[choices.truths], starts), len(cells))
        for bit, (area, threshold) in enumerate(cells):
            if area == 0:
                took = np.flatnonzero((taken >> np.uint64(bit)) & np.uint64(1))
                matched[choices.of_pair[took], threshold] = choices.truths[took]
    return Matches(rows=rows, takes=takes.reshape(shape), right=right.reshape(shape), truths=matched)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choices:
    """Pairs by detection, the better the later; and the detections by turn.

    Attributes:
        of_pair: (P,) int64 in 0..D-1.
        truths, iou: (P,) of the pairs.
        last, number: (D,) place of each detection's best pair, and how many it has.
        turns: detections that choose at once, in the order of turns.
    """

    of_pair: IntArray
    truths: IntArray
    iou: FloatArray
    last: IntArray
    number: IntArray
    turns: list[IntArray]

    @classmethod
    def of(cls, pairs: Pairs, starts: IntArray, turn: IntArray) -> _Choices:
        number = np.diff(np.append(starts, len(pairs.found)))
        of_pair = np.repeat(np.arange(len(starts)), number)
        truths, iou = pairs.truths.copy(), pairs.iou.copy()
        several = np.flatnonzero(np.repeat(number > 1, number))
        order = several[np.lexsort((truths[several], iou[several], of_pair[several]))]
        truths[several], iou[several] = truths[order], iou[order]
        by_turn = np.argsort(turn, kind="stable")
        bounds = np.flatnonzero(np.diff(turn[by_turn], prepend=-1))
        return cls(
            of_pair=of_pair,
            truths=truths,
            iou=iou,
            last=starts + number - 1,
            number=number,
            turns=[by_turn[start:stop] for start, stop in pairwise([*bounds.tolist(), len(turn)])],
        )

    def make(self, reached: Words, counts: Words, iscrowd: BoolArray) -> Words:
        """(P,) the bits in which each pair's truth is taken.

        Args:
            reached: (P,) bits whose threshold the pair reaches.
            counts: (M,) bits in which the truth counts.
            iscrowd: (M,)
        """
        taken = np.zeros(len(reached), np.uint64)
        free = np.full(len(counts), _ALL)
        lasting = np.where(iscrowd, np.uint64(0), _ALL)  # a crowd stays free
        for detections in self.turns:
            several = self.number[detections] > 1
            if not several.all():
                pair = self.last[detections[~several]]
                truths = self.truths[pair]
                taken[pair] = offer = free[truths] & reached[pair]
                free[truths] &= ~(offer & lasting[truths])
            detections = detections[several]
            looking = np.full(len(detections), _ALL)
            for of_kind in (counts, ~counts) if len(detections) else ():
                for depth in range(int(self.number[detections].max())):
                    own = np.flatnonzero(self.number[detections] > depth)
                    pair = self.last[detections[own]] - depth
                    truths = self.truths[pair]
                    offer = free[truths] & reached[pair] & of_kind[truths] & looking[own]
                    taken[pair] |= offer
                    looking[own] &= ~offer
                    free[truths] &= ~(offer & lasting[truths])
        return taken


def _unpacked(words: Words, bits: int) -> BoolArray:
    """(N, bits) from the lowest bit on."""
    octets = words.astype("<u8").view(np.uint8).reshape(len(words), _BITS // 8)
    return np.unpackbits(octets, axis=1, count=bits, bitorder="little").view(np.bool_)


def _turns(groups: IntArray, ranks: IntArray) -> IntArray:
    """The how manieth of its group each detection is to choose; those without a pair leave no gap."""
    return _places(groups, np.lexsort((ranks, groups)))


def ranks_in_images(images: IntArray, labels: IntArray, scores: FloatArray) -> IntArray:
    """(N,) place of each detection in its image and class by descending score; of equal scores the earlier is first.

    Args:
        images: (N,) ascending.
        labels, scores: (N,)
    """
    descending = (scores[1:] <= scores[:-1]) | (images[1:] != images[:-1])
    # Most detectors give the best first: then there is nothing to sort but classes.
    order = None if descending.all() else by_key(images, np.argsort(-scores, kind="stable"))
    order = by_key(labels, order)
    ordered = images[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]) | (np.diff(labels[order]) != 0)
    return _counted(order, new)


def _places(groups: IntArray, order: IntArray) -> IntArray:
    """(N,) of each row in its group, whose rows lie together in ``order``."""
    return _counted(order, np.diff(groups[order], prepend=-1) != 0)


def _counted(order: IntArray, new: BoolArray) -> IntArray:
    first = np.flatnonzero(new)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return places


def best_first(keys: IntArray, scores: FloatArray) -> IntArray:
    """(N,) rows by ascending key, then by descending score; equal ones stay as they lie. Keys are 0 or more."""
    return by_key(keys, np.argsort(-scores, kind="stable"))


def by_key(keys: IntArray | NDArray[np.int32], order: IntArray | None = None) -> IntArray:
    """(N,) rows by ascending key, equal ones as ``order`` has them, or as they lie. Keys are 0 or more.

    Integers of 16 bits are sorted by counting, which takes a tenth of the time that others take.
    """
    for shift in range(0, int(keys.max(initial=0)).bit_length(), 16):
        digits = ((keys >> shift) & 0xFFFF).astype(np.uint16)
        step = np.argsort(digits if order is None else digits[order], kind="stable")
        order = step if order is None else order[step]
    return np.arange(len(keys)) if order is None else order
