from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.settings import DetectionSettings, MaintenanceWindow, SignalOverride
from analysis.findings import Direction
from analysis.history import History
from collectors.contract import Sample, SeriesKey

SERVICE = "service/llm"
LATENCY = SeriesKey(SERVICE, "llm_request_latency_seconds")
RATE = SeriesKey(SERVICE, "llm_requests_per_second")
UP = SeriesKey(SERVICE, "engine_up")
XID = SeriesKey("host/a/gpu/0", "gpu_xid")
ECC = SeriesKey("host/a/gpu/0", "gpu_ecc_uncorrectable_total")
SLOTS = SeriesKey(SERVICE, "llm_slots")


class Feed:
    """A pipeline with its history; each call is one tick."""

    def __init__(
        self, settings: DetectionSettings | None = None, *, cadence: float = 1.0, **given: Any
    ) -> None:
        self.history = History(capacity_ticks=20)
        self.executor = given.pop("executor", SameThreadExecutor())
        self.pipeline = DetectionPipeline(
            settings or DetectionSettings(), self.history, executor=self.executor, **given
        )
        self.cadence = cadence
        self.now = 1_000_000.0

    def __call__(self, values: dict[SeriesKey, float], **labels: str) -> Detections:
        self.now += self.cadence
        samples = [Sample(self.now, *key, value, labels) for key, value in values.items()]
        return self.pipeline.tick(self.now, self.history.append(self.now, samples))

    def many(self, count: int, make: Callable[[int], dict[SeriesKey, float]]) -> Detections:
        for tick in range(count):
            result = self(make(tick))
        return result


def steady(tick: int) -> dict[SeriesKey, float]:
    wobble = np.random.default_rng(tick).normal(0, 1, 2)
    return {LATENCY: 0.3 + 0.01 * wobble[0], RATE: 20 + wobble[1], UP: 1.0}


def signals(detections: Detections) -> set[str]:
    return {anomaly.signal for anomaly in detections.anomalies}


@pytest.mark.parametrize("cadence", [1.0, 5.0, 15.0, 60.0])
def test_it_works_at_every_cadence(cadence: float) -> None:
    feed = Feed(cadence=cadence)
    assert not feed.many(200, steady).anomalies
    result = feed.many(4, lambda tick: {**steady(tick), LATENCY: 1.5})
    assert signals(result) == {LATENCY.signal}
    (anomaly,) = result.anomalies
    assert anomaly.direction is Direction.UP
    assert anomaly.expected == pytest.approx(0.3, abs=0.03)
    assert anomaly.high is not None
    assert 0.3 < anomaly.high < 1.5
    assert anomaly.detectors[0] == "baseline"


def test_a_slow_series_in_fast_ticks_counts_its_own_values() -> None:
    feed = Feed()

    def make(value: float) -> Callable[[int], dict[SeriesKey, float]]:
        return lambda tick: {RATE: 20.0, **({LATENCY: value} if tick % 15 == 0 else {})}

    feed.many(15 * 60, make(0.3))
    result = feed.many(16, make(2.0))
    state = result.states[LATENCY]
    assert state.observed == 2.0
    assert state.direction is Direction.UP
    assert LATENCY.signal in signals(feed.many(14, make(2.0)))


def test_nothing_is_said_of_a_series_in_its_first_values() -> None:
    feed = Feed()
    result = feed.many(8, steady)
    state = result.states[LATENCY]
    assert (state.expected, state.score, state.warmed_up) == (None, 0.0, False)
    assert state.observed is not None


def test_a_strong_deviation_shows_before_two_minutes() -> None:
    feed = Feed()
    feed.many(45, steady)
    result = feed.many(5, lambda tick: {**steady(tick), LATENCY: 30.0})
    assert LATENCY.signal in signals(result)


def test_limits_speak_from_the_first_values() -> None:
    feed = Feed()
    result = feed.many(2, lambda _: {UP: 0.0})
    (anomaly,) = result.anomalies
    assert (anomaly.signal, anomaly.direction, anomaly.low) == ("engine_up", Direction.DOWN, 1.0)
    assert anomaly.detectors == ("limit",)


