from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from analysis.detection.contract import FloatArray
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.peers import Peers
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings, PeerSettings
from analysis.findings import Direction
from analysis.history import History
from collectors.contract import Sample, SeriesKey

GPUS = [f"host/a/gpu/{number}" for number in range(8)]
TEMPERATURES = [SeriesKey(gpu, "gpu_temperature_celsius") for gpu in GPUS]
LOADS = [SeriesKey(gpu, "gpu_utilization_percent") for gpu in GPUS]


def temperatures(seconds: int, seed: int = 0) -> FloatArray:
    """Return temperatures and loads of eight GPUs that do the same changing work."""
    random = np.random.default_rng(seed)
    work = 70 + 25 * np.sin(np.arange(seconds) / 50)[:, None]
    places = np.linspace(-2, 2, 8)
    hot = 30 + 0.5 * work + places + random.normal(0, 0.7, (seconds, 8))
    return np.hstack((np.round(hot), work + random.normal(0, 2, (seconds, 8))))


def scores(
    values: FloatArray,
    keys: list[SeriesKey] | None = None,
    labels: Mapping[SeriesKey, Mapping[str, str]] | None = None,
    step: float = 1.0,
    **settings: float,
) -> FloatArray:
    known = labels or {}
    peers = Peers(PeerSettings.model_validate(settings), lambda key: known.get(key, {}))
    keys = TEMPERATURES + LOADS if keys is None else keys
    peers.grow(keys)
    learn = np.ones(len(keys), dtype=bool)
    rows = [peers.score(step * tick, row, learn).score for tick, row in enumerate(values)]
    return np.nan_to_num(np.array(rows))


def test_one_hot_gpu_of_eight_is_named_without_any_past() -> None:
    values = temperatures(120)
    values[:, 5] += 20.0  # from the first value on
    found = scores(values)
    assert set(np.flatnonzero((found > 1).any(axis=0))) == {5}
    first = int(np.flatnonzero(found[:, 5] > 1)[0])
    assert 15 <= first <= 40


def test_gpus_of_equal_work_are_quiet_at_any_load() -> None:
    assert scores(temperatures(3000)).max() <= 1.0


def test_what_passes_soon_is_not_named() -> None:
    values = temperatures(200)
    values[60:70, 5] += 30.0
    assert scores(values).max() <= 1.0


def test_a_gpu_that_is_cooler_is_harmless() -> None:
    values = temperatures(120)
    values[:, 5] -= 20.0
    assert scores(values).max() <= 1.0


def test_a_gpu_that_works_alone_is_hotter_by_right() -> None:
    values = temperatures(300)
    values[:, 8:] = 2.0
    values[:, 13] = 95.0
    values[:, 5] += 30.0
    assert scores(values).max() <= 1.0
    # Without any word of how busy they are nothing can be said.
    assert scores(values[:, :8], TEMPERATURES).max() <= 1.0


def test_half_of_the_siblings_are_no_exception() -> None:
    values = temperatures(200)
    values[:, :4] += 20.0
    assert scores(values).max() <= 1.0


def test_three_others_are_needed() -> None:
    values = temperatures(200)
    values[:, 2] += 25.0
    few = [*range(3), *range(8, 11)]
    keys = TEMPERATURES + LOADS
    assert scores(values[:, few], [keys[column] for column in few]).max() <= 1.0
    four = [*range(4), *range(8, 12)]
    assert scores(values[:, four], [keys[column] for column in four])[:, 2].max() > 1.0


def test_a_usual_distance_is_learned_and_a_new_one_is_told() -> None:
    values = temperatures(2000)
    values[:, 6] += 8.0  # the warmest place
    values[1500:, 6] += 14.0
    found = scores(values, memory_seconds=200)
    assert found[:1500].max() <= 1.0
    assert found[1500:1560, 6].max() > 1.0


def test_a_distance_that_stays_is_usual_in_the_end() -> None:
    values = temperatures(900)
    values[100:, 6] += 25.0
    found = scores(values, absorb_seconds=300)[:, 6]
    assert found[150:390].min() > 1.0
    assert found[450:].max() <= 1.0


