"""The charts of an evaluation's analysis as inline SVG: confusion, kinds of error, calibration, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.charts import PALETTE, nice_ceiling

_WIDTH = 400
_SHORT = 14  # letters of a name beside a matrix or bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One horizontal bar.

    Attributes:
        value: its length.
        text: written after it.
        tip: shown on pointing at it.
        href: where a click leads, ``#...`` of this page; '' for nowhere.
    """

    name: str
    value: float
    text: str
    tip: str
    href: str = ""
    colour: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One row of an interval plot: a point in its interval. ``colour`` indexes the palette."""

    name: str
    low: float
    value: float
    high: float
    tip: str
    colour: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bar of a reliability diagram: of the detections scored about ``score``, the share that is right."""

    low: float
    high: float
    score: float
    right: float
    count: int


def matrix(
    counts: Sequence[Sequence[int]], *, rows: Sequence[str], columns: Sequence[str], title: str, row_label: str
) -> Markup:
    """A heat map: each cell is coloured by its share of its row; small ones write the count where there is room."""
    if not counts or not any(map(any, counts)):
        return Markup("")
    left, top, right = 98, 84, 40
    side = (_WIDTH - left - right) / len(columns)
    tall = min(side, 34.0) if len(rows) > 3 else 34.0
    height = top + tall * len(rows) + 8
    parts = [_open(title, height)]
    for at, name in enumerate(columns):
        parts.append(
            Markup('<text class="tick" transform="translate({:.1f} {}) rotate(-50)" data-tip="{}">{}</text>').format(
                left + (at + 0.5) * side + 3, top - 7, name, _short(name)
            )
        )
    fits = side >= 26
    size = min(12.0, side / 3)
    for r, name in enumerate(rows):
        y = top + r * tall
        total = sum(counts[r])
        parts.append(_label(left - 7, y + tall / 2 + 4, name))
        for c, count in enumerate(counts[r]):
            share = count / total if total else 0.0
            x = left + c * side
            tip = f"{row_label} {name}, predicted {columns[c]}: {count:,} of {total:,}"
            parts.append(
                Markup(
                    '<rect class="cell{}" style="--share:{:.3f}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
                    'data-tip="{}"/>'
                ).format(" right" if name == columns[c] else "", share, x, y, side - 1, tall - 1, tip)
            )
            if fits and count:
                parts.append(
                    Markup(
                        '<text class="count mid{}" x="{:.1f}" y="{:.1f}" style="font-size:{:.1f}px">{}</text>'
                    ).format(" strong" if share > 0.5 else "", x + side / 2, y + tall / 2 + 4, size, _brief(count))
                )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def bars(rows: Sequence[Bar], *, title: str, longest: float | None = None) -> Markup:
    """Horizontal bars from zero, each a link where it has somewhere to lead."""
    if not rows:
        return Markup("")
    row_height, left, right = 30, 108, 92
    longest = longest or nice_ceiling(max(row.value for row in rows))
    out = [_open(title, row_height * len(rows) + 6)]
    for at, row in enumerate(rows):
        y = 3 + at * row_height
        width = max(0.0, row.value / longest * (_WIDTH - left - right))
        drawn = Markup("").join(
            [
                _label(left - 6, y + 19, row.name),
                Markup('<rect class="bar c{}" x="{}" y="{}" width="{:.1f}" height="{}" rx="3" data-tip="{}"/>').format(
                    row.colour % PALETTE, left, y + 5, max(width, 1.0), row_height - 11, row.tip
                ),
                Markup('<text class="tick" x="{:.1f}" y="{}">{}</text>').format(left + width + 7, y + 19, row.text),
            ]
        )
        out.append(Markup('<a href="{}">{}</a>').format(row.href, drawn) if row.href else drawn)
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def intervals(rows: Sequence[Span], *, title: str, x_range: tuple[float, float] | None = None) -> Markup:
    """Points with their intervals over one axis, which has a line at zero where it crosses zero."""
    if not rows:
        return Markup("")
    row_height, left, right = 26, 108, 16
    low = min(row.low for row in rows)
    high = max(row.high for row in rows)
    x0, x1 = x_range or _round_range(low, high)
    body = row_height * len(rows)
    out = [_open(title, body + 34)]

    def px(value: float) -> float:
        return left + (min(max(value, x0), x1) - x0) / (x1 - x0) * (_WIDTH - left - right)

    for step in range(5):
        value = x0 + (x1 - x0) * step / 4
        out.append(_rule(px(value), 2, body + 6, "grid"))
        out.append(Markup('<text class="tick mid" x="{:.1f}" y="{}">{:.3g}</text>').format(px(value), body + 24, value))
    if x0 < 0 < x1:
        out.append(_rule(px(0), 2, body + 6, "axis"))
    for at, row in enumerate(rows):
        y = 4 + (at + 0.5) * row_height
        colour = row.colour % PALETTE
        out.append(_label(left - 8, y + 4, row.name))
        out.append(
            Markup('<line class="line c{} whisker" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
                colour, px(row.low), y, px(row.high), y
            )
        )
        out.append(Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(colour, px(row.value), y))
        out.append(
            Markup('<rect class="strip" x="0" y="{:.1f}" width="{}" height="{}" data-tip="{}"/>').format(
                y - row_height / 2, _WIDTH, row_height, row.tip
            )
        )
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def reliability(bins: Sequence[Bin], *, title: str) -> Markup:
    """Share of right detections over their score; the dashed line is a score that means what it says."""
    filled = [b for b in bins if b.count]
    if not filled:
        return Markup("")
    height, left, right, top, bottom = 280, 46, 8, 10, 42
    inner_w, inner_h = _WIDTH - left - right, height - top - bottom
    most = max(b.count for b in filled)
    out = [_open(title, height)]
    for step in range(6):
        y = top + inner_h * (1 - step / 5)
        out.append(
            Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(left, y, _WIDTH - right, y)
        )
        out.append(Markup('<text class="tick end" x="{}" y="{:.1f}">{:g}</text>').format(left - 7, y + 4, step / 5))
        x = left + inner_w * step / 5
        out.append(
            Markup('<text class="tick mid" x="{:.1f}" y="{}">{:g}</text>').format(x, height - bottom + 17, step / 5)
        )
    for b in filled:
        x, width = left + b.low * inner_w, (b.high - b.low) * inner_w
        bar = b.right * inner_h
        tip = f"scores {b.low:.2f}–{b.high:.2f}: {b.count:,} detections\nmean score {b.score:.3f}\nright {b.right:.3f}"
        # Bars of few detections are pale: they say little.
        out.append(
            Markup(
                '<rect class="bar c0" style="opacity:{:.2f}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
                'rx="2"/><line class="score" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<rect class="strip" x="{:.1f}" y="{}" width="{:.1f}" height="{}" data-tip="{}"/>'
            ).format(
                0.3 + 0.7 * (b.count / most) ** 0.5,
                x + 1,
                top + inner_h - bar,
                max(width - 2, 1.0),
                max(bar, 0.8),
                x + 1,
                x + width - 1,
                top + inner_h * (1 - b.score),
                top + inner_h * (1 - b.score),
                x,
                top,
                width,
                inner_h,
                tip,
            )
        )
    out.append(
        Markup('<path class="line dashed ideal" d="M{} {}L{} {}"/>').format(left, top + inner_h, _WIDTH - right, top)
    )
    out.append(
        Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            left, top + inner_h, _WIDTH - right, top + inner_h
        )
    )
    out.append(Markup('<text class="label mid" x="{}" y="{}">score</text>').format(left + inner_w / 2, height - 5))
    out.append(
        Markup(
            '<text class="label mid" transform="translate(11 {:.1f}) rotate(-90)">share that is right</text>'
        ).format(top + inner_h / 2)
    )
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _round_range(low: float, high: float) -> tuple[float, float]:
    reach = nice_ceiling(max(abs(low), abs(high)))
    return (-reach, reach) if low < 0 else (0.0, reach)


def _open(title: str, height: float) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}" xmlns="{}">').format(
        _WIDTH, height, title, "http://www.w3.org/2000/svg"
    )


def _label(x: float, y: float, name: str) -> Markup:
    return Markup('<text class="tick end" x="{:.1f}" y="{:.1f}" data-tip="{}">{}</text>').format(
        x, y, name, _short(name)
    )


def _rule(x: float, y1: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x, y1, x, y2)


def _short(name: str) -> str:
    return name if len(name) <= _SHORT + 1 else name[:_SHORT] + "…"


def _brief(count: int) -> str:
    """Counts of a cell in at most four letters."""
    for limit, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}" if count < 10 * limit else f"{count / limit:.0f}{unit}"
    return str(count)