def test_an_event_is_held_and_names_what_was_seen() -> None:
    feed = Feed()
    feed.many(20, lambda _: {XID: 0.0})
    feed({XID: 79.0})
    result = feed.many(40, lambda _: {XID: 0.0})
    (anomaly,) = result.anomalies
    assert (anomaly.direction, anomaly.observed) == (Direction.EVENT, 79.0)
    state = result.states[XID]
    assert (state.direction, state.observed, state.active) == (Direction.EVENT, 79.0, True)
    assert feed.many(40, lambda _: {XID: 0.0}).anomalies == ()


def test_a_counter_is_judged_by_its_increase() -> None:
    feed = Feed()
    assert not feed.many(50, lambda _: {ECC: 12.0}).anomalies
    assert signals(feed({ECC: 13.0})) == {ECC.signal}
    # A driver reload sets the counter back; that is no error.
    other = Feed()
    other.many(50, lambda _: {ECC: 12.0})
    assert not other({ECC: 0.0}).anomalies


def test_a_signal_without_a_bad_direction_is_never_raised() -> None:
    feed = Feed()
    feed.many(200, lambda _: {SLOTS: 8.0})
    result = feed.many(30, lambda _: {SLOTS: 400.0})
    assert result.anomalies == ()
    assert result.states[SLOTS].score > 1
    gone = feed.many(60, lambda _: {UP: 1.0})
    assert gone.anomalies == ()
    assert gone.states[SLOTS].direction is Direction.ABSENT


def test_a_series_that_stops_is_absent_and_one_that_needs_traffic_is_not() -> None:
    feed = Feed()
    feed.many(60, steady)
    result = feed.many(8, lambda _: {UP: 1.0})
    assert signals(result) == {RATE.signal}
    assert result.anomalies[0].direction is Direction.ABSENT
    state = result.states[LATENCY]
    assert (state.observed, state.direction, state.active) == (None, Direction.ABSENT, False)
    back = feed.many(30, steady)
    assert not back.anomalies


def test_a_series_that_is_gone_for_good_is_let_go() -> None:
    settings = DetectionSettings.model_validate({"alerts": {"absorb_seconds": 60}})
    feed = Feed(settings)
    feed.many(60, steady)
    assert feed.many(30, lambda _: {UP: 1.0}).anomalies
    assert not feed.many(60, lambda _: {UP: 1.0}).anomalies


def test_a_pause_of_the_watch_is_nobodys_absence() -> None:
    feed = Feed()
    feed.many(60, steady)
    feed.now += 3600
    assert not feed.many(20, steady).anomalies


def test_a_level_shift_is_told_once_and_becomes_the_normal() -> None:
    settings = DetectionSettings.model_validate({"alerts": {"absorb_seconds": 120}})
    feed = Feed(settings)
    feed.many(200, steady)
    runs, active = 0, False
    for tick in range(400):
        now_active = bool(feed({**steady(tick), LATENCY: 2.0}).anomalies)
        runs, active = runs + (now_active and not active), now_active
    assert (runs, active) == (1, False)
    state = feed({**steady(0), LATENCY: 2.0}).states[LATENCY]
    assert state.expected == pytest.approx(2.0, rel=0.05)


def test_the_baseline_does_not_learn_from_an_anomaly() -> None:
    feed = Feed()
    feed.many(200, steady)
    result = feed.many(300, lambda tick: {**steady(tick), LATENCY: 2.0})
    assert result.states[LATENCY].expected == pytest.approx(0.3, abs=0.03)


def test_simulated_series_are_marked() -> None:
    feed = Feed()
    for _ in range(3):
        result = feed({UP: 0.0}, simulated="true")
    assert result.anomalies[0].simulated


def test_infinite_values_are_taken_for_missing() -> None:
    feed = Feed()
    feed.many(60, steady)
    result = feed({**steady(0), LATENCY: float("inf")})
    assert result.states[LATENCY].observed == pytest.approx(0.3, abs=0.05)


def test_states_are_of_their_tick() -> None:
    feed = Feed()
    first = feed({UP: 1.0})
    feed({UP: 0.0, LATENCY: 1.0})
    assert list(first.states) == [UP]
    assert first.states[UP].observed == 1.0
    with pytest.raises(KeyError):
        first.states[LATENCY]


def run_on(feed: Feed, ticks: Iterable[int]) -> list[tuple[float, ...]]:
    rows = []
    for tick in ticks:
        result = feed({**steady(tick), LATENCY: 2.0 if 30 <= tick % 90 < 40 else 0.3})
        states = sorted(result.states.values(), key=lambda state: state.key)
        rows.append(tuple(state.score for state in states))
        rows.append(tuple(anomaly.onset_seconds for anomaly in result.anomalies))
    return rows


