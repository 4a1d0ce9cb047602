from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from analysis.detection.seasonal_fit import DAY_SECONDS, WEEK_SECONDS, SeasonalShape, fit_shape
from analysis.detection.seasonal_shapes import SeasonalShapes

BERLIN = "Europe/Berlin"
START = datetime(2026, 3, 20, tzinfo=ZoneInfo(BERLIN)).timestamp()


def some_shapes() -> dict[int, SeasonalShape]:
    random = np.random.default_rng(0)
    return {
        7: SeasonalShape(DAY_SECONDS, random.normal(size=288), BERLIN),
        1: SeasonalShape(WEEK_SECONDS, random.normal(size=2016), "America/New_York"),
        4: SeasonalShape(700.0, random.normal(size=7)),
    }


def bank(shapes: dict[int, SeasonalShape], series: int = 9) -> SeasonalShapes:
    made = SeasonalShapes()
    made.grow(series)
    made.adopt(shapes)
    return made


def test_every_series_has_the_offset_of_its_own_shape() -> None:
    shapes = some_shapes()
    all_at_once = bank(shapes)
    times = START + np.random.default_rng(1).uniform(0, 20 * DAY_SECONDS, 300).cumsum() / 150
    for time in times:
        expected = np.zeros(9)
        for column, shape in shapes.items():
            expected[column] = shape.at(float(time))
        np.testing.assert_allclose(all_at_once.at(float(time)), expected, atol=1e-6)


def test_a_newer_shape_replaces_the_older_and_leaves_the_others() -> None:
    shapes = some_shapes()
    all_at_once = bank(shapes)
    before = all_at_once.at(START)
    all_at_once.adopt({7: SeasonalShape(3600.0, np.full(4, 3.0)), 2: shapes[4]})
    after = all_at_once.at(START)
    assert after[7] == 3.0
    assert after[2] == after[4] == before[4]
    assert after[1] == before[1]
    all_at_once.grow(2)
    assert all_at_once.at(START).shape == (11,)


def test_a_state_is_the_same_shapes() -> None:
    one, other = bank(some_shapes()), SeasonalShapes()
    other.grow(9)
    other.check(one.state())
    other.restore(one.state())
    for time in START + 1000.0 * np.arange(50):
        np.testing.assert_array_equal(one.at(time), other.at(time))
    empty = bank({})
    other.restore(empty.state())
    assert not other.at(START).any()


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = bank(some_shapes()).state()
    small = SeasonalShapes()
    small.grow(3)
    with pytest.raises(ValueError, match="more series"):
        small.check(state)
    other = bank({})
    with pytest.raises(ValueError, match="cut off"):
        other.check({**state, "shapes_offsets": state["shapes_offsets"][:5]})
    with pytest.raises(ValueError, match="shapes_zones"):
        other.check({name: array for name, array in state.items() if name != "shapes_zones"})


def office_hours(times: np.ndarray) -> np.ndarray:
    """Return load that people in Berlin make from nine to five by their own clocks."""
    zone = ZoneInfo(BERLIN)
    hours = np.array([datetime.fromtimestamp(time, zone).hour for time in times])
    return np.where((hours >= 9) & (hours < 17), 20.0, 0.0)


def test_a_shape_fitted_in_winter_holds_in_summer_by_local_time_only() -> None:
    times = START - 14 * DAY_SECONDS + 300.0 * np.arange(14 * 288)  # ends a week before the change
    values = office_hours(times) + np.random.default_rng(3).normal(0, 0.5, len(times))
    summer = START + 15 * DAY_SECONDS + 300.0 * np.arange(288)
    wrong = {}
    for zone in (BERLIN, "UTC"):
        shape = fit_shape(times, values, zone=zone)
        assert shape is not None
        assert (shape.period_seconds, shape.zone) == (DAY_SECONDS, zone)
        expected = shape.over(summer) - shape.over(summer).min()
        wrong[zone] = int((np.abs(expected - office_hours(summer)) > 10).sum())
    assert wrong[BERLIN] <= 4
    assert wrong["UTC"] >= 20  # an hour twice a day


def test_a_fit_over_the_change_of_clocks_is_sharp() -> None:
    times = START + 300.0 * np.arange(18 * 288)  # the change is in the middle
    values = office_hours(times) + np.random.default_rng(4).normal(0, 0.5, len(times))
    shape = fit_shape(times, values, zone=BERLIN)
    assert shape is not None
    later = times[-1] + 300.0 * np.arange(1, 289)
    expected = shape.over(later) - shape.over(later).min()
    assert (np.abs(expected - office_hours(later)) > 10).sum() <= 4


def test_a_period_of_machines_stays_in_utc() -> None:
    times = START + 60.0 * np.arange(4000)
    values = 5 * np.sin(2 * np.pi * times / 5000) + np.random.default_rng(0).normal(0, 0.2, 4000)
    shape = fit_shape(times, values, zone=BERLIN)
    assert shape is not None
    assert shape.zone == "UTC"