def test_single_gpus_of_one_model_are_siblings_across_hosts() -> None:
    hosts = [f"host/h{number}/gpu/0" for number in range(8)]
    keys = [SeriesKey(gpu, "gpu_temperature_celsius") for gpu in hosts]
    keys += [SeriesKey(gpu, "gpu_utilization_percent") for gpu in hosts]
    values = temperatures(120)
    values[:, 5] += 20.0
    assert scores(values, keys).max() <= 1.0
    same = {key: {"name": "NVIDIA H100 80GB HBM3"} for key in keys}
    assert set(np.flatnonzero((scores(values, keys, same) > 1).any(axis=0))) == {5}
    other = {**same, keys[5]: {"name": "NVIDIA L4"}}
    assert scores(values, keys, other).max() <= 1.0


@pytest.mark.parametrize("scraped", ["together", "in turn"])
def test_a_slow_replica_is_named(scraped: str) -> None:
    replicas = [f"service/llm/replica/{number}" for number in range(5)]
    keys = [SeriesKey(replica, "llm_request_latency_seconds") for replica in replicas]
    random = np.random.default_rng(1)
    values = 0.4 * random.lognormal(0, 0.15, (200, 5))
    values[100:, 3] *= 3.0
    if scraped == "in turn":
        turn = (np.arange(200)[:, None] + np.arange(5)) % 5 == 0
        values = np.where(turn, values, np.nan)
    found = scores(values, keys)
    assert found[:100].max() <= 1.0
    assert set(np.flatnonzero((found > 1).any(axis=0))) == {3}


def test_different_services_are_no_siblings() -> None:
    keys = [SeriesKey(f"service/s{n}", "llm_request_latency_seconds") for n in range(6)]
    values = np.full((100, 6), 0.2)
    values[:, 1] = 5.0
    assert scores(values, keys).max() <= 1.0


def test_a_band_around_the_siblings_is_told() -> None:
    peers = Peers(PeerSettings())
    peers.grow(TEMPERATURES + LOADS)
    for tick, row in enumerate(temperatures(60)):
        row[5] += 20.0
        told = peers.score(float(tick), row, np.ones(16, dtype=bool))
    others = np.median(row[:8])
    assert told.expected[5] == pytest.approx(others, abs=3)
    assert told.low[5] < others < told.high[5] < row[5]
    assert np.isnan(told.expected[8:]).all()


def test_series_can_be_dropped() -> None:
    values = temperatures(160)
    values[:, 5] += 20.0
    peers = Peers(PeerSettings())
    keys = TEMPERATURES + LOADS
    peers.grow(keys)
    for tick, row in enumerate(values[:60]):
        peers.score(float(tick), row, np.ones(16, dtype=bool))
    kept = np.ones(16, dtype=bool)
    kept[[0, 8]] = False
    peers.keep(kept)
    for tick, row in enumerate(values[60:], start=60):
        found = peers.score(float(tick), row[kept], np.ones(14, dtype=bool)).score
        assert set(np.flatnonzero(np.nan_to_num(found) > 1)) == {4}


def test_the_pipeline_names_one_degraded_gpu_of_eight_within_a_minute() -> None:
    history = History(capacity_ticks=20)
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
    random = np.random.default_rng(0)
    for tick in range(60):
        now = 1_000_000.0 + tick
        samples = []
        for gpu in GPUS:
            clock = 1980 - 15 * random.integers(0, 6) - (600 if gpu.endswith("/5") else 0)
            samples.append(Sample(now, gpu, "gpu_utilization_percent", 90 + random.normal()))
            samples.append(Sample(now, gpu, "gpu_sm_clock_mhz", float(clock)))
        result = pipeline.tick(now, history.append(now, samples))
    (anomaly,) = result.anomalies
    assert (anomaly.entity, anomaly.signal) == (GPUS[5], "gpu_sm_clock_mhz")
    assert anomaly.direction is Direction.DOWN
    assert anomaly.detectors == ("peers",)
    assert anomaly.expected == pytest.approx(1940, abs=40)
    assert anomaly.low is not None
    assert anomaly.low > 1500
    assert anomaly.top_signals[0].signal == anomaly.signal
