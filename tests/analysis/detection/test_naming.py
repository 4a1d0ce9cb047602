"""Every anomaly names the signals that make it up."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.naming import SignalNaming
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.findings import Direction
from analysis.history import History
from collectors.contract import Sample, SeriesKey

SERVICE, OTHER = "service/llm", "service/other"
USUAL = {
    SeriesKey(SERVICE, "llm_request_latency_seconds"): 0.3,
    SeriesKey(SERVICE, "llm_queue_depth"): 2.0,
    SeriesKey(SERVICE, "llm_requests_per_second"): 20.0,
    SeriesKey(SERVICE, "llm_tokens_per_second"): 900.0,
    SeriesKey(OTHER, "llm_request_latency_seconds"): 0.2,
    SeriesKey("host/a", "host_disk_free_bytes"): 30e9,
}


def play(ticks: int, fault_at: int, factors: dict[SeriesKey, float]) -> Detections:
    history = History(capacity_ticks=20)
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
    random = np.random.default_rng(0)
    for tick in range(ticks):
        now = 1_000_000.0 + tick
        samples = []
        for key, usual in USUAL.items():
            factor = factors.get(key, 1.0) if tick >= fault_at else 1.0
            samples.append(Sample(now, *key, usual * factor * (1 + 0.03 * random.normal())))
        result = pipeline.tick(now, history.append(now, samples))
    return result


def test_the_signals_of_an_anomaly_are_named_with_their_shares() -> None:
    latency, queue = list(USUAL)[:2]
    found = play(210, 200, {latency: 6.0, queue: 20.0})
    assert {each.entity for each in found.anomalies} == {SERVICE}
    for anomaly in found.anomalies:
        top = anomaly.top_signals
        assert {each.signal for each in top[:2]} == {latency.signal, queue.signal}
        shares = [each.share for each in top]
        assert shares == sorted(shares, reverse=True)
        assert 0.8 < sum(shares) <= 1.0 + 1e-6
        for each in top[:2]:
            assert each.direction is Direction.UP
            assert each.high is not None
            assert each.expected is not None
            assert each.onset_seconds == pytest.approx(1_000_200, abs=3)
    share = found.states[latency].share + found.states[queue].share
    assert share > 0.8
    assert found.states[SeriesKey(OTHER, latency.signal)].share == 0.0


def test_without_anomalies_nothing_is_named() -> None:
    found = play(150, 200, {})
    assert found.anomalies == ()
    assert not any(state.share for state in found.states.values())


def test_shares_of_an_entity_sum_to_one() -> None:
    naming = SignalNaming()
    naming.grow(
        [SeriesKey("a", "x"), SeriesKey("b", "x"), SeriesKey("a", "y"), SeriesKey("c", "x")]
    )
    active = np.array([True, False, False, False])
    share = naming.shares(np.array([3.0, 9.0, 1.0, 0.0]), active, None)
    assert share.tolist() == [0.9, 0.0, 0.1, 0.0]
    naming.keep(np.array([True, False, True, True]))
    assert naming.shares(np.zeros(3), np.array([False, False, True]), None).sum() == 0.0


def test_an_anomaly_of_what_runs_out_says_when() -> None:
    disk = SeriesKey("host/a", "host_disk_free_bytes")
    history = History(capacity_ticks=20)
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
    for tick in range(400):
        now = 1_000_000.0 + tick
        left = 30e9 - 40e6 * tick
        result = pipeline.tick(now, history.append(now, [Sample(now, *disk, left)]))
    (anomaly,) = result.anomalies
    assert "exhaustion" in anomaly.detectors
    assert anomaly.direction is Direction.DOWN
    ahead = anomaly.exhaustion
    assert ahead is not None
    assert ahead.seconds == pytest.approx(left / 40e6, rel=0.05)
    assert ahead.limit == 0.0
    assert ahead == result.states[disk].exhaustion
