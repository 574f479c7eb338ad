"""Small charts as inline SVG: pure functions from numbers to markup, coloured by the page's CSS variables.

Every text that comes from outside is escaped here. Marks carry ``data-tip``, which the page's script shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

PALETTE = 10  # --c0 .. --c9 in report.css
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 42
_TIP_LINES = 10
_STRIPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line: points in data units, in x order. ``colour`` indexes the palette; ``bold`` draws it in front."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    bold: bool = False
    dashed: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    markers: bool = False,
) -> Markup:
    """Lines over a common x axis with a legend; an empty string where there is no point to draw."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return Markup("")
    xs = sorted({x for s in drawn for x, _ in s.points})
    x0, x1 = x_range or (xs[0], xs[-1])
    x0, x1 = (x0, x1) if x1 > x0 else (x0 - 0.5, x0 + 0.5)
    top = max(y for s in drawn for _, y in s.points)
    y0, y1 = y_range or (0.0, nice_ceiling(top))
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def px(x: float) -> float:
        return _LEFT + (x - x0) / (x1 - x0) * inner_w

    def py(y: float) -> float:
        return _TOP + inner_h - (min(max(y, y0), y1) - y0) / (y1 - y0) * inner_h

    parts = [_open_svg(title, _HEIGHT)]
    for tick in _ticks(y0, y1):
        parts.append(_line(_LEFT, py(tick), _WIDTH - _RIGHT, py(tick), "grid"))
        parts.append(_text(_LEFT - 7, py(tick) + 4, _number(tick), "tick end"))
    whole = all(float(x).is_integer() for x in xs) and x1 - x0 > 1
    for tick in _ticks(x0, x1, whole=whole):
        parts.append(_text(px(tick), _HEIGHT - _BOTTOM + 17, _number(tick), "tick mid"))
    parts.append(_line(_LEFT, py(y0), _WIDTH - _RIGHT, py(y0), "axis"))
    parts.append(_text(_LEFT + inner_w / 2, _HEIGHT - 5, x_label, "label mid"))
    parts.append(
        Markup('<text class="label mid" transform="translate(11 {:.1f}) rotate(-90)">{}</text>').format(
            _TOP + inner_h / 2, y_label
        )
    )
    for s in sorted(drawn, key=lambda s: s.bold):
        path = " ".join(f"{'L' if at else 'M'}{px(x):.1f} {py(y):.1f}" for at, (x, y) in enumerate(s.points))
        style = f"line c{s.colour % PALETTE}{' bold' if s.bold else ''}{' dashed' if s.dashed else ''}"
        parts.append(Markup('<path class="{}" d="{}"/>').format(style, path))
        if markers or len(s.points) == 1:
            for x, y in s.points:
                parts.append(
                    Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(
                        s.colour % PALETTE, px(x), py(y)
                    )
                )
    parts.append(_strips(drawn, xs, px, x_label))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _strips(drawn: Sequence[Series], xs: Sequence[float], px: Callable[[float], float], x_label: str) -> Markup:
    """Invisible strips along x, each with the values of all lines there as its tip."""
    step = max(1, math.ceil(len(xs) / _STRIPS))
    stops = xs[::step]
    parts = []
    values = [dict(s.points) for s in drawn]
    for at, x in enumerate(stops):
        left = (px(stops[at - 1]) + px(x)) / 2 if at else _LEFT
        right = (px(x) + px(stops[at + 1])) / 2 if at + 1 < len(stops) else _WIDTH - _RIGHT
        lines = [f"{s.name}: {v[x]:.3f}" for s, v in zip(drawn, values, strict=True) if x in v]
        more = [f"… and {len(lines) - _TIP_LINES} more"] if len(lines) > _TIP_LINES else []
        tip = "\n".join([f"{x_label} {_number(x)}", *lines[:_TIP_LINES], *more])
        parts.append(
            Markup('<rect class="strip" x="{:.1f}" y="{}" width="{:.1f}" height="{}" data-tip="{}"/>').format(
                left, _TOP, max(right - left, 0.5), _HEIGHT - _TOP - _BOTTOM, tip
            )
        )
    return Markup("").join(parts)


def histogram(bars: Sequence[tuple[str, int]], *, title: str, x_label: str, y_label: str, colour: int = 0) -> Markup:
    """Vertical bars with their names below (thinned out where there are many)."""
    if not bars or not any(count for _, count in bars):
        return Markup("")
    top = nice_ceiling(max(count for _, count in bars))
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    slot = inner_w / len(bars)
    parts = [_open_svg(title, _HEIGHT)]
    for tick in _ticks(0, top, whole=True):
        y = _TOP + inner_h - tick / top * inner_h
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
        parts.append(_text(_LEFT - 7, y + 4, _number(tick), "tick end"))
    every = math.ceil(len(bars) / 12)
    for at, (name, count) in enumerate(bars):
        height = count / top * inner_h
        x = _LEFT + at * slot
        parts.append(
            Markup(
                '<rect class="bar c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" data-tip="{}"/>'
            ).format(
                colour,
                x + slot * 0.1,
                _TOP + inner_h - height,
                slot * 0.8,
                height,
                f"{name} {x_label}: {count:,} {y_label}",
            )
        )
        if at % every == 0:
            parts.append(_text(x + slot / 2, _HEIGHT - _BOTTOM + 17, name, "tick mid"))
    parts.append(_line(_LEFT, _TOP + inner_h, _WIDTH - _RIGHT, _TOP + inner_h, "axis"))
    parts.append(_text(_LEFT + inner_w / 2, _HEIGHT - 5, x_label, "label mid"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[tuple[str, int]]]], *, title: str) -> Markup:
    """Horizontal bars, one a row, each of (name, count) parts coloured by their place."""
    most = max((sum(count for _, count in parts) for _, parts in rows), default=0)
    if not most:
        return Markup("")
    row_height, left, right = 26, 104, 48
    height = row_height * len(rows) + 8
    out = [_open_svg(title, height)]
    for at, (name, stack) in enumerate(rows):
        y, x = 4 + at * row_height, float(left)
        total = sum(count for _, count in stack)
        out.append(
            Markup('<text class="tick end" x="{}" y="{}" data-tip="{}">{}</text>').format(
                left - 8, y + 17, name, name if len(name) <= 13 else name[:12] + "…"
            )
        )
        for colour, (part, count) in enumerate(stack):
            width = count / most * (_WIDTH - left - right)
            if count:
                out.append(
                    Markup('<rect class="bar s{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}" data-tip="{}"/>').format(
                        colour, x, y + 4, width, row_height - 8, f"{name}, {part}: {count:,} of {total:,}"
                    )
                )
            x += width
        out.append(_text(x + 6, y + 17, f"{total:,}", "tick"))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def nice_ceiling(value: float) -> float:
    """The next of 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10 times a power of ten; 1 where there is nothing."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * scale >= value * (1 - 1e-9))


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    raw = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * (1 - 1e-9))
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e7 else f"{value:.3g}"


def _open_svg(title: str, height: float) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="{}">').format(
        _WIDTH, height, title, "http://www.w3.org/2000/svg"
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, style: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, escape(text))
