from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.detection.seasonal_fit import (
    DAY_SECONDS,
    SeasonalShape,
    _phase_medians,
    fit_shape,
)

STEP = 600.0
TIMES = 1_700_006_400 + STEP * np.arange(144 * 8)


def noise(scale: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, len(TIMES))


def daily(times: np.ndarray) -> np.ndarray:
    return 10 * np.sin(2 * np.pi * times / DAY_SECONDS)


def test_a_daily_shape_is_found_and_predicts() -> None:
    shape = fit_shape(TIMES, 50 + daily(TIMES) + noise(1.0))
    assert shape is not None
    assert shape.period_seconds == DAY_SECONDS
    later = TIMES[-1] + STEP * np.arange(1, 145)
    np.testing.assert_allclose(shape.over(later), daily(later), atol=1.5)


def test_noise_has_no_shape() -> None:
    assert fit_shape(TIMES, 50 + noise(5.0)) is None


def test_a_random_walk_has_no_shape() -> None:
    assert fit_shape(TIMES, np.cumsum(noise(1.0))) is None


def test_a_shape_that_ended_is_not_kept() -> None:
    values = 50 + daily(TIMES) + noise(0.5)
    values[-145:] = 50 + noise(0.5)[-145:]
    assert fit_shape(TIMES, values) is None


def test_gaps_and_outliers_do_not_spoil_a_fit() -> None:
    values = 50 + daily(TIMES) + noise(1.0)
    values[200:230] = np.nan
    values[np.random.default_rng(2).choice(len(values), 20, replace=False)] = 200.0
    shape = fit_shape(TIMES, values)
    assert shape is not None
    assert np.abs(shape.over(TIMES) - daily(TIMES)).mean() < 2


def test_a_period_is_found_finely() -> None:
    times = np.arange(900.0)
    period = 62.83
    values = np.sin(2 * np.pi * times / period) + np.random.default_rng(1).normal(0, 0.1, 900)
    shape = fit_shape(times, values)
    assert shape is not None
    assert shape.period_seconds == pytest.approx(period, rel=0.003)


def test_too_little_history_gives_none() -> None:
    assert fit_shape(TIMES[:40], daily(TIMES[:40])) is None
    assert fit_shape(TIMES[:200], np.full(200, np.nan)) is None


def test_a_shape_is_continuous_over_the_end_of_its_period() -> None:
    shape = SeasonalShape(100.0, np.array([0.0, 1.0, 4.0, 2.0]))
    assert shape.at(12.5) == 0.0
    assert shape.at(99.999) == pytest.approx(shape.at(100.001), abs=1e-3)
    times = np.linspace(0, 300, 50)
    np.testing.assert_allclose(shape.over(times), [shape.at(float(time)) for time in times])


def test_the_median_of_each_phase_is_that_of_its_values() -> None:
    random = np.random.default_rng(3)
    for first, count in ((0, 30), (5, 31), (11, 26), (3, 12)):
        values = random.normal(size=count)
        phase = (first + np.arange(count)) % 12
        expected = [np.median(values[phase == each]) for each in range(12)]
        np.testing.assert_array_equal(_phase_medians(values, first, 12), expected)


def test_a_pause_in_what_teaches_leaves_no_two_cycles_and_so_no_shape() -> None:
    days = (TIMES - TIMES[0]) / DAY_SECONDS
    # What is held out is the last day; before it there is a day and a half.
    kept = (days < 1.5) | ((days >= 3.0) & (days < 4.0))
    assert fit_shape(TIMES[kept], 50 + daily(TIMES[kept])) is None


@settings(max_examples=200, deadline=None)
@given(
    days=st.floats(0.5, 9.0),
    pauses=st.lists(st.tuples(st.floats(0, 9), st.floats(0, 4)), max_size=4),
    missing=st.floats(0, 0.9),
    period_days=st.sampled_from((None, 0.1, 0.37, 0.95, 1.0, 2.2)),
    seed=st.integers(0, 1000),
)
def test_no_history_breaks_a_fit(
    days: float,
    pauses: list[tuple[float, float]],
    missing: float,
    period_days: float | None,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    times = np.arange(0.0, days * DAY_SECONDS, 900.0)
    values = np.sin(2 * np.pi * times / ((period_days or 1.0) * DAY_SECONDS)) + random.normal(
        0, 0.1, len(times)
    )
    values[random.random(len(times)) < missing] = np.nan
    kept = np.ones(len(times), dtype=bool)
    for start, length in pauses:
        kept &= (times < start * DAY_SECONDS) | (times >= (start + length) * DAY_SECONDS)
    periods = () if period_days is None else (period_days * DAY_SECONDS,)
    if kept.sum() >= 2:
        shape = fit_shape(times[kept], values[kept], periods)
        assert shape is None or np.isfinite(shape.over(times)).all()
