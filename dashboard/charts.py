"""Plotly figures: lines with what was expected, incidents and actions drawn over them, the ribbon.

Text in a Plotly figure is a subset of HTML, so everything that comes from data is escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard import palette, words
from dashboard.palette import COLOURS, Tone
from dashboard.ribbon import Ribbon
from dashboard.sampling import Line

LIVE = {"staticPlot": True, "displayModeBar": False}
"""For panels that refresh: new data would reset a zoom."""
FROZEN = {
    "displaylogo": False,
    "displayModeBar": False,
    "scrollZoom": False,
    "doubleClick": "reset",
}
"""For investigation: hover and zoom, until somebody asks for new data."""

_DAY_MILLISECONDS = 86_400_000


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of a panel."""

    name: str
    line: Line
    colour: str | None = None
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of time to colour, such as an incident."""

    start_seconds: float
    end_seconds: float
    tone: Tone


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment to point at: an onset, an action."""

    time_seconds: float
    text: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Band:
    """What was expected: either edge may be open."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch of time that a panel shows, and the zone in which."""

    start_seconds: float
    end_seconds: float
    zone: ZoneInfo

    def local(self, times: NDArray[np.float64] | Sequence[float]) -> NDArray[np.datetime64]:
        """Return times on the wall clock of the span's end.

        One offset holds for the whole span, so that a line does not run backwards through the hour
        that is repeated when summer time ends.
        """
        end = datetime.fromtimestamp(self.end_seconds, UTC).astimezone(self.zone)
        shift = end.utcoffset()
        seconds = 0.0 if shift is None else shift.total_seconds()
        milliseconds = np.round((np.asarray(times, dtype=np.float64) + seconds) * 1000)
        return milliseconds.astype(np.int64).astype("datetime64[ms]")


@dataclass(frozen=True, slots=True)
class Scale:
    """How a unit is drawn: values are divided by ``divisor``."""

    divisor: float
    suffix: str
    tick_format: str


def scale_of(unit: str, largest: float) -> Scale:
    """Return how to draw values of a unit, given the largest of them."""
    if unit == "seconds":
        return Scale(1e-3, " ms", "~g") if largest < 1 else Scale(1, " s", "~g")
    if unit in {"bytes", "bytes/second"}:
        rate = "/s" if unit.endswith("/second") else ""
        for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if largest >= 2**power:
                return Scale(2.0**power, f" {name}{rate}", "~g")
        return Scale(1, f" B{rate}", "~g")
    known = {
        "ratio": Scale(0.01, " %", "~g"),
        "percent": Scale(1, " %", "~g"),
        "percent of a core": Scale(1, " %", "~g"),
        "celsius": Scale(1, " °C", "~g"),
        "watts": Scale(1, " W", "~g"),
        "megahertz": Scale(1, " MHz", "~g"),
    }
    return known.get(unit, Scale(1, "", "~s" if largest >= 10_000 else "~g"))


def text(value: str) -> str:
    """Return data as text for a figure, with every tag and entity in it taken literally."""
    return html.escape(value, quote=False)


def panel(
    title: str,
    traces: Sequence[Trace],
    span: Span,
    *,
    unit: str = "",
    band: Band | None = None,
    regions: Sequence[Region] = (),
    marks: Sequence[Mark] = (),
    height: int = 178,
    floor: float | None = 0.0,
    ceiling: float | None = None,
) -> go.Figure:
    """Draw lines of one unit over a span.

    Args:
        title: What the panel shows.
        traces: The lines; the newest value of each stands in the legend.
        span: The stretch of time; it is drawn whole even where there is no data.
        unit: The unit of all values, as the catalogue names it.
        band: The range that was expected, in that unit.
        regions: Stretches to colour behind the lines.
        marks: Moments to point at.
        height: In pixels.
        floor: The lowest value that the axis must include; None lets the data decide.
        ceiling: The highest value that the axis must include.
    """
    low, high = _extent(traces, band, floor, ceiling)
    scale = scale_of(unit, high)
    figure = go.Figure(layout=_layout(title, span, height, legend=len(traces) > 1))
    if band is not None:
        _draw_band(figure, band, low, high, scale)
    for region in regions:
        _draw_region(figure, region, span)
    for index, trace in enumerate(traces):
        figure.add_trace(_scatter(trace, index, span, unit, scale, named=len(traces) > 1))
    for mark in marks:
        _draw_mark(figure, mark, span)
    if len(traces) == 1:
        figure.add_annotation(
            text=f"<b>{newest_words(traces[0], unit)}</b>", showarrow=False, x=1, y=1, yshift=11,
            xref="paper", yref="paper", xanchor="right", yanchor="middle",
        )  # fmt: skip
    figure.update_yaxes(
        range=[low / scale.divisor, high / scale.divisor],
        ticksuffix=scale.suffix,
        tickformat=scale.tick_format,
        nticks=5,
    )
    if not any(np.isfinite(trace.line.values).any() for trace in traces):
        figure.add_annotation(
            text="no data in this range",
            showarrow=False,
            x=0.5,
            y=0.5,
            xref="paper",
            yref="paper",
            font={"color": palette.FAINT},
        )
        figure.update_yaxes(showticklabels=False)
    return figure


