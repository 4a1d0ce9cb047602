"""Charts of the backtest page as inline SVG: no script, no address, every text escaped.

Colours come from classes, which the style sheet fills, so that a chart fits light and dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from markupsafe import Markup, escape

from galen.backtest.findings import Findings, FoundTrace
from reporting.reports.plot import ticks
from reporting.reports.words import axis_label

_WIDTH, _VALUES, _SCORES = 520.0, 150.0, 56.0
_LEFT, _RIGHT, _TOP, _BETWEEN, _BOTTOM = 62.0, 8.0, 8.0, 10.0, 18.0
_HIGHEST_SCORE_SHOWN = 10.0
_GAP_STEPS = 6.0
_LANE, _LANES_WIDTH, _LANES_LEFT = 15.0, 1060.0, 330.0
_MOST_LANES = 40
_NAME_CHARACTERS = 46


def trace_svg(trace: FoundTrace, found: Findings) -> Markup:
    """Draw a series with its expected band, and its score below, around an alarm or a missed fault."""
    x = _Axis((trace.times[0], trace.times[-1]), (_LEFT, _WIDTH - _RIGHT))
    values = _Axis(_value_range(trace), (_TOP + _VALUES, _TOP))
    bottom = _TOP + _VALUES + _BETWEEN + _SCORES
    highest = max([1.5, *(score for score in trace.score if score is not None)])
    scores = _Axis((0.0, min(highest, _HIGHEST_SCORE_SHOWN)), (bottom, bottom - _SCORES))
    height = bottom + _BOTTOM
    label = escape(f"{trace.signal} of {trace.entity}")
    parts = [
        (
            f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" '
            f'aria-label="{label}"><title>{label}</title>'
        ),
        *_faults(trace, found, x, bottom),
        *_alarm(trace, found, x, bottom),
        *_band(trace, x, values),
        *_grid(values, trace.unit, bottom, x),
        *_polyline("expected", trace.times, trace.expected, x, values),
        *_polyline("line", trace.times, trace.observed, x, values, dots=True),
        f'<path class="bound" d="M{_LEFT:.1f} {scores.at(1.0):.1f}H{_WIDTH - _RIGHT:.1f}"/>',
        (
            f'<text class="tick" x="{_LEFT - 6:.1f}" y="{scores.at(1.0) + 3.5:.1f}" '
            'text-anchor="end">score 1</text>'
        ),
        *_polyline("score", trace.times, trace.score, x, scores),
        *_time_labels(x, bottom + 13),
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704 - every text in it went through escape()


def timeline_svg(found: Findings) -> Markup:
    """Draw all alarms over the whole time, one lane a series, the noisiest first."""
    lanes = [(one.entity, one.signal) for one in found.noisiest[:_MOST_LANES]]
    place = {name: number for number, name in enumerate(lanes)}
    bottom = 10.0 + _LANE * max(len(lanes), 1)
    x = _Axis((found.start_seconds, found.end_seconds), (_LANES_LEFT, _LANES_WIDTH - _RIGHT))
    parts = [
        (
            f'<svg class="timeline" viewBox="0 0 {_LANES_WIDTH:.0f} {bottom + 20:.0f}" role="img" '
            'aria-label="alarms over the whole time">'
        )
    ]
    for fault in found.faults:
        left, right = x.at(fault.start_seconds), x.at(fault.end_seconds)
        parts.append(
            f'<rect class="fault" x="{left:.1f}" y="4" width="{max(right - left, 1.5):.1f}" '
            f'height="{bottom - 4:.1f}"/>'
        )
    for number, (about, signal) in enumerate(lanes):
        y = 10.0 + _LANE * number
        name = f"{about} {signal}"
        shown = name if len(name) <= _NAME_CHARACTERS else "…" + name[1 - _NAME_CHARACTERS :]
        parts.append(
            f'<text class="tick" x="{_LANES_LEFT - 8:.1f}" y="{y + 10:.1f}" '
            f'text-anchor="end"><title>{escape(name)}</title>{escape(shown)}</text>'
            f'<path class="grid" d="M{_LANES_LEFT:.1f} {y + _LANE - 1:.1f}H{_LANES_WIDTH:.1f}"/>'
        )
    for alarm in found.alarms:
        lane = place.get((alarm.entity, alarm.signal))
        if lane is None:
            continue
        left, right = x.at(alarm.raised_seconds), x.at(alarm.last_seconds)
        said = escape(f"{moment(alarm.raised_seconds)}, score {alarm.highest_score:.1f}")
        parts.append(
            f'<rect class="{"right" if alarm.right else "wrong"}" x="{left:.1f}" '
            f'y="{12.0 + _LANE * lane:.1f}" width="{max(right - left, 2.0):.1f}" '
            f'height="{_LANE - 5:.1f}"><title>{said}</title></rect>'
        )
    parts += [*_time_labels(x, bottom + 14), "</svg>"]
    return Markup("".join(parts))  # noqa: S704 - every text in it went through escape()


def moment(seconds: float) -> str:
    """Say a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


