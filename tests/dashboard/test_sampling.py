from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.sampling import MAX_POINTS, thin


def test_a_long_series_is_thinned_and_its_one_sample_spike_stays() -> None:
    times = np.arange(86_400.0)
    values = np.sin(times / 900)
    values[40_001] = 50.0
    line = thin(times, values)
    assert len(line.times) <= MAX_POINTS
    assert np.nanmax(line.values) == 50.0
    assert (line.times[0], line.times[-1]) == (0.0, 86_399.0)


def test_a_short_series_stays_as_it_is() -> None:
    times, values = np.arange(5.0), np.arange(5.0) * 2
    line = thin(times, values)
    np.testing.assert_array_equal(line.times, times)
    np.testing.assert_array_equal(line.values, values)
    assert line.last == 8.0


def test_a_silence_breaks_the_line_where_it_was() -> None:
    times = np.concatenate([np.arange(0.0, 3000.0), np.arange(4000.0, 9000.0)])
    line = thin(times, np.ones(len(times)))
    [gap] = np.flatnonzero(np.isnan(line.values))
    assert 2999.0 < line.times[gap] < 4000.0
    assert (line.times[gap - 1], line.times[gap + 1]) == (2999.0, 4000.0)


def test_a_missed_sample_or_two_is_no_silence() -> None:
    times = np.delete(np.arange(100.0), [50, 51])
    assert not np.isnan(thin(times, times).values).any()


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 500), min_size=0, max_size=3000),
    st.integers(0, 2**32 - 1),
)
def test_whatever_the_cadence_a_line_is_sorted_and_small(steps: list[float], seed: int) -> None:
    times = np.cumsum(np.asarray(steps, dtype=np.float64))
    values = np.random.default_rng(seed).normal(size=len(times))
    line = thin(times, values)
    assert len(line.times) == len(line.values) <= MAX_POINTS
    assert (np.diff(line.times) >= 0).all()
    assert set(line.values[np.isfinite(line.values)]) <= set(values)