def _extent(
    traces: Sequence[Trace], band: Band | None, floor: float | None, ceiling: float | None
) -> tuple[float, float]:
    values = [trace.line.values[np.isfinite(trace.line.values)] for trace in traces]
    edges = [edge for edge in (floor, ceiling) if edge is not None]
    if band is not None:
        edges += [edge for edge in (band.low, band.high) if edge is not None]
    joined = np.concatenate([*values, np.asarray(edges, dtype=np.float64)])
    if not joined.size:
        return 0.0, 1.0
    low, high = float(joined.min()), float(joined.max())
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (low if floor is not None and low >= floor else low - room), high + room


def _layout(title: str, span: Span, height: int, *, legend: bool) -> dict[str, Any]:
    begin, end = span.local([span.start_seconds, span.end_seconds])
    axis = {"gridcolor": palette.GRID, "zeroline": False, "linecolor": palette.BORDER}
    return {
        "height": height,
        "margin": {"l": 58, "r": 10, "t": 30, "b": 22},
        "paper_bgcolor": palette.PANEL,
        "plot_bgcolor": palette.PANEL,
        "font": {"family": "'Source Sans', sans-serif", "size": 12, "color": palette.MUTED},
        "title": {
            "text": text(title),
            "font": {"size": 13, "color": palette.TEXT},
            "x": 0.0,
            "xref": "container",
            "pad": {"l": 12, "t": 9},
            "y": 1.0,
            "yref": "container",
            "yanchor": "top",
            "automargin": False,
        },
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 1.0,
            "xanchor": "right",
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 12, "color": palette.MUTED},
            "bgcolor": "rgba(0,0,0,0)",
            "itemwidth": 30,
            "traceorder": "normal",
        },
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": palette.BACKGROUND, "bordercolor": palette.BORDER},
        "xaxis": {
            **axis,
            "range": [begin, end],
            "showgrid": False,
            "type": "date",
            "nticks": 6,
            "tickformatstops": [
                {"dtickrange": [None, 60_000], "value": "%H:%M:%S"},
                {"dtickrange": [60_000, _DAY_MILLISECONDS - 1], "value": "%H:%M"},
                # Ticks a day or more apart all stand at midnight, which says nothing.
                {"dtickrange": [_DAY_MILLISECONDS, None], "value": "%d %b"},
            ],
        },
        "yaxis": {**axis, "fixedrange": True},
        "dragmode": "zoom",
    }


def _scatter(
    trace: Trace, index: int, span: Span, unit: str, scale: Scale, *, named: bool
) -> go.Scatter:
    newest = newest_words(trace, unit)
    return go.Scatter(
        x=span.local(trace.line.times),
        y=trace.line.values / scale.divisor,
        name=f"{text(trace.name)} <b>{newest}</b>" if named else text(trace.name),
        mode="lines",
        line={
            "color": trace.colour or palette.LINES[index % len(palette.LINES)],
            "width": 1.4,
            "dash": "dot" if trace.dashed else "solid",
        },
        connectgaps=False,
        hovertemplate="%{y:.4~g}" + scale.suffix + f"<extra>{text(trace.name)}</extra>",
    )


def newest_words(trace: Trace, unit: str) -> str:
    """Return the newest value of a line, with its unit where that is a short one."""
    number, name = words.amount(trace.line.last, unit)
    return f"{number} {name}".strip() if len(name) <= len("tok/s") else number


def _draw_band(figure: go.Figure, band: Band, low: float, high: float, scale: Scale) -> None:
    figure.add_hrect(
        y0=(low if band.low is None else band.low) / scale.divisor,
        y1=(high if band.high is None else band.high) / scale.divisor,
        fillcolor=palette.BAND,
        line_width=0,
        layer="below",
    )
    for edge in (band.low, band.high):
        if edge is not None:
            figure.add_hline(
                y=edge / scale.divisor,
                line={"color": palette.FAINT, "width": 1, "dash": "dot"},
                layer="below",
            )