class _Axis:
    """From numbers to places on the picture."""

    def __init__(self, domain: tuple[float, float], places: tuple[float, float]) -> None:
        self.domain, self.places = domain, places
        self._span = max(domain[1] - domain[0], 1e-12)

    def at(self, number: float) -> float:
        share = min(max((number - self.domain[0]) / self._span, 0.0), 1.0)
        return self.places[0] + share * (self.places[1] - self.places[0])


def _value_range(trace: FoundTrace) -> tuple[float, float]:
    """Return what is worth showing: the values, and the band as far as it is near them."""
    seen = [value for value in trace.observed if value is not None]
    expected = [value for value in trace.expected if value is not None]
    middle = [*seen, *expected] or [0.0]
    low, high = min(middle), max(middle)
    reach = high - low or abs(high) or 1.0
    bounds = [value for value in (*trace.low, *trace.high) if value is not None]
    near = [value for value in bounds if low - reach <= value <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    if high <= low:
        high = low + max(abs(low) * 0.1, 1e-9)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _faults(trace: FoundTrace, found: Findings, x: _Axis, bottom: float) -> Iterator[str]:
    for fault in found.faults:
        if fault.end_seconds < trace.times[0] or fault.start_seconds > trace.times[-1]:
            continue
        left, right = x.at(fault.start_seconds), x.at(fault.end_seconds)
        yield (
            f'<rect class="fault" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 1.5):.1f}" '
            f'height="{bottom - _TOP:.1f}"/>'
        )


def _alarm(trace: FoundTrace, found: Findings, x: _Axis, bottom: float) -> Iterator[str]:
    for alarm in found.alarms:
        if (alarm.entity, alarm.signal) != (trace.entity, trace.signal):
            continue
        if alarm.last_seconds < trace.times[0] or alarm.raised_seconds > trace.times[-1]:
            continue
        left, right = x.at(alarm.raised_seconds), x.at(alarm.last_seconds)
        yield (
            f'<rect class="alarm" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 1.5):.1f}" '
            f'height="{bottom - _TOP:.1f}"/>'
        )


def _band(trace: FoundTrace, x: _Axis, values: _Axis) -> Iterator[str]:
    rows = zip(trace.times, trace.low, trace.high, strict=True)
    for piece in _pieces(
        trace.times, [low is not None or high is not None for _, low, high in rows]
    ):
        top = [(x.at(trace.times[at]), values.at(_or(trace.high[at], math.inf))) for at in piece]
        bottom = [
            (x.at(trace.times[at]), values.at(_or(trace.low[at], -math.inf)))
            for at in reversed(piece)
        ]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (*top, *bottom))
        yield f'<polygon class="band" points="{points}"/>'


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _polyline(
    name: str,
    times: Sequence[float],
    numbers: Sequence[float | None],
    x: _Axis,
    y: _Axis,
    *,
    dots: bool = False,
) -> Iterator[str]:
    for piece in _pieces(times, [number is not None for number in numbers]):
        points = [f"{x.at(times[at]):.1f} {y.at(_or(numbers[at], 0.0)):.1f}" for at in piece]
        if len(points) > 1:
            yield f'<path class="{name}" d="M{"L".join(points)}"/>'
        elif dots:
            cx, cy = points[0].split()
            yield f'<circle class="dot" cx="{cx}" cy="{cy}" r="1.4"/>'


def _pieces(times: Sequence[float], there: Sequence[bool]) -> Iterator[list[int]]:
    """Yield the stretches between gaps: a line over a gap would claim to know what was there."""
    present = [at for at, given in enumerate(there) if given]
    if not present:
        return
    distances = sorted(times[b] - times[a] for a, b in itertools.pairwise(present))
    usual = distances[len(distances) // 2] if distances else 0.0
    piece = [present[0]]
    for at in present[1:]:
        if times[at] - times[piece[-1]] > _GAP_STEPS * usual:
            yield piece
            piece = []
        piece.append(at)
    yield piece


def _grid(values: _Axis, unit: str, bottom: float, x: _Axis) -> Iterator[str]:
    for tick in ticks(*values.domain, wanted=4):
        y = values.at(tick)
        yield f'<path class="grid" d="M{_LEFT:.1f} {y:.1f}H{_WIDTH - _RIGHT:.1f}"/>'
        text = escape(axis_label(tick, unit))
        yield f'<text class="tick" x="{_LEFT - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
    yield f'<path class="grid" d="M{x.places[0]:.1f} {bottom:.1f}H{x.places[1]:.1f}"/>'


def _time_labels(x: _Axis, y: float) -> Iterator[str]:
    start, end = x.domain
    form = "%H:%M:%S" if end - start < 6 * 3600 else "%m-%d %H:%M"
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at = start + share * (end - start)
        text = datetime.fromtimestamp(at, UTC).strftime(form)
        yield (
            f'<text class="tick" x="{x.at(at):.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
        )