def test_a_restart_goes_on_with_the_same_scores(tmp_path: Path) -> None:
    before = Feed()
    run_on(before, range(215))
    path = tmp_path / "detection.npz"
    before.pipeline.save(path)
    after = Feed()
    after.now = before.now
    # The new history meets the series in another order.
    after.history.append(after.now, [Sample(after.now, *RATE, 20.0)])
    assert after.pipeline.load(path)
    assert run_on(after, range(215, 400)) == run_on(before, range(215, 400))


def test_without_a_file_detection_starts_anew(tmp_path: Path) -> None:
    assert Feed().pipeline.load(tmp_path / "none.npz") is False


def test_saving_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "detection.npz"
    feed = Feed()
    feed.many(20, steady)
    feed.pipeline.save(path)
    sound = path.read_bytes()

    def fail(*_args: object, **_arrays: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space"):
        feed.pipeline.save(path)
    assert path.read_bytes() == sound
    assert list(tmp_path.iterdir()) == [path]


def test_a_tick_never_waits_for_a_fit() -> None:
    release = threading.Event()
    started = threading.Event()

    class Slow(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            def wait() -> Any:
                started.set()
                release.wait(30)
                return fn(*args, **kwargs)

            return super().submit(wait)

    executor = Slow(1)
    try:
        settings = DetectionSettings.model_validate({"forest": {"first_rows": 20}})
        feed = Feed(settings, executor=executor)
        # The fit is held until the ticks are through: were one to wait for it, this would hang.
        feed.many(120, steady)
        assert started.is_set()
    finally:
        release.set()
        executor.shutdown()


def test_a_failed_fit_leaves_the_rest_running() -> None:
    class Failing(SameThreadExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            return super().submit(lambda: 1 / 0)

    settings = DetectionSettings.model_validate({"forest": {"first_rows": 20}})
    feed = Feed(settings, executor=Failing())
    feed.many(200, steady)
    result = feed.many(5, lambda tick: {**steady(tick), LATENCY: 2.0})
    assert LATENCY.signal in signals(result)


def test_a_seasonal_shape_moves_what_is_expected() -> None:
    feed = Feed(cadence=60.0)
    times = np.arange(24)
    shape = SeasonalShape(86_400.0, np.where(times < 12, 0.0, 1.5))
    feed.pipeline.adopt_shapes({LATENCY: shape})
    expected = []
    for _ in range(1440):
        hour = (feed.now + 60) % 86_400 / 3600
        position = np.arcsinh(0.3 / 0.02) + shape.at((feed.now + 60) % 86_400)
        result = feed({LATENCY: float(0.02 * np.sinh(position))})
        expected.append((hour, result.states[LATENCY].expected))
        assert not result.anomalies
    late = {h: e for h, e in expected if e is not None}
    day = np.mean([e for h, e in late.items() if 14 < h < 22])
    night = np.mean([e for h, e in late.items() if 2 < h < 10])
    assert day > 3 * night


def test_a_refitted_shape_changes_nothing_that_is_expected_now() -> None:
    feed = Feed()
    feed.many(200, steady)
    before = feed(steady(0)).states[LATENCY]
    feed.pipeline.adopt_shapes({LATENCY: SeasonalShape(86_400.0, np.linspace(-1.0, 1.0, 24))})
    after = feed(steady(0)).states[LATENCY]
    assert after.warmed_up
    assert after.expected == pytest.approx(before.expected, rel=0.02)
    assert after.high == pytest.approx(before.high, rel=0.05)


STATE = SeriesKey("host/a/gpu/0", "gpu_state")
VERSION = SeriesKey("host/a", "gpu_driver_version")


def test_a_state_is_raised_by_its_rule_at_once_and_other_states_are_not() -> None:
    feed = Feed()
    feed.many(30, lambda _: {STATE: 0.0, VERSION: 580.065})
    found = feed({STATE: 2.0, VERSION: 590.0})
    assert [(each.signal, each.direction, each.observed) for each in found.anomalies] == [
        ("gpu_state", Direction.UP, 2.0)
    ]
    over = feed.many(20, lambda _: {STATE: 0.0, VERSION: 590.0})
    assert over.anomalies == ()


def test_a_state_that_is_told_no_more_holds_no_anomaly() -> None:
    feed = Feed()
    feed.many(30, lambda _: {STATE: 0.0, LATENCY: 0.3})
    feed({STATE: 2.0, LATENCY: 0.3})
    assert feed.many(30, lambda _: {LATENCY: 0.3}).anomalies == ()


def _quiet_from(feed: Feed, seconds: float, **fields: Any) -> DetectionSettings:
    start = datetime.fromtimestamp(feed.now, UTC)
    window = MaintenanceWindow(
        name="w", start=start, end=start + timedelta(seconds=seconds), **fields
    )
    return DetectionSettings(maintenance=(window,))


def test_a_state_and_an_anomaly_say_how_rare_the_value_is() -> None:
    feed = Feed()
    assert feed.many(70, steady).states[LATENCY].p_value is None
    usual = [feed(steady(tick)).states[LATENCY].p_value for tick in range(70, 470)]
    known = [p_value for p_value in usual if p_value is not None]
    assert len(known) > 300
    # About half of the values deviate to the harmless side, where every p-value is 1.
    assert 0.3 < np.mean([p_value < 0.5 for p_value in known]) < 0.6
    result = feed.many(4, lambda tick: {**steady(tick), LATENCY: 1.5})
    (anomaly,) = result.anomalies
    assert anomaly.p_value is not None
    assert anomaly.p_value == pytest.approx(1 / 129)  # as rare as the first block can tell
    event = feed.many(3, lambda tick: {**steady(tick), XID: 0.0}).states[XID]
    assert event.p_value is None


def test_a_tick_tells_how_often_each_detector_was_wrong() -> None:
    feed = Feed()
    result = feed.many(300, steady)
    told = {each.detector: each for each in result.realised}
    assert list(told) == ["baseline", "mahalanobis", "forest", "p_value"]
    assert told["baseline"].nominal_rate == DetectionSettings().baseline.tail_rate
    assert told["baseline"].seen > 400
    assert told["baseline"].above / told["baseline"].seen < 0.02


def test_maintenance_neither_alarms_nor_teaches():
    clock = Feed()
    feed = Feed(_quiet_from(clock, 240.0, entities=(SERVICE,)))
    feed.many(120, steady)
    level = feed(steady(200)).states[LATENCY].expected
    during = [feed({LATENCY: 3.0, RATE: 20.0, UP: 0.0}) for _ in range(60)]
    assert not any(tick.anomalies for tick in during)
    assert during[-1].states[LATENCY].score > 1.0  # it is seen, and not raised
    assert during[-1].states[LATENCY].expected == pytest.approx(level, rel=0.05)

    feed.now += 120.0  # the window ends
    after = feed.many(10, lambda _: {LATENCY: 3.0, RATE: 20.0, UP: 0.0})
    assert {each.signal for each in after.anomalies} >= {LATENCY.signal, UP.signal}


def test_what_was_raised_before_maintenance_ends_in_it():
    clock = Feed()
    start = datetime.fromtimestamp(clock.now, UTC) + timedelta(seconds=140)
    window = MaintenanceWindow(name="w", start=start, end=start + timedelta(seconds=600))
    feed = Feed(DetectionSettings(maintenance=(window,)))
    feed.many(120, steady)
    broken = {LATENCY: 3.0, RATE: 20.0, UP: 0.0}
    assert feed.many(15, lambda _: broken).anomalies
    assert not feed.many(30, lambda _: broken).anomalies


def test_overrides_change_single_series():
    broken = {LATENCY: 3.0, RATE: 20.0, UP: 1.0}

    def raised(*overrides: SignalOverride) -> bool:
        feed = Feed(DetectionSettings(overrides=overrides))
        feed.many(120, steady)
        return bool(feed.many(6, lambda _: broken).anomalies)

    signals = (LATENCY.signal,)
    assert raised()
    assert not raised(SignalOverride(signals=signals, enabled=False))
    assert not raised(SignalOverride(signals=("llm_*",), minimum_values=20, minimum_seconds=60))
    assert not raised(SignalOverride(signals=signals, bad_direction="down"))
    assert raised(SignalOverride(entities=("service/other",), signals=signals, enabled=False))
    # Of several that match the last one wins.
    off = SignalOverride(signals=("llm_*",), enabled=False)
    assert raised(off, SignalOverride(signals=signals))