def _draw_region(figure: go.Figure, region: Region, span: Span) -> None:
    begin = max(region.start_seconds, span.start_seconds)
    end = min(region.end_seconds, span.end_seconds)
    if begin >= end:
        return
    x0, x1 = span.local([begin, end])
    colour = COLOURS[region.tone]
    figure.add_shape(
        type="rect", x0=x0, x1=x1, y0=0, y1=1, yref="paper", fillcolor=colour, opacity=0.1,
        line_width=0, layer="below",
    )  # fmt: skip
    if region.start_seconds >= span.start_seconds:
        figure.add_shape(
            type="line", x0=x0, x1=x0, y0=0, y1=1, yref="paper", opacity=0.6, layer="below",
            line={"color": colour, "width": 1},
        )  # fmt: skip


def _draw_mark(figure: go.Figure, mark: Mark, span: Span) -> None:
    if not span.start_seconds <= mark.time_seconds <= span.end_seconds:
        return
    x = span.local([mark.time_seconds])[0]
    colour = COLOURS[mark.tone]
    figure.add_shape(
        type="line", x0=x, x1=x, y0=0, y1=1, yref="paper",
        line={"color": colour, "width": 1.2, "dash": "dash"},
    )  # fmt: skip
    right = mark.time_seconds > (span.start_seconds + span.end_seconds) / 2
    figure.add_annotation(
        x=x, y=1, yref="paper", yanchor="top", xanchor="right" if right else "left",
        text=f"{text(mark.text)} ◂" if right else f"▸ {text(mark.text)}",
        showarrow=False, font={"size": 11, "color": colour}, bgcolor=palette.PANEL, opacity=0.92,
    )  # fmt: skip


_RIBBON_COLOURS = ("#1a2029", "#23463c", "#2f5f8f", "#b5832f", "#cf4f4a")


_LONGEST_LABEL = 26


def ribbon_figure(ribbon: Ribbon, span: Span) -> go.Figure:
    """Draw the ribbon, one row an entity."""
    labels = [text(words.fit(words.short_entity(name), _LONGEST_LABEL)) for name in ribbon.entities]
    height = 46 + 24 * max(1, len(labels))
    figure = go.Figure(layout=_layout("", span, height, legend=False))
    centres = (ribbon.edges[1:] + ribbon.edges[:-1]) / 2
    steps = len(_RIBBON_COLOURS)
    scale = [
        [edge, colour]
        for index, colour in enumerate(_RIBBON_COLOURS)
        for edge in (index / steps, (index + 1) / steps)
    ]
    figure.add_trace(
        go.Heatmap(
            x=span.local(centres),
            y=list(range(len(labels))),
            z=ribbon.levels,
            zmin=-0.5,
            zmax=steps - 0.5,
            colorscale=scale,
            showscale=False,
            xgap=1,
            ygap=5,
            hoverinfo="skip",
        )
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 4, "b": 22})
    figure.update_yaxes(
        autorange="reversed", automargin=True, showgrid=False, ticks="",
        tickmode="array", tickvals=list(range(len(labels))), ticktext=labels,
        tickfont={"color": palette.TEXT, "size": 12.5}, ticklabelstandoff=8,
    )  # fmt: skip
    return figure


def sparkline(line: Line | None, start_seconds: float, end_seconds: float) -> list[str]:
    """Return the corners of one filled area for each stretch without a gap, in percent of a box.

    They are corners of CSS ``clip-path: polygon(...)``: ``st.html`` lets no SVG through.
    """
    if line is None or not np.isfinite(line.values).any():
        return []
    present = line.values[np.isfinite(line.values)]
    low, high = float(present.min()), float(present.max())
    # A flat line lies low in its box; noise far below the value itself stays flat.
    height = max(high - low, 0.05 * abs(high), 1e-12)
    xs = np.clip(
        100 * (line.times - start_seconds) / max(end_seconds - start_seconds, 1e-9), 0, 100
    )
    ys = 92 - 84 * (line.values - low) / height
    present_runs = np.ma.clump_unmasked(np.ma.masked_invalid(line.values))  # type: ignore[no-untyped-call]
    return [_area(xs[run], ys[run]) for run in present_runs if run.stop - run.start > 1]


_SPARK_POINTS = 120


def _area(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    if len(xs) > _SPARK_POINTS:
        edges = np.linspace(0, len(xs), _SPARK_POINTS // 2 + 1).astype(int)[:-1]
        # The highest point of each bin is kept (it has the smallest distance from the top).
        xs, ys = xs[edges], np.minimum.reduceat(ys, edges)
    corners = [f"{x:.1f}% {y:.1f}%" for x, y in zip(xs, ys, strict=True)]
    return ", ".join([f"{xs[0]:.1f}% 100%", *corners, f"{xs[-1]:.1f}% 100%"])
