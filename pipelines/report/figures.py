"""Which charts the report shows: from metrics, training history and dataset summary to SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pipelines.metrics.coco import NO_TRUTH, CocoMetrics
from pipelines.report.charts import PALETTE, Series, histogram, line_chart, stacked_bars
from pipelines.summary import DatasetSummary

MOST_CLASSES = 20
_MOST_CURVES = 8
_CURVE_STATS = ("AP", "AP50", "AP75")
_LIGHT = {
    "ink": "#1c2430",
    "soft": "#5b6675",
    "grid": "#e3e7ec",
    "c": ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#64748b"),
}


def pr_curve_svg(metrics: CocoMetrics) -> str:
    """Precision over recall as an SVG document of its own, light on white: for a flow's artifact or a slide."""
    chart = pr_chart(metrics)
    if not chart:
        chart = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 60">{}</svg>').format(
            Markup('<text class="label" x="12" y="34">no truth to measure precision and recall on</text>')
        )
    colours = "".join(f".line.c{n}{{stroke:{c}}}.dot.c{n},.bar.c{n}{{fill:{c}}}" for n, c in enumerate(_LIGHT["c"]))
    style = (
        f"svg{{background:#fff}}text{{font:12px system-ui,sans-serif;fill:{_LIGHT['soft']}}}"
        f".mid{{text-anchor:middle}}.end{{text-anchor:end}}.grid{{stroke:{_LIGHT['grid']}}}"
        f".axis{{stroke:{_LIGHT['soft']}}}.line{{fill:none;stroke-width:1.2;opacity:.6}}"
        f".line.bold{{stroke-width:2.6;opacity:1}}.dashed{{stroke-dasharray:6 4}}.strip{{fill:none}}{colours}"
    )
    head, _, rest = str(chart).partition(">")
    return f"{head}><style>{style}</style>{rest}"


def pr_series(metrics: CocoMetrics) -> list[Series]:
    """Mean curves at IoU .5 and .75 in front, the most frequent classes at .5 behind."""
    series = []
    known = [(name, c) for name, c in metrics.per_class.items() if c.AP != NO_TRUTH]
    frequent = sorted(known, key=lambda item: -item[1].num_truths)[:_MOST_CURVES]
    for at, (name, _) in enumerate(frequent if len(known) > 1 else []):
        series.append(Series(name=name, points=_curve(metrics, 0.5, name), colour=2 + at % (PALETTE - 2)))
    for iou, dashed in ((0.5, False), (0.75, True)):
        label = f"mean, IoU {iou:.2f}"
        series.insert(
            0 if iou == 0.5 else 1,
            Series(name=label, points=_curve(metrics, iou, None), colour=0, bold=True, dashed=dashed),
        )
    return series


def pr_chart(metrics: CocoMetrics) -> Markup:
    return line_chart(
        pr_series(metrics),
        title="Precision over recall",
        x_label="recall",
        y_label="precision",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _curve(metrics: CocoMetrics, iou: float, name: str | None) -> tuple[tuple[float, float], ...]:
    curve = metrics.pr_curve(iou, name)
    # Every other of the 101 points: the eye sees no difference, the page is half as big.
    points = list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))
    return tuple(points[::2])


def loss_series(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """The total and its parts by epoch."""
    names = sorted({key for row in history for key in row if key.startswith("loss_")})
    series = [Series(name="loss", points=_by_epoch(history, "loss"), colour=0, bold=True)]
    for at, name in enumerate(names):
        series.append(Series(name=name.removeprefix("loss_"), points=_by_epoch(history, name), colour=1 + at))
    return [s for s in series if s.points]


def ap_series(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Validation numbers by epoch."""
    series = [
        Series(name=name, points=_by_epoch(history, name), colour=at, bold=name == "AP")
        for at, name in enumerate(_CURVE_STATS)
    ]
    return [s for s in series if s.points]


def loss_chart(history: Sequence[Mapping[str, Any]]) -> Markup:
    return line_chart(
        loss_series(history), title="Training loss by epoch", x_label="epoch", y_label="loss", markers=True
    )


def ap_chart(history: Sequence[Mapping[str, Any]]) -> Markup:
    return line_chart(
        ap_series(history),
        title="Validation AP by epoch",
        x_label="epoch",
        y_label="AP",
        y_range=(0, 1),
        markers=True,
    )


def _by_epoch(history: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[float, float], ...]:
    points = []
    for at, row in enumerate(history):
        value = row.get(name)
        if isinstance(value, int | float) and np.isfinite(value) and value != NO_TRUTH:
            points.append((float(row.get("epoch", at + 1)), float(value)))
    return tuple(points)


def class_chart(summary: DatasetSummary) -> Markup:
    """Objects of each class by size, the most frequent first."""
    rows = sorted(summary.classes, key=lambda c: -c.objects)[:MOST_CLASSES]
    return stacked_bars([(c.name, list(c.sizes.items())) for c in rows], title="Objects by class and size")


def objects_chart(summary: DatasetSummary) -> Markup:
    """Images by how many objects they hold; the long tail is one bar."""
    counts = summary.objects_per_image
    shown = [(str(n), count) for n, count in enumerate(counts[:24])]
    if len(counts) > 24:
        shown.append(("24+", sum(counts[24:])))
    return histogram(shown, title="Objects an image", x_label="objects", y_label="images", colour=0)


def side_chart(summary: DatasetSummary) -> Markup:
    """Objects by the square root of their box's area."""
    bins = summary.box_sides
    names = [f"{low}–{bins[at + 1][0]}" if at + 1 < len(bins) else f"{low}+" for at, (low, _) in enumerate(bins)]
    used = [at for at, (_, count) in enumerate(bins) if count]
    if not used:
        return Markup("")
    bars = [(names[at], bins[at][1]) for at in range(used[0], used[-1] + 1)]
    return histogram(bars, title="Box sizes", x_label="px (√ of the box's area)", y_label="objects", colour=2)
