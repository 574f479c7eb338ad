"""What goes wrong, and what each kind of mistake costs.

Source: Bolya, Foley, Hays, Hoffman: TIDE, a General Toolbox for Identifying Object Detection Errors (2020,
https://arxiv.org/abs/2008.08115).

Legend: N detections, M truths, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable
from pipelines.metrics.ranking import curve, make_ranking, threshold_index
from pipelines.records import BoolArray, FloatArray, IntArray

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
NO_ERROR = -1
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorTable:
    """The mistake that each row of a match table is.

    Attributes:
        iou, background_iou: the thresholds.
        kinds: (N,) int8, of detections: a place in ``ERROR_KINDS``, or ``NO_ERROR`` where right or ignored.
        truths: (N,) int64 row of the truth that a classification or localisation error means; -1 otherwise.
        missed: (M,) bool truths that were not found and that no such error means either.
        not_found: (M,) bool truths that no detection took.
    """

    iou: float
    background_iou: float
    kinds: NDArray[np.int8]
    truths: IntArray
    missed: BoolArray
    not_found: BoolArray

    def rows_of(self, kind: ErrorKind) -> IntArray:
        """Rows of detections, of truths for ``missed``."""
        return np.flatnonzero(self.missed if kind == "missed" else self.kinds == ERROR_KINDS.index(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSums:
    """Of one class, or of all.

    Attributes:
        counts: by kind. An error is counted in the class of the detection, a missed truth in its own.
        delta_ap: by kind, what the average precision would gain if it alone were mended, 0..1; of one class None
            where the class has no truth.
        ap: average precision at the foreground IoU, 0..1, or None without truth.
        delta_false_positives: the gain if no detection were wrong.
        delta_false_negatives: the gain if no truth were left unfound.
    """

    counts: Mapping[ErrorKind, int]
    delta_ap: Mapping[ErrorKind, float | None]
    ap: float | None
    delta_false_positives: float | None
    delta_false_negatives: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBreakdown:
    """The errors of all classes, and of each by name."""

    iou: float
    background_iou: float
    overall: ErrorSums
    per_class: Mapping[str, ErrorSums]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_errors(table: MatchTable, *, iou: float = 0.5, background_iou: float = 0.1) -> ErrorTable:
    """Name the mistake of every detection that is not right, in this order.

    - ``localisation``: it overlaps a truth of its class by ``background_iou`` up to ``iou``;
    - ``classification``: it overlaps a truth of another class by ``iou`` or more;
    - ``duplicate``: it overlaps a truth of its class by ``iou`` or more, which a better one has taken;
    - ``background``: it overlaps nothing by more than ``background_iou``;
    - ``both``: what is left: it overlaps a truth of another class by between ``background_iou`` and ``iou``.

    A truth is ``missed`` that no detection took, unless a localisation or classification error means it: mending that
    error would find it.

    Args:
        table: of matches.
        iou: one of the thresholds it was matched at.
        background_iou: from 0 up to ``iou``.
    Raises:
        ValueError: thresholds other than these.
    """
    at = threshold_index(table.settings, iou)
    if not 0 <= background_iou < iou:
        raise ValueError(f"background_iou must be from 0 up to iou {iou:g}, got {background_iou:g}")
    foreground = table.settings.iou_thresholds[at]
    same = _overlap_of_counted(table, table.best_iou, table.best_truth)
    other = _overlap_of_counted(table, table.best_iou_other, table.best_truth_other)
    wrong = table.outcomes[:, 0, at] == FALSE
    kinds = np.select(
        [
            ~wrong,
            (same >= background_iou) & (same < foreground) & (same > 0),
            other >= foreground,
            same >= foreground,
            np.maximum(same, other) <= background_iou,
        ],
        [NO_ERROR, _LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        _BOTH,
    ).astype(np.int8)
    truths = np.select(
        [kinds == _LOCALISATION, kinds == _CLASSIFICATION], [table.best_truth, table.best_truth_other], -1
    )
    right = table.outcomes[:, 0, at] == TRUE
    not_found = ~table.truth_ignored[:, 0]
    not_found[table.matched[right, at]] = False
    missed = not_found.copy()
    missed[truths[truths >= 0]] = False
    return ErrorTable(
        iou=iou, background_iou=background_iou, kinds=kinds, truths=truths, missed=missed, not_found=not_found
    )


def break_down_errors(table: MatchTable, *, iou: float = 0.5, background_iou: float = 0.1) -> ErrorBreakdown:
    """Count the errors of each kind and what mending each would gain.

    Mended, a localisation error takes the truth that it means, a classification error likewise and moves to the class
    of it; if that truth is found already, or a better such error means it too, the detection is left out instead.
    Errors of the other kinds are left out, missed truths are no longer asked for. Gains do not add up to what is
    missing to 1, because mistakes hide one another. That of all classes is the mean over those that have truth.

    Args:
        table: of matches.
        iou, background_iou: as in ``find_errors``.
    Raises:
        ValueError: as ``find_errors``.
    """
    errors = find_errors(table, iou=iou, background_iou=background_iou)
    ranks = _Ranks.of(table, threshold_index(table.settings, iou))
    base = ranks.average_precisions()
    mended = np.stack([_mended(table, errors, ranks, kind).average_precisions() for kind in range(len(ERROR_KINDS))])
    no_false = ranks.without(ranks.wrong).average_precisions()
    all_found = ranks.asking_less(table.truth_labels[errors.not_found]).average_precisions()
    gains = np.vstack([mended, no_false, all_found]) - base
    num_classes = len(table.label_map)
    of_class = np.where(errors.kinds == NO_ERROR, -1, table.labels)
    counts = np.zeros((len(ERROR_KINDS), num_classes), np.int64)
    np.add.at(counts, (errors.kinds[of_class >= 0], of_class[of_class >= 0]), 1)
    counts[_MISSED] = np.bincount(table.truth_labels[errors.missed], minlength=num_classes)
    known = ranks.num_truths > 0
    return ErrorBreakdown(
        iou=iou,
        background_iou=background_iou,
        overall=_sums(
            counts.sum(1),
            gains[:, known].mean(1) if known.any() else None,
            float(base[known].mean()) if known.any() else None,
        ),
        per_class={
            name: _sums(counts[:, k], gains[:, k] if known[k] else None, float(base[k]) if known[k] else None)
            for k, name in enumerate(table.label_map.names)
        },
    )


def _overlap_of_counted(table: MatchTable, iou: FloatArray, truths: IntArray) -> FloatArray:
    """Zero where the truth meant is one that is ignored: nobody can be wrong about it."""
    counted = np.append(~table.truth_ignored[:, 0], False)  # row -1 is nothing
    return np.where(counted[truths], iou, 0.0)


def _sums(counts: IntArray, gains: FloatArray | None, ap: float | None) -> ErrorSums:
    return ErrorSums(
        counts={kind: int(counts[at]) for at, kind in enumerate(ERROR_KINDS)},
        delta_ap={kind: None if gains is None else float(gains[at]) for at, kind in enumerate(ERROR_KINDS)},
        ap=ap,
        delta_false_positives=None if gains is None else float(gains[-2]),
        delta_false_negatives=None if gains is None else float(gains[-1]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranks:
    """What average precision needs, and may be changed by what is mended.

    Attributes:
        labels, scores, right, partakes: (N,) of detections.
        num_truths: (C,)
    """

    labels: IntArray
    scores: FloatArray
    right: BoolArray
    partakes: BoolArray
    num_truths: IntArray

    @classmethod
    def of(cls, table: MatchTable, threshold: int) -> _Ranks:
        outcomes = table.outcomes[:, 0, threshold]
        counted = table.truth_labels[~table.truth_ignored[:, 0]]
        return cls(
            labels=table.labels,
            scores=table.scores,
            right=outcomes == TRUE,
            partakes=outcomes != IGNORED,
            num_truths=np.bincount(counted, minlength=len(table.label_map)).astype(np.int64),
        )

    @property
    def wrong(self) -> BoolArray:
        return self.partakes & ~self.right

    def without(self, rows: BoolArray) -> _Ranks:
        return replace(self, partakes=self.partakes & ~rows)

    def asking_less(self, truth_labels: IntArray) -> _Ranks:
        return replace(self, num_truths=self.num_truths - np.bincount(truth_labels, minlength=len(self.num_truths)))

    def taking(self, rows: IntArray, labels: IntArray) -> _Ranks:
        """These detections are right, in these classes."""
        changed, right = self.labels.copy(), self.right.copy()
        changed[rows], right[rows] = labels, True
        return replace(self, labels=changed, right=right)

    def average_precisions(self) -> FloatArray:
        """(C,) 0..1; 0 without truth."""
        found = np.zeros(len(self.num_truths))
        for label, num_truths in enumerate(self.num_truths):
            rows = np.flatnonzero((self.labels == label) & self.partakes)
            if not len(rows) or not num_truths:
                continue
            nowhere = np.zeros(len(rows), np.int64)
            ranking = make_ranking(
                nowhere,
                self.scores[rows],
                self.right[None, rows],
                np.zeros((1, len(rows)), np.bool_),
                np.zeros(num_truths, np.int64),
            )
            found[label] = curve(ranking, np.ones(1))[0].mean()
        return found


def _mended(table: MatchTable, errors: ErrorTable, ranks: _Ranks, kind: int) -> _Ranks:
    if kind == _MISSED:
        return ranks.asking_less(table.truth_labels[errors.missed])
    rows = errors.kinds == kind
    if kind not in (_CLASSIFICATION, _LOCALISATION):
        return ranks.without(rows)
    meaning = np.flatnonzero((errors.truths >= 0) & errors.not_found[errors.truths])
    meaning = meaning[np.argsort(-table.scores[meaning], kind="stable")]
    _, first = np.unique(errors.truths[meaning], return_index=True)
    best = np.zeros(len(rows), np.bool_)
    best[meaning[first]] = True
    of_truth = np.append(table.truth_labels, -1)[errors.truths]
    taken = np.flatnonzero(rows & best)
    return ranks.without(rows & ~best).taking(taken, of_truth[taken])
