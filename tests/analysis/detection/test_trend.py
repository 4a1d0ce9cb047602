from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.contract import FloatArray
from analysis.detection.settings import TrendSettings
from analysis.detection.trend import Trend
from collectors.contract import SeriesKey

MEMORY = [SeriesKey("service/llm", "engine_resident_memory_bytes")]


def scores(values: FloatArray, step: float = 1.0) -> FloatArray:
    trend = Trend(TrendSettings())
    trend.grow(MEMORY)
    learn = np.array([True])
    rows = [trend.score(step * n, np.array([v]), learn).score[0] for n, v in enumerate(values)]
    return np.nan_to_num(np.array(rows))


def resident(seconds: int, seed: int = 0) -> FloatArray:
    return 400e6 + np.random.default_rng(seed).normal(0, 1e6, seconds)


@pytest.mark.parametrize("rate", [20e6, 50e6, 200e6])
def test_a_fast_leak_shows_within_ten_seconds(rate: float) -> None:
    values = resident(200)
    values[120:] += rate * np.arange(80)
    found = np.flatnonzero(scores(values) > 1)
    assert 120 < found[0] <= 130
    assert found[-1] == 199


def test_a_slow_leak_shows_within_minutes() -> None:
    values = resident(1200)
    values[500:] += 0.5e6 * np.arange(700)
    found = np.flatnonzero(scores(values) > 1)
    assert 500 < found[0] < 500 + 300


def test_loading_a_model_is_no_leak() -> None:
    values = resident(300)
    values[100:] += 800e6
    values[150:] += 800e6
    assert scores(values).max() <= 1


def test_warm_up_that_levels_off_is_no_leak() -> None:
    seconds = np.arange(900)
    values = resident(900) + 250e6 * (1 - np.exp(-seconds / 12))
    assert scores(values).max() <= 1


def test_growth_with_load_within_the_range_seen_is_no_leak() -> None:
    seconds = np.arange(2400)
    values = resident(2400) + 150e6 * np.sin(seconds * 2 * np.pi / 600) ** 2
    assert scores(values)[600:].max() <= 1


def test_a_restart_forgets_and_gives_time_to_settle() -> None:
    values = resident(200)
    values[100:] = 100e6 + 40e6 * np.arange(100)
    found = np.flatnonzero(scores(values) > 1)
    assert found.size == 0 or found[0] >= 145


def test_only_what_can_leak_is_watched() -> None:
    trend = Trend(TrendSettings())
    trend.grow([SeriesKey("service/llm", "llm_queue_depth")])
    result = trend.score(0.0, np.array([1e12]), np.array([True]))
    assert np.isnan(result.score[0])


def wandering(count: int, seed: int) -> FloatArray:
    """Return noise that remembers two of its values."""
    random = np.random.default_rng(seed)
    noise = np.zeros(count)
    for tick in range(1, count):
        noise[tick] = 0.6 * noise[tick - 1] + 0.8 * random.normal()
    return noise


@pytest.mark.parametrize("step", [15.0, 60.0])
def test_the_first_values_of_a_cache_are_no_leak_at_slow_cadences(step: float) -> None:
    found = [scores(40e9 + 2e8 * wandering(30, seed), step).max() > 1 for seed in range(100)]
    assert sum(found) <= 1
