from __future__ import annotations

from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dashboard import charts
from dashboard.charts import Band, Mark, Region, Span, Trace
from dashboard.palette import Tone
from dashboard.sampling import Line

SPAN = Span(1_790_000_000.0, 1_790_000_600.0, ZoneInfo("UTC"))


def line(*values: float) -> Line:
    times = np.linspace(SPAN.start_seconds, SPAN.end_seconds, len(values))
    return Line(times, np.asarray(values, dtype=np.float64))


def test_a_panel_shows_its_whole_span_and_the_newest_value() -> None:
    figure = charts.panel("Latency", [Trace("p95", line(0.2, 0.4))], SPAN, unit="seconds")
    assert figure.layout.xaxis.range == tuple(SPAN.local([SPAN.start_seconds, SPAN.end_seconds]))
    assert list(figure.data[0].y) == [200.0, 400.0]
    assert figure.layout.yaxis.ticksuffix == " ms"
    assert "<b>400 ms</b>" in [note.text for note in figure.layout.annotations]


def test_names_from_data_are_text_in_a_figure() -> None:
    hostile = '<a href="javascript:alert(1)">x</a>'
    figure = charts.panel(hostile, [Trace(hostile, line(1, 2)), Trace("b", line(1, 2))], SPAN)
    figure_json = figure.to_json()
    assert "<a" not in figure_json
    assert "&lt;a" in figure.layout.title.text


def test_the_expected_band_and_what_lies_outside_it_are_in_view() -> None:
    figure = charts.panel(
        "t", [Trace("a", line(89, 90))], SPAN, unit="celsius", band=Band(58, 71), floor=None
    )
    low, high = figure.layout.yaxis.range
    assert low < 58
    assert high > 90
    [band] = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.y0, band.y1) == (58, 71)


def test_regions_are_cut_at_the_span_and_marks_outside_it_left_out() -> None:
    figure = charts.panel(
        "t",
        [Trace("a", line(1, 2))],
        SPAN,
        regions=[
            Region(0.0, SPAN.start_seconds + 60, Tone.CRITICAL),
            Region(0.0, 5.0, Tone.WARNING),
        ],
        marks=[
            Mark(5.0, "before", Tone.OK),
            Mark(SPAN.start_seconds + 30, "restart", Tone.OK),
        ],
    )
    [region] = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert region.x0 == SPAN.local([SPAN.start_seconds])[0]
    texts = " ".join(note.text for note in figure.layout.annotations)
    assert "restart" in texts
    assert "before" not in texts


def test_a_panel_without_data_says_so() -> None:
    figure = charts.panel("t", [], SPAN)
    assert [note.text for note in figure.layout.annotations] == ["no data in this range"]


def test_time_does_not_run_backwards_when_summer_time_ends() -> None:
    berlin = Span(1_793_491_200.0, 1_793_505_600.0, ZoneInfo("Europe/Berlin"))
    shown = berlin.local(np.arange(berlin.start_seconds, berlin.end_seconds, 600.0))
    assert (np.diff(shown) == np.timedelta64(600_000, "ms")).all()


@pytest.mark.parametrize(
    ("unit", "largest", "divisor", "suffix"),
    [
        ("seconds", 0.9, 1e-3, " ms"),
        ("seconds", 3.0, 1.0, " s"),
        ("bytes", 80 * 2**30, 2.0**30, " GiB"),
        ("ratio", 0.3, 0.01, " %"),
        ("requests", 20.0, 1.0, ""),
    ],
)
def test_units_are_drawn_as_people_read_them(
    unit: str, largest: float, divisor: float, suffix: str
) -> None:
    scale = charts.scale_of(unit, largest)
    assert (scale.divisor, scale.suffix) == (divisor, suffix)


def test_a_sparkline_has_one_area_for_each_stretch() -> None:
    areas = charts.sparkline(line(1, 2, np.nan, 3, 4), SPAN.start_seconds, SPAN.end_seconds)
    assert len(areas) == 2
    assert areas[0].startswith("0.0% 100%, 0.0% ")
    assert areas[1].endswith("100.0% 100%")
    assert charts.sparkline(None, 0, 1) == []


def test_a_sparkline_of_many_points_keeps_its_peak() -> None:
    values = np.zeros(5000)
    values[1234] = 9.0
    [area] = charts.sparkline(line(*values), SPAN.start_seconds, SPAN.end_seconds)
    assert " 8.0%" in area
    assert area.count(",") < 100
