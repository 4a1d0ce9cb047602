"""The live pipeline on a service under changing load: quiet while it is well, quick when it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.findings import Direction
from analysis.history import History
from collectors.contract import Sample

QUIET_SECONDS = 480
SYMPTOMS = (
    "llm_request_latency",
    "llm_time",
    "llm_queue",
    "llm_error",
    "canary",
    "engine_",
    "health",
)
FAULT_AT = 180
SECONDS_TO_SHOW = 10

Replay = Callable[..., list[Detections]]


def raised(results: list[Detections]) -> dict[tuple[str, str], int]:
    """Return the first tick of each anomaly by signal and direction."""
    first: dict[tuple[str, str], int] = {}
    for tick, detections in enumerate(results, start=1):
        for anomaly in detections.anomalies:
            first.setdefault((anomaly.signal, anomaly.direction.value), tick)
    return first


@pytest.mark.parametrize(
    ("seed", "mean_rate", "swing"), [(0, 10.0, 4.0), (1, 12.0, 4.0), (2, 4.0, 3.0), (0, 1.5, 2.0)]
)
def test_changing_load_alone_raises_nothing(
    loaded_service: Any, replay: Replay, seed: int, mean_rate: float, swing: float
) -> None:
    service = loaded_service(seed=seed, mean_rate=mean_rate, swing=swing)
    found = raised(replay(service, QUIET_SECONDS))
    symptoms = [key for key in found if key[0].startswith(SYMPTOMS)]
    assert symptoms == []
    assert len(found) <= 1, found


EXPECTED = {
    "hang": {
        ("llm_tokens_per_second", "down"),
        ("engine_step_age_seconds", "up"),
        ("llm_queue_depth", "up"),
    },
    "slow": {("llm_request_latency_seconds", "up"), ("engine_step_seconds", "up")},
    "surge": {
        ("llm_requests_per_second", "up"),
        ("llm_queue_depth", "up"),
        ("llm_rejected_ratio", "up"),
    },
    "leak": {("engine_resident_memory_bytes", "up")},
    "throttle": {("gpu_throttle_thermal", "up"), ("llm_request_latency_seconds", "up")},
    "canary": {("canary_output_match", "down")},
    "crash": {("engine_crashes", "event")},
}


@pytest.mark.parametrize("fault", sorted(EXPECTED))
def test_a_fault_shows_within_ten_seconds(loaded_service: Any, replay: Replay, fault: str) -> None:
    seed = sorted(EXPECTED).index(fault)
    at = FAULT_AT + 11 * seed
    service = loaded_service(seed=seed, fault=fault, fault_at=at, fault_until=at + 30)
    found = raised(replay(service, at + SECONDS_TO_SHOW))
    assert all(tick >= at for tick in found.values()), found
    assert set(found) >= EXPECTED[fault], found


def test_a_fault_that_ends_clears(loaded_service: Any, replay: Replay) -> None:
    service = loaded_service(seed=1, fault="hang", fault_at=200, fault_until=230)
    results = replay(service, 330)
    assert results[225].anomalies
    assert [a.signal for a in results[-1].anomalies] == []


def test_the_onset_is_near_the_fault_and_stays(loaded_service: Any, replay: Replay) -> None:
    service = loaded_service(seed=0, fault="slow", fault_at=200, fault_until=260)
    results = replay(service, 250)
    onsets = {
        round(anomaly.onset_seconds - 1_800_000_000.0)
        for detections in results
        for anomaly in detections.anomalies
        if anomaly.signal == "engine_step_seconds"
    }
    assert len(onsets) == 1
    assert 200 <= onsets.pop() <= 202


def test_a_start_from_nothing_is_quiet(loaded_service: Any, replay: Replay) -> None:
    class Waiting(loaded_service):  # type: ignore[misc]
        """Nobody calls for a while, then traffic begins within a second."""

        def rate(self) -> float:
            return 0.0 if self.time < self.idle_seconds else float(super().rate())

    for idle in (5, 40, 150):
        service = Waiting(seed=4)
        service.idle_seconds = idle
        assert raised(replay(service, idle + 150)) == {}, idle


def test_traffic_that_stops_is_a_drop_of_requests(loaded_service: Any, replay: Replay) -> None:
    class Stopping(loaded_service):  # type: ignore[misc]
        def rate(self) -> float:
            return 0.0 if self.time >= 200 else float(super().rate())

    found = raised(replay(Stopping(seed=2), 215))
    assert ("llm_requests_per_second", "down") in found
    assert not [key for key in found if key[0].startswith(("llm_request_latency", "llm_queue"))]


def test_a_state_names_harmless_deviations_without_raising_them(
    loaded_service: Any, replay: Replay
) -> None:
    class Faster(loaded_service):  # type: ignore[misc]
        def step_seconds(self) -> float:
            return float(super().step_seconds()) * (0.1 if self.time > 200 else 4.0)

    results = replay(Faster(seed=0, mean_rate=3.0), 206)
    state = next(
        state for key, state in results[-1].states.items() if key.signal == "engine_step_seconds"
    )
    assert state.direction is Direction.DOWN
    assert state.score > 1
    assert not state.active
    assert math.isclose(state.age_seconds, 0.0)


NEW = {
    "llm_request_latency_seconds": (0.3, 0.03, 1.5),
    "llm_requests_per_second": (20.0, 2.0, 200.0),
    "custom_queue": (10.0, 1.0, 60.0),
}
"""By signal: its usual level and spread, and its level in a fault."""


@pytest.mark.parametrize("cadence", [1.0, 5.0, 15.0])
@pytest.mark.parametrize("signal", sorted(NEW))
def test_a_fault_two_minutes_after_a_series_was_first_seen_is_found(
    signal: str, cadence: float
) -> None:
    usual, spread, broken = NEW[signal]
    random = np.random.default_rng(0)
    history = History(capacity_ticks=20)
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
    found = []
    for tick in range(int(240 / cadence)):
        seconds = tick * cadence
        level, noise = (usual, spread) if seconds < 120 else (broken, 0.05 * broken)
        value = level + noise * float(random.normal())
        now = 1_800_000_000.0 + seconds
        row = history.append(now, [Sample(now, "service/new", signal, value)])
        if pipeline.tick(now, row).anomalies:
            found.append(seconds)
    assert found, "the fault was not found"
    assert 120 <= found[0] <= 120 + max(10.0, 3 * cadence)
