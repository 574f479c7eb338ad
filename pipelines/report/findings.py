"""What the report shows of an analysis: charts, tables and words, ready for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pipelines.metrics.analysis import Analysis
from pipelines.metrics.bootstrap import BootstrapIntervals
from pipelines.metrics.calibration import Calibration
from pipelines.metrics.comparison import Comparison
from pipelines.metrics.confusion import BACKGROUND, ConfusionMatrix
from pipelines.report.mistakes import MistakesOfKind
from pipelines.report.plots import Bar, Bin, Span, bars, intervals, matrix, reliability

_MOST_IN_MATRIX = 16
_MOST_SPANS = 24
_FEW_IMAGES = 100  # fewer make intervals too narrow


def findings(analysis: Analysis, mistakes: Sequence[MistakesOfKind], compared: str | None) -> dict[str, Any]:
    """Values for the page.

    Args:
        analysis: of one evaluation.
        mistakes: its worst ones.
        compared: reference of the predictions it was compared with.
    """
    return {
        "diagnoses": [
            card
            for card in (
                _errors_card(mistakes),
                _confusion_card(analysis.confusion),
                _calibration_card(analysis.calibration),
                _intervals_card(analysis.intervals),
            )
            if card["svg"]
        ],
        "mistakes": [kind for kind in mistakes if kind.examples],
        "slices": [part.to_json() for part in analysis.slices],
        "best": dict(analysis.thresholds.per_class),
        "comparison": None if analysis.comparison is None else _comparison(analysis.comparison, compared or ""),
    }


def _card(heading: str, svg: Markup, note: str, after: str = "") -> dict[str, Any]:
    return {"heading": heading, "svg": svg, "note": note, "after": after, "legend": ()}


def _errors_card(mistakes: Sequence[MistakesOfKind]) -> dict[str, Any]:
    rows = [
        Bar(
            name=kind.kind,
            value=kind.delta_ap or 0.0,
            text=f"{kind.delta_ap or 0:+.3f} · {kind.count:,}",
            tip=f"{kind.count:,} {kind.kind}\n{kind.meaning}"
            + ("" if kind.delta_ap is None else f"\nAP50 would be {kind.delta_ap:.3f} higher without them"),
            href=f"#mistakes-{kind.kind}" if kind.examples else "",
            colour=at,
        )
        for at, kind in enumerate(mistakes)
    ]
    known = any(kind.count for kind in mistakes)
    return _card(
        "What goes wrong",
        bars(rows, title="Kinds of error") if known else Markup(""),
        "AP50 that would be gained without each kind of error, and how many there are; a bar leads to its worst ones",
    )


def _confusion_card(confusion: ConfusionMatrix) -> dict[str, Any]:
    names = [*confusion.names, BACKGROUND]
    shown = list(range(len(names)))
    note = f"rows are truth, columns predictions with a score of at least {confusion.score_threshold:.2f}, at IoU .50"
    if len(names) > _MOST_IN_MATRIX + 1:
        counts = confusion.counts
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        frequent = sorted(range(len(names) - 1), key=lambda at: (-int(wrong[at]), at))[:_MOST_IN_MATRIX]
        shown = [*sorted(frequent), len(names) - 1]
        note += f"; the {_MOST_IN_MATRIX} of {len(names) - 1} classes with most mistakes"
    labels = [names[at] for at in shown]
    drawn = confusion.counts[shown][:, shown].tolist()
    svg = matrix(drawn, rows=labels, columns=labels, title="Confusion matrix", row_label="truth")
    worst = [f"{truth} taken for {found} ({count:,})" for truth, found, count in confusion.most_confused(3)]
    return _card("Confusion", svg, note, "Most often: " + ", ".join(worst) + "." if worst else "")


def _calibration_card(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return _card("Calibration", Markup(""), "")
    drawn = [
        Bin(low=b.low, high=b.high, score=b.mean_score, right=b.precision, count=b.count)
        for b in calibration.bins
        if b.mean_score is not None and b.precision is not None
    ]
    overall = calibration.overall
    after = ""
    if overall.ece is not None and overall.mce is not None and overall.overconfidence is not None:
        tone = "promise too much" if overall.overconfidence > 0 else "promise too little"
        after = f"ECE {overall.ece:.3f}, largest gap {overall.mce:.3f}; on the whole scores {tone}."
    return _card(
        "Calibration",
        reliability(drawn, title="Calibration of scores"),
        "share of detections that are right by their score; lines are the mean scores, pale bars have few detections",
        after,
    )


def _intervals_card(found: BootstrapIntervals | None) -> dict[str, Any]:
    if found is None:
        return _card("Intervals", Markup(""), "")
    per_class = {name: of["AP"] for name, of in found.per_class.items()}
    rows = [("all", found.overall["AP"]), *list(per_class.items())[:_MOST_SPANS]]
    spans = [
        Span(
            name=name,
            low=of.low,
            value=of.value,
            high=of.high,
            tip=f"{name}: AP {of.value:.3f}\n{found.confidence:.0%} between {of.low:.3f} and {of.high:.3f}",
            colour=0 if name == "all" and not at else 1,
        )
        for at, (name, of) in enumerate(rows)
        if of.value is not None and of.low is not None and of.high is not None
    ]
    note = f"{found.confidence:.0%} bootstrap intervals of AP over {found.num_images:,} images"
    if found.num_images < _FEW_IMAGES:
        note += "; with so few they are too narrow"
    if len(per_class) > _MOST_SPANS:
        note += f"; the first {_MOST_SPANS} of {len(per_class)} classes"
    return _card("How sure", intervals(spans, title="Confidence intervals of AP", x_range=(0.0, 1.0)), note)


def _comparison(comparison: Comparison, compared: str) -> dict[str, Any]:
    """Headline differences as a table, those of the classes as intervals."""
    rows = [("all", comparison.overall["AP"])]
    rows += [(name, of["AP"]) for name, of in comparison.per_class.items()]
    spans = [
        Span(
            name=name,
            low=d.low,
            value=d.difference,
            high=d.high,
            tip=f"{name}: AP {d.first:.3f} → {d.second:.3f} ({d.difference:+.3f})\n"
            f"{comparison.confidence:.0%} between {d.low:+.3f} and {d.high:+.3f}, p {d.p_adjusted:.3g}",
            colour=2 if d.low > 0 else 4 if d.high < 0 else 9,
        )
        for name, d in rows[: _MOST_SPANS + 1]
        if d.first is not None
        and d.second is not None
        and d.difference is not None
        and d.low is not None
        and d.high is not None
        and d.p_adjusted is not None
    ]
    return {
        "with": compared,
        "confidence": f"{comparison.confidence:.0%}",
        "overall": dict(comparison.overall),
        "svg": intervals(spans, title="Difference of AP by class"),
        "permutations": comparison.permutations,
        "resamples": comparison.resamples,
        "more": max(0, len(rows) - 1 - _MOST_SPANS),
    }
