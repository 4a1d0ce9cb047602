from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.rates import CounterWindow, counter_increase, histogram_quantile

INF = math.inf
BOUNDS = [0.1, 0.5, 1.0, 2.5]


def _cumulative(values: list[float]) -> dict[float, float]:
    return {bound: float(sum(value <= bound for value in values)) for bound in [*BOUNDS, INF]}


@pytest.mark.parametrize(
    ("quantile", "buckets", "expected"),
    [
        # The worked example of Prometheus' documentation: linear inside the bucket.
        (0.5, {1.0: 0, 2.0: 10, INF: 10}, 1.5),
        (0.9, {0.1: 10, INF: 10}, 0.09),
        (0.99, {0.1: 1, INF: 10}, 0.1),
        (0.0, {1.0: 0, 2.0: 10, INF: 10}, 0.0),
        (1.0, {1.0: 5, 2.0: 10, INF: 10}, 2.0),
        (0.5, {-1.0: 10, 1.0: 10, INF: 10}, -1.0),
        # A torn scrape: the second bucket counts less than the first.
        (0.5, {1.0: 10, 2.0: 8, INF: 10}, 0.5),
    ],
)
def test_quantiles_match_prometheus(
    quantile: float, buckets: dict[float, float], expected: float
) -> None:
    assert histogram_quantile(quantile, buckets) == pytest.approx(expected)


@pytest.mark.parametrize("buckets", [{}, {INF: 4.0}, {1.0: 4.0}, {1.0: 0.0, INF: 0.0}])
def test_no_observation_or_no_bound_is_no_answer(buckets: dict[float, float]) -> None:
    assert histogram_quantile(0.5, buckets) is None


def test_a_quantile_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        histogram_quantile(95, {1.0: 1, INF: 1})


@given(
    st.lists(st.floats(0.001, 2.5), min_size=1, max_size=200),
    st.floats(0.01, 1.0),
)
def test_the_estimate_lies_in_the_bucket_of_the_true_quantile(
    values: list[float], quantile: float
) -> None:
    estimate = histogram_quantile(quantile, _cumulative(values))
    rank = quantile * len(values)
    true = float(np.sort(values)[max(0, math.ceil(rank - 1e-9) - 1)])
    edges = [0.0, *BOUNDS]
    upper = next(bound for bound in BOUNDS if true <= bound)
    lower = edges[edges.index(upper) - 1]
    assert estimate is not None
    assert lower - 1e-9 <= estimate <= upper + 1e-9


@given(st.lists(st.floats(0.001, 2.5), min_size=1, max_size=100))
def test_quantiles_never_fall(values: list[float]) -> None:
    buckets = _cumulative(values)
    estimates = [histogram_quantile(step / 20, buckets) for step in range(21)]
    assert estimates == sorted(estimates)  # type: ignore[type-var]


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=40))
def test_increases_count_every_event_across_restarts(steps: list[tuple[int, bool]]) -> None:
    window: CounterWindow[str] = CounterWindow(keep_seconds=1000)
    counter, happened = 0, 0
    window.add(0.0, {"x": 0.0})
    for second, (events, restart) in enumerate(steps, start=1):
        # A restart hides itself when the new value has already passed the old one.
        if restart and events < counter:
            counter = 0
        counter += events
        happened += events
        window.add(float(second), {"x": float(counter)})
    assert window.increases(1000)["x"] == happened
    assert window.increases()["x"] == steps[-1][0]


def test_a_restart_counts_from_zero() -> None:
    assert counter_increase(100, 103) == 3
    assert counter_increase(100, 4) == 4


def test_the_first_event_of_a_new_series_is_counted() -> None:
    window: CounterWindow[str] = CounterWindow(keep_seconds=10)
    window.add(0, {"200": 50.0})
    assert window.increases() == {}
    window.add(1, {"200": 52.0, "503": 1.0})
    assert window.increases() == {"200": 2.0, "503": 1.0}
    assert window.span_seconds() == 1.0


def test_a_window_forgets_what_is_older() -> None:
    window: CounterWindow[str] = CounterWindow(keep_seconds=20)
    for second in range(100):
        window.add(second, {"x": float(second)})
    assert window.increases(10)["x"] == 10
    assert window.span_seconds(10) == 10
    assert window.increases(20)["x"] == 20
    assert len(window._scrapes) <= 22


def test_time_goes_forward() -> None:
    window: CounterWindow[str] = CounterWindow(keep_seconds=20)
    window.add(1, {})
    with pytest.raises(ValueError, match="not after"):
        window.add(1, {})
