from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.contract import FloatArray
from analysis.detection.flat_line import FlatLine
from analysis.detection.settings import FlatLineSettings
from collectors.contract import SeriesKey

POWER = SeriesKey("host/a/gpu/0", "gpu_power_usage_watts")
TEMPERATURE = SeriesKey("host/a/gpu/0", "gpu_temperature_celsius")
CPU = SeriesKey("host/a", "host_cpu_percent")
DISK = SeriesKey("host/a", "host_disk_free_bytes")
QUEUE = SeriesKey("service/llm", "llm_queue_depth")


def scores(values: FloatArray, key: SeriesKey = POWER, step: float = 1.0) -> FloatArray:
    detector = FlatLine(FlatLineSettings())
    detector.grow([key])
    learn = np.array([True])
    rows = [detector.score(step * n, np.array([v]), learn).score[0] for n, v in enumerate(values)]
    return np.nan_to_num(np.array(rows))


def moving(count: int, seed: int = 0) -> FloatArray:
    return 300 + np.random.default_rng(seed).normal(0, 5, count)


@pytest.mark.parametrize("step", [1.0, 15.0])
def test_a_sensor_that_is_stuck_shows(step: float) -> None:
    values = moving(400)
    values[200:] = values[200]
    found = np.flatnonzero(scores(values, step=step) > 1.0)
    assert 200 + 20 <= found[0] <= 200 + 62
    assert scores(np.append(values[:300], moving(50)), step=step)[300:].max() <= 1.0


def test_a_device_that_is_read_every_half_minute_is_stuck_later() -> None:
    values = np.repeat(moving(100), 30)
    assert scores(values).max() <= 1.0
    values[2400:] = values[2400]
    found = np.flatnonzero(scores(values) > 1.0)
    assert 2400 + 170 <= found[0] <= 2400 + 200


def test_coarse_values_rest_as_they_like() -> None:
    random = np.random.default_rng(1)
    values = np.round(60 + np.cumsum(random.normal(0, 0.3, 1500)) * 0.2)
    values[1000:] = values[1000]
    assert scores(values, TEMPERATURE).max() <= 1.0


def test_what_never_moved_is_no_news() -> None:
    assert scores(np.full(1000, 400.0)).max() == 0.0


@pytest.mark.parametrize(("key", "rest"), [(POWER, 0.0), (CPU, 100.0)])
def test_zero_and_a_physical_limit_are_rest(key: SeriesKey, rest: float) -> None:
    values = moving(500) / 4.0
    values[300:] = rest
    assert scores(values, key).max() <= 1.0
    values[300:] = 42.0
    assert scores(values, key).max() > 1.0


@pytest.mark.parametrize("key", [QUEUE, DISK])
def test_a_service_may_rest_and_so_may_what_nobody_fills(key: SeriesKey) -> None:
    values = moving(500)
    values[300:] = 7.0
    assert scores(values, key).max() == 0.0


def test_what_stands_still_for_an_hour_is_at_rest() -> None:
    values = moving(8000)
    values[500:] = values[500]
    found = scores(values)
    assert found[600:4000].min() > 1.0
    assert found[4200:].max() <= 1.0


def test_missing_values_are_no_rest() -> None:
    values = moving(600)
    values[300:500] = np.nan
    assert scores(values).max() <= 1.0


def test_it_can_be_switched_off() -> None:
    detector = FlatLine(FlatLineSettings(enabled=False))
    detector.grow([POWER])
    values = moving(400)
    values[200:] = values[200]
    found = [
        detector.score(float(n), np.array([v]), np.array([True])).score[0]
        for n, v in enumerate(values)
    ]
    assert np.isnan(found).all()
