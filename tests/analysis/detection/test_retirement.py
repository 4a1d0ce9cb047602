from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.retirement import Retirement
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.settings import DetectionSettings, MaintenanceWindow
from analysis.history import History
from collectors.contract import Sample, SeriesKey

SERVICE = "service/llm"
LATENCY = SeriesKey(SERVICE, "llm_request_latency_seconds")
RATE = SeriesKey(SERVICE, "llm_requests_per_second")
MEMORY = SeriesKey(SERVICE, "engine_resident_memory_bytes")
POD_SIGNALS = ("gpu_utilization_percent", "gpu_memory_used_bytes", "gpu_temperature_celsius")
SETTINGS = DetectionSettings(
    retire_after_seconds=120,
    maintenance=(MaintenanceWindow(name="never", cron="0 0 29 2 *", duration_seconds=1),),
)


class Fleet:
    """A service that stays and pods that are replaced."""

    def __init__(self, settings: DetectionSettings = SETTINGS) -> None:
        self.history = History(capacity_ticks=20)
        self.pipeline = DetectionPipeline(settings, self.history, executor=SameThreadExecutor())
        self.now = 1_000_000.0
        self.random = np.random.default_rng(0)

    def tick(self, *pods: str, latency: float = 0.3) -> Detections:
        self.now += 1.0
        wobble = self.random.normal(0, 1, 3)
        values = {
            LATENCY: latency * (1 + 0.03 * wobble[0]),
            RATE: 20 + wobble[1],
            MEMORY: 4e8 + 1e5 * wobble[2],
        }
        values |= {SeriesKey(f"host/{pod}", name): 50.0 for pod in pods for name in POD_SIGNALS}
        samples = [Sample(self.now, *key, value) for key, value in values.items()]
        return self.pipeline.tick(self.now, self.history.append(self.now, samples))

    def ticks(self, count: int, *pods: str) -> Detections:
        for _ in range(count):
            result = self.tick(*pods)
        return result


def test_a_series_is_gone_after_its_time_and_not_before() -> None:
    retirement = Retirement(800.0)
    seen = np.array([0.0, 0.0])
    for now in np.arange(0.0, 3000.0, 10.0):
        seen[0] = now
        gone = retirement.gone(now, seen)
        if gone is not None:
            break
    assert gone is not None
    assert gone.tolist() == [False, True]
    assert 800 < now <= 900


def test_after_a_pause_each_series_gets_the_time_to_speak_again() -> None:
    retirement = Retirement(800.0)
    seen = np.array([0.0])
    retirement.gone(0.0, seen)
    assert retirement.gone(100_000.0, seen) is None
    assert all(retirement.gone(100_000.0 + 10 * n, seen) is None for n in range(10))
    assert retirement.gone(100_101.0, seen) is not None


def test_what_only_a_shape_knows_is_gone_when_it_never_speaks() -> None:
    retirement = Retirement(80.0)
    seen = np.array([np.nan, np.nan])
    answers = [retirement.gone(float(now), seen) for now in range(31)]
    first = next(n for n, gone in enumerate(answers) if gone is not None)
    assert 10 < first <= 20
    assert answers[first].all()


def test_churn_does_not_add_up() -> None:
    fleet = Fleet()
    sizes = []
    for generation in range(12):
        result = fleet.ticks(80, f"pod{generation}", f"pod{generation}b")
        sizes.append(len(result.states))
    assert max(sizes) <= 3 + 6 * 4
    assert sizes[-1] < 3 + 6 * 12
    state = {
        f"{name}/{array_name}": array
        for name, part in fleet.pipeline._parts().items()
        for array_name, array in part.state().items()
    }
    assert max(len(array) for array in state.values() if array.ndim == 1) <= max(sizes)
    assert len(fleet.pipeline._profiles.keys) <= max(sizes)


def test_the_others_go_on_as_if_nothing_had_been() -> None:
    def scores(*, churn: bool) -> list[tuple[float, float, bool]]:
        fleet = Fleet()
        found = []
        for tick in range(700):
            pods = (f"pod{tick // 100}",) if churn else ()
            latency = 2.0 if 500 <= tick < 520 else 0.3
            result = fleet.tick(*pods, latency=latency)
            state = result.states[LATENCY]
            active = any(each.signal == LATENCY.signal for each in result.anomalies)
            found.append((state.score, state.expected or 0.0, active))
        return found

    with_churn, alone = scores(churn=True), scores(churn=False)
    assert any(active for *_, active in alone)
    for one, other in zip(with_churn, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_states_of_a_tick_stay_what_they_were() -> None:
    fleet = Fleet()
    early = fleet.ticks(30, "pod")
    key = SeriesKey("host/pod", POD_SIGNALS[0])
    fleet.ticks(300)
    later = fleet.tick()
    assert early.states[key].observed == 50.0
    assert key not in later.states
    assert set(later.states) == {LATENCY, RATE, MEMORY}


def test_a_retired_series_that_speaks_again_starts_anew() -> None:
    fleet = Fleet()
    fleet.ticks(60, "pod")
    fleet.ticks(300)
    key = SeriesKey("host/pod", POD_SIGNALS[0])
    assert key in fleet.history.keys  # an hour has not passed
    state = fleet.tick("pod").states[key]
    assert (state.observed, state.warmed_up) == (50.0, False)
    assert fleet.ticks(100, "pod").states[key].warmed_up


def test_state_and_shapes_survive_a_restart_after_retirement(tmp_path) -> None:
    fleet = Fleet()
    shape = SeasonalShape(86_400.0, np.linspace(-1, 1, 24))
    fleet.ticks(60, "pod")
    fleet.pipeline.adopt_shapes({RATE: shape, SeriesKey("service/never", "x"): shape})
    fleet.ticks(300)
    assert SeriesKey("service/never", "x") not in fleet.tick().states
    fleet.pipeline.save(tmp_path / "state.npz")
    again = Fleet()
    again.now, again.random = fleet.now, np.random.default_rng(3)
    fleet.random = np.random.default_rng(3)
    assert again.pipeline.load(tmp_path / "state.npz")
    for _ in range(40):
        one, other = fleet.tick(), again.tick()
        assert one.states[RATE] == other.states[RATE]


def test_history_forgets_what_its_ring_does_not_hold() -> None:
    history = History(capacity_ticks=8)
    key, old = SeriesKey("a", "x"), SeriesKey("a", "old")
    history.append(0.0, [Sample(0.0, *old, 1.0), Sample(0.0, *key, 5.0)])
    layout = history.layout
    for tick in range(1, 258):
        history.append(60.0 * tick, [Sample(60.0 * tick, *key, float(tick))])
    assert history.keys == (key,)
    assert history.layout != layout
    assert history.last_seen_seconds(old) is None
    times, values = history.window(key, 0.0, np.inf)
    assert values.tolist() == [float(tick) for tick in range(250, 258)]
    assert len(times) == 8
    row = history.append(1e6, [Sample(1e6, *old, 2.0)])
    assert np.isnan(row[0])
    assert row[1] == 2.0


def test_a_series_that_was_seen_within_the_hour_is_not_forgotten() -> None:
    history = History(capacity_ticks=4)
    for tick in range(600):
        samples = [Sample(float(tick), "a", "x", 1.0)]
        if tick == 0:
            samples.append(Sample(0.0, "a", "old", 1.0))
        history.append(float(tick), samples)
    assert SeriesKey("a", "old") in history.keys
