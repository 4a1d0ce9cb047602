from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reporting.reports.model import Chart, Mark, Region
from reporting.reports.plot import chart_svg, ticks

UTC = ZoneInfo("UTC")


def chart(**changes: Any) -> Chart:
    fields: dict[str, Any] = {
        "entity": "service/llm",
        "signal": "llm_request_latency_seconds",
        "unit": "seconds",
        "start_seconds": 0.0,
        "end_seconds": 100.0,
        "times": (0.0, 10.0, 20.0, 80.0, 90.0),
        "values": (0.1, 0.2, 0.3, 0.2, 0.1),
        "gap_seconds": 30.0,
    }
    return Chart(**{**fields, **changes})


def elements(found: Chart, name: str) -> list[ET.Element]:
    root = ET.fromstring(str(chart_svg(found, UTC)))
    return [each for each in root.iter() if each.get("class") == name]


def test_nothing_is_drawn_over_a_gap() -> None:
    lines = elements(chart(), "line")
    assert len(lines) == 2
    assert len(elements(chart(gap_seconds=100.0), "line")) == 1


def test_a_point_alone_is_a_dot() -> None:
    alone = chart(times=(0.0, 10.0, 90.0), values=(1.0, 2.0, 3.0))
    assert len(elements(alone, "dot")) == 1


def test_the_band_lies_between_its_bounds() -> None:
    found = chart(low=0.1, high=0.2)
    band = elements(found, "band")[0]
    top, height = float(band.get("y", "")), float(band.get("height", ""))
    bounds = [
        float(re.findall(r"[\d.]+", each.get("d", ""))[1]) for each in elements(found, "bound")
    ]
    assert sorted(bounds) == pytest.approx([top, top + height], abs=0.11)
    assert elements(chart(), "band") == []


def test_marks_and_regions_are_drawn_and_labels_do_not_overlap() -> None:
    marks = tuple(
        Mark(time_seconds=50.0 + second, label=f"restart_{second}", kind="action")
        for second in range(5)
    )
    region = Region(start_seconds=20.0, end_seconds=500.0, kind="incident")
    found = chart(marks=marks, regions=(region,))
    assert len(elements(found, "mark-action")) == 5
    assert len(elements(found, "label-action")) == 1
    drawn = elements(found, "region-incident")[0]
    assert float(drawn.get("x", "")) + float(drawn.get("width", "")) <= 380.0


def test_text_cannot_become_markup() -> None:
    evil = '"><script>alert(1)</script>'
    mark = Mark(time_seconds=50.0, label=evil, kind="action")
    text = str(chart_svg(chart(entity=evil, unit=evil, signal=evil, marks=(mark,)), UTC))
    assert "<script" not in text
    ET.fromstring(text)


@given(
    st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=30),
    st.none() | st.floats(-1e12, 1e12),
    st.none() | st.floats(-1e12, 1e12),
)
def test_any_values_make_a_sound_picture(
    values: list[float], low: float | None, high: float | None
) -> None:
    times = tuple(float(place) for place in range(len(values)))
    found = chart(times=times, values=tuple(values), low=low, high=high)
    root = ET.fromstring(str(chart_svg(found, UTC)))
    for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", " ".join(e.get("d", "") for e in root.iter())):
        assert 0.0 <= float(number) <= 380.0


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 6
    assert found == sorted(found)
