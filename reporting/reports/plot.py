"""Small charts as inline SVG: no script, no colours of their own, the same picture for the same data.

Colours come from classes, which the page's style sheet fills, so that a chart fits light and dark. All
text is escaped; all else is numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from zoneinfo import ZoneInfo

from markupsafe import Markup, escape

from reporting.reports.model import Chart, Mark
from reporting.reports.words import (
    axis_label,
    clock_time,
    day_time,
    minute_time,
    quantity,
    signal_words,
)

_WIDTH, _HEIGHT = 380.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 16.0, 20.0
_DAYS_SPAN_SECONDS = 20 * 3600.0
_HOURS_SPAN_SECONDS = 40 * 60.0
_LABEL_CHARACTERS = 22
_CHARACTER_WIDTH = 5.4


def chart_svg(chart: Chart, zone: ZoneInfo) -> Markup:
    """Draw one chart: the series, the expected band, incidents and actions."""
    scale = _Scale(chart)
    label = escape(
        f"{signal_words(chart.signal)} of {chart.entity}, "
        f"from {quantity(min(chart.values), chart.unit)} to {quantity(max(chart.values), chart.unit)}"
    )
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{label}">',
        *_regions(chart, scale),
        *_band(chart, scale),
        *_axes(chart, scale, zone),
        *_lines(chart, scale),
        *_marks(chart.marks, scale),
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704 - every text in it went through escape()


class _Scale:
    """From seconds and values to places on the picture."""

    def __init__(self, chart: Chart) -> None:
        bounds = [bound for bound in (chart.low, chart.high) if bound is not None]
        values = [*chart.values, *(bound for bound in bounds if math.isfinite(bound))]
        low, high = min(values), max(values)
        if low >= 0 and low < 0.6 * high:
            low = 0.0
        if high <= low:
            high = low + max(abs(low) * 0.1, 1e-9) if low else 1.0
        self.ticks = ticks(low, high)
        self.low = min(low, self.ticks[0])
        self.high = max(high + 0.06 * (high - low), self.ticks[-1])
        self._start = chart.start_seconds
        self._span = max(chart.end_seconds - chart.start_seconds, 1e-9)

    def x(self, seconds: float) -> float:
        share = min(max((seconds - self._start) / self._span, 0.0), 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers that cover most of a range, ascending (Heckbert 1990, "nice numbers").

    >>> ticks(0.0, 0.93)
    [0.0, 0.25, 0.5, 0.75]
    """
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * number, 12) for number in range(first, max(first, last) + 1)]


def _regions(chart: Chart, scale: _Scale) -> Iterator[str]:
    for region in chart.regions:
        left, right = scale.x(region.start_seconds), scale.x(region.end_seconds)
        yield (
            f'<rect class="region-{region.kind}" x="{left:.1f}" y="{_TOP:.1f}" '
            f'width="{max(right - left, 1.5):.1f}" height="{_HEIGHT - _TOP - _BOTTOM:.1f}"/>'
        )


def _band(chart: Chart, scale: _Scale) -> Iterator[str]:
    if chart.low is None and chart.high is None:
        return
    top = scale.y(scale.high if chart.high is None else chart.high)
    bottom = scale.y(scale.low if chart.low is None else chart.low)
    for bound, y in ((chart.high, top), (chart.low, bottom)):
        if bound is not None:
            yield f'<path class="bound" d="M{_LEFT:.1f} {y:.1f}H{_WIDTH - _RIGHT:.1f}"/>'
    yield (
        f'<rect class="band" x="{_LEFT:.1f}" y="{top:.1f}" width="{_WIDTH - _LEFT - _RIGHT:.1f}" '
        f'height="{max(bottom - top, 1.5):.1f}"/>'
    )


def _axes(chart: Chart, scale: _Scale, zone: ZoneInfo) -> Iterator[str]:
    for tick in scale.ticks:
        y = scale.y(tick)
        yield f'<path class="grid" d="M{_LEFT:.1f} {y:.1f}H{_WIDTH - _RIGHT:.1f}"/>'
        text = escape(axis_label(tick, chart.unit))
        yield f'<text class="tick" x="{_LEFT - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
    span = chart.end_seconds - chart.start_seconds
    say = clock_time if span < _HOURS_SPAN_SECONDS else minute_time
    say = day_time if span > _DAYS_SPAN_SECONDS else say
    middle = chart.start_seconds + span / 2
    for seconds, anchor in (
        (chart.start_seconds, "start"),
        (middle, "middle"),
        (chart.end_seconds, "end"),
    ):
        x, y = scale.x(seconds), _HEIGHT - 6
        text = escape(say(seconds, zone))
        yield f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _lines(chart: Chart, scale: _Scale) -> Iterator[str]:
    for piece in _pieces(chart):
        points = [f"{scale.x(seconds):.1f} {scale.y(value):.1f}" for seconds, value in piece]
        if len(points) == 1:
            x, y = points[0].split()
            yield f'<circle class="dot" cx="{x}" cy="{y}" r="1.4"/>'
        else:
            yield f'<path class="line" d="M{"L".join(points)}"/>'


def _pieces(chart: Chart) -> Iterator[list[tuple[float, float]]]:
    """Yield the stretches between gaps: a line over a gap would claim to know what was there."""
    piece: list[tuple[float, float]] = []
    for point in zip(chart.times, chart.values, strict=True):
        if piece and point[0] - piece[-1][0] > chart.gap_seconds:
            yield piece
            piece = []
        piece.append(point)
    if piece:
        yield piece


def _marks(marks: Sequence[Mark], scale: _Scale) -> Iterator[str]:
    taken_until = -math.inf
    for mark in sorted(marks, key=lambda each: each.time_seconds):
        x = scale.x(mark.time_seconds)
        yield (f'<path class="mark-{mark.kind}" d="M{x:.1f} {_TOP:.1f}V{_HEIGHT - _BOTTOM:.1f}"/>')
        text = mark.label.replace("_", " ")[:_LABEL_CHARACTERS]
        width = _CHARACTER_WIDTH * len(text)
        left = min(max(x - width / 2, 0.0), _WIDTH - width)
        # A label that would lie over the one before is left out; its line stays, and the timeline
        # beside the chart says what it is.
        if left <= taken_until + 4:
            continue
        taken_until = left + width
        yield (
            f'<text class="label-{mark.kind}" x="{left + width / 2:.1f}" y="{_TOP - 5:.1f}" '
            f'text-anchor="middle">{escape(text)}</text>'
        )
