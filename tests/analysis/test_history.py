from __future__ import annotations

import numpy as np

from analysis.history import History
from collectors.contract import Sample, SeriesKey

LATENCY = SeriesKey("service/llm", "llm_request_latency_seconds")


def sample(now: float, value: float, key: SeriesKey = LATENCY) -> Sample:
    return Sample(now, key.entity, key.signal, value)


def test_a_value_that_did_not_arrive_is_nan() -> None:
    history = History(capacity_ticks=10)
    history.append(1.0, [sample(1.0, 0.1)])
    history.append(2.0, [])
    times, values = history.window(LATENCY, 0.0, np.inf)
    assert times.tolist() == [1.0, 2.0]
    assert values[0] == 0.1
    assert np.isnan(values[1])


def test_the_ring_keeps_the_newest_ticks_in_order() -> None:
    history = History(capacity_ticks=3)
    for tick in range(7):
        history.append(float(tick), [sample(float(tick), tick * 10.0)])
    times, values = history.window(LATENCY, -np.inf, np.inf)
    assert times.tolist() == [4.0, 5.0, 6.0]
    assert values.tolist() == [40.0, 50.0, 60.0]


def test_a_series_that_comes_late_is_nan_before_and_columns_grow() -> None:
    history = History(capacity_ticks=4)
    history.append(0.0, [sample(0.0, 1.0)])
    many = [sample(1.0, float(n), SeriesKey("host/a", f"s{n}")) for n in range(200)]
    row = history.append(1.0, many)
    assert row.shape == (201,)
    _, matrix = history.matrix(0.0, 2.0)
    assert matrix.shape == (2, 201)
    assert np.isnan(matrix[0, 1:]).all()


def test_latest_honours_the_age() -> None:
    history = History(capacity_ticks=10)
    history.append(1.0, [sample(1.0, 5.0)])
    history.append(4.0, [])
    assert history.latest(LATENCY, max_age_seconds=5.0) == 5.0
    assert history.latest(LATENCY, max_age_seconds=1.0) is None
    assert history.latest(SeriesKey("x/y", "z"), max_age_seconds=9.0) is None
