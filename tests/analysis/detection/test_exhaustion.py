from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.contract import FloatArray
from analysis.detection.exhaustion import Exhaustion
from analysis.detection.settings import ExhaustionSettings
from collectors.contract import SeriesKey

DISK = SeriesKey("host/a", "host_disk_free_bytes")
USED = SeriesKey("host/a", "host_disk_used_ratio")
GPU_USED = SeriesKey("host/a/gpu/0", "gpu_memory_used_bytes")
GPU_TOTAL = SeriesKey("host/a/gpu/0", "gpu_memory_total_bytes")
LATENCY = SeriesKey("service/llm", "llm_request_latency_seconds")


def played(
    keys: list[SeriesKey], values: FloatArray, step: float = 1.0
) -> tuple[FloatArray, Exhaustion]:
    detector = Exhaustion(ExhaustionSettings())
    detector.grow(keys)
    learn = np.ones(len(keys), dtype=bool)
    rows = [detector.score(step * tick, row, learn).score for tick, row in enumerate(values)]
    return np.nan_to_num(np.array(rows)), detector


def test_a_disk_that_fills_tells_when_it_is_full() -> None:
    seconds = np.arange(400.0)
    noise = np.random.default_rng(0).normal(0, 2e6, 400)
    found, detector = played([DISK], (20e9 - 30e6 * seconds + noise)[:, None])
    ahead = detector.forecast
    assert ahead is not None
    left = (20e9 - 30e6 * 399) / 30e6
    assert ahead.seconds[0] == pytest.approx(left, rel=0.03)
    assert ahead.soonest[0] <= ahead.seconds[0] <= ahead.latest[0]
    assert ahead.latest[0] - ahead.soonest[0] < 0.2 * left
    assert (ahead.limit[0], ahead.per_second[0]) == (0.0, pytest.approx(-30e6, rel=0.03))
    assert found[-1, 0] > 1.0
    assert found[:200].max() <= 1.0  # four minutes are looked at before an alarm


def test_slow_growth_is_told_hours_ahead_and_no_sooner() -> None:
    minutes = np.arange(60 * 10.0)
    noise = np.random.default_rng(1).normal(0, 1e-4, len(minutes))
    used = 0.4 + 0.001 * minutes + noise  # full after ten hours
    found, _ = played([USED], used[:, None], step=60.0)
    told = np.flatnonzero(found[:, 0] > 1.0)
    hours_left = (1.0 - used[told[0]]) / 0.001 / 60
    assert 3.8 <= hours_left <= 4.1


def test_the_limit_of_a_gpu_is_its_own_memory() -> None:
    seconds = np.arange(300.0)
    used = 60e9 + 50e6 * seconds
    values = np.column_stack((used, np.full(300, 80e9)))
    for keys, columns in (([GPU_USED, GPU_TOTAL], [0, 1]), ([GPU_TOTAL, GPU_USED], [1, 0])):
        found, detector = played(keys, values[:, columns])
        place = keys.index(GPU_USED)
        assert found[-1, place] > 1.0
        assert detector.forecast is not None
        assert detector.forecast.seconds[place] == pytest.approx((80e9 - used[-1]) / 50e6, rel=0.1)
    alone, _ = played([GPU_USED], used[:, None])
    assert alone.max() == 0.0


def test_growth_that_ends_or_turns_back_is_none() -> None:
    seconds = np.arange(2000)
    random = np.random.default_rng(2)
    levels_off = 0.3 + 0.5 * (1 - np.exp(-seconds / 60)) + random.normal(0, 1e-3, 2000)
    rotates = 0.3 + 0.4 * (seconds % 500) / 500 + random.normal(0, 1e-3, 2000)
    steps = 0.2 + 0.1 * (seconds // 300) + random.normal(0, 1e-3, 2000)
    for values in (levels_off, steps):
        assert played([USED], values[:, None])[0].max() <= 1.0
    # A disk that is cleaned at 70% would be full within a few minutes each time, and is not.
    found = played([USED], rotates[:, None])[0]
    assert (found > 1.0).mean() < 0.6
    quiet = 0.5 + random.normal(0, 0.01, 2000)
    assert played([USED], quiet[:, None])[0].max() == 0.0


def test_what_has_no_limit_or_is_no_resource_is_not_watched() -> None:
    values = np.column_stack((np.arange(300.0), np.arange(300.0)))
    keys = [LATENCY, SeriesKey("app/x", "not_in_the_catalogue")]
    found, detector = played(keys, values)
    assert found.max() == 0.0
    assert detector.forecast is None


def test_a_clean_up_begins_a_new_window() -> None:
    seconds = np.arange(600.0)
    free = 20e9 - 30e6 * seconds
    free[400:] += 60e9
    found, detector = played([DISK], free[:, None])
    assert found[395:400, 0].min() > 1.0
    assert found[400:, 0].max() <= 1.0
    assert detector.forecast is not None
    assert detector.forecast.seconds[0] == pytest.approx(free[-1] / 30e6, rel=0.05)


def test_series_can_be_dropped_and_capacities_are_found_again() -> None:
    detector = Exhaustion(ExhaustionSettings())
    detector.grow([DISK, LATENCY, GPU_TOTAL, GPU_USED])
    seconds = np.arange(300.0)
    values = np.column_stack(
        (20e9 + 0 * seconds, seconds, np.full(300, 80e9), 60e9 + 50e6 * seconds)
    )
    for tick, row in enumerate(values[:200]):
        detector.score(float(tick), row, np.ones(4, dtype=bool))
    detector.keep(np.array([False, False, True, True]))
    for tick, row in enumerate(values[200:], start=200):
        found = detector.score(float(tick), row[2:], np.ones(2, dtype=bool)).score
    assert found[1] > 1.0
