from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.detection.slope_window import SlopeWindow

POINTS, LEAST_TAU = 8, 0.7


def _plain(times: list[float], values: list[float]) -> tuple[float, float] | None:
    """Return slope and tau of one series by the definitions; None where it does not grow evenly."""
    times, values = times[-POINTS:], values[-POINTS:]
    if len(values) < POINTS:
        return None
    steps = np.diff(values)
    share = 0.5 * (values[-1] - values[0]) / (POINTS - 1)
    if share <= 0 or (values[-1] - values[-3]) / 2 < share or np.median(steps) < share:
        return None
    pairs = [(i, j) for i in range(POINTS) for j in range(i + 1, POINTS)]
    tau = float(np.mean([np.sign(values[j] - values[i]) for i, j in pairs]))
    if tau < LEAST_TAU:
        return None
    return float(
        np.median([(values[j] - values[i]) / (times[j] - times[i]) for i, j in pairs])
    ), tau


def _pushed(rows: list[list[float | None]]) -> tuple[SlopeWindow, list[list[tuple[float, float]]]]:
    window = SlopeWindow(POINTS, 0.0, LEAST_TAU)
    window.grow(3)
    given_so_far: list[list[tuple[float, float]]] = [[], [], []]
    for tick, row in enumerate(rows):
        values = np.array([np.nan if value is None else value for value in row])
        window.push(float(tick), values, np.isfinite(values))
        for series, value in enumerate(row):
            if value is not None:
                given_so_far[series].append((float(tick), float(value)))
    return window, given_so_far


# Whole numbers: sums of them are exact, so that both ways decide alike where it is close.
cells = st.one_of(st.none(), st.integers(-20, 20).map(float))
walks = st.lists(st.tuples(cells, cells, cells).map(list), min_size=5, max_size=40)
rising = st.lists(st.integers(0, 4), min_size=12, max_size=30).map(
    lambda steps: [[float(level), None, float(level)] for level in np.cumsum(steps)]
)


@given(st.one_of(walks, rising))
def test_it_says_what_the_definitions_say(rows: list[list[float | None]]) -> None:
    window, pushed = _pushed(rows)
    chosen, slopes = window.growing()
    found = dict(zip(chosen.tolist(), zip(slopes.middle, slopes.tau, strict=True), strict=True))
    for series, points in enumerate(pushed):
        expected = _plain([at for at, _ in points], [value for _, value in points])
        assert (series in found) == (expected is not None)
        if expected is not None:
            assert found[series] == pytest.approx(expected)
        older = [value for _, value in points[:-POINTS]]
        assert window.peak[series] == max(older) if older else np.isnan(window.peak[series])


@given(walks, walks)
def test_a_restored_window_goes_on_alike(
    before: list[list[float | None]], after: list[list[float | None]]
) -> None:
    window, _ = _pushed(before)
    other = SlopeWindow(POINTS, 0.0, LEAST_TAU)
    other.grow(3)
    state = window.state("w")
    other.check(state, "w")
    other.restore(state, "w")
    for tick, row in enumerate(after, start=len(before)):
        values = np.array([np.nan if value is None else value for value in row])
        for each in (window, other):
            each.push(float(tick), values, np.isfinite(values))
    for name, array in window.state("w").items():
        np.testing.assert_array_equal(array, other.state("w")[name])


def test_what_is_cleared_begins_anew() -> None:
    window, _ = _pushed([[float(n), float(n), None] for n in range(12)])
    assert window.growing()[0].tolist() == [0, 1]
    window.clear(np.array([True, False, False]))
    assert window.growing()[0].tolist() == [1]
    assert np.isnan(window.peak[0])
    assert window.age(20.0).tolist() == [np.inf, 9.0, np.inf]


def test_a_series_that_is_dropped_takes_nothing_with_it() -> None:
    window, _ = _pushed([[float(n), float(2 * n), float(-n)] for n in range(11)])
    window.keep(np.array([False, True, True]))
    chosen, slopes = window.growing()
    assert (chosen.tolist(), slopes.middle.tolist()) == ([0], [2.0])
    assert window.newest.tolist() == [20.0, -10.0]
