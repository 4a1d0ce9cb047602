"""Shifts of level through the whole pipeline: told once, then normal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.findings import LevelShift
from analysis.history import History
from collectors.contract import Sample, SeriesKey

RATE = SeriesKey("service/llm", "llm_requests_per_second")
LATENCY = SeriesKey("service/llm", "llm_request_latency_seconds")
START = 1_000_000.0


class Run:
    """Plays one series and remembers what was said of it."""

    def __init__(self, key: SeriesKey, **settings: Any) -> None:
        self.key = key
        self.history = History(capacity_ticks=20)
        self.pipeline = DetectionPipeline(
            DetectionSettings.model_validate({"forest": {"enabled": False}, **settings}),
            self.history,
            executor=SameThreadExecutor(),
        )
        self.random = np.random.default_rng(0)
        self.tick = 0
        self.raised: list[int] = []
        self.shifts: list[LevelShift] = []

    def __call__(self, count: int, level: float | Callable[[int], float]) -> Detections:
        for number in range(count):
            now = START + self.tick
            mean = level(number) if callable(level) else level
            value = mean * float(self.random.lognormal(0, 0.08))
            row = self.history.append(now, [Sample(now, *self.key, value)])
            result = self.pipeline.tick(now, row)
            self.shifts += result.shifts
            if result.anomalies:
                self.raised.append(self.tick)
            self.tick += 1
        return result

    @property
    def episodes(self) -> int:
        """How many times an anomaly began."""
        return int((np.diff(self.raised, prepend=-10) > 1).sum())


def test_load_that_moves_is_told_once_and_is_the_new_normal() -> None:
    run = Run(RATE)
    run(200, 20.0)
    run(1000, 90.0)
    assert run.episodes == 1
    assert len(run.raised) < 150
    (shift,) = run.shifts
    assert (shift.entity, shift.signal, shift.unit) == (*RATE, "requests/second")
    assert 200 <= shift.at_seconds - START <= 204
    assert shift.before == pytest.approx(20.0, rel=0.15)
    assert shift.after == pytest.approx(90.0, rel=0.1)
    state = run(1, 90.0).states[RATE]
    assert state.expected == pytest.approx(90.0, rel=0.1)


def test_the_anomaly_says_that_it_is_a_shift_before_it_ends() -> None:
    run = Run(RATE)
    run(200, 20.0)
    early = run(8, 90.0)
    assert early.anomalies[0].shift is None
    later = run(40, 90.0)
    shift = later.anomalies[0].shift
    assert shift is not None
    assert shift == later.states[RATE].shift
    assert (shift.before, shift.after) == (
        pytest.approx(20.0, rel=0.15),
        pytest.approx(90.0, rel=0.1),
    )
    assert run.shifts == []  # it is told when it is taken for normal


def test_going_back_is_no_surprise() -> None:
    run = Run(RATE)
    run(200, 20.0)
    run(400, 90.0)
    before = len(run.raised)
    state = run(300, 20.0).states[RATE]
    assert len(run.raised) == before
    assert state.expected == pytest.approx(20.0, rel=0.15)
    # The level that it had left is none that it knows: it is told again.
    run(200, 90.0)
    assert run.episodes == 2


def test_a_third_level_is_told() -> None:
    run = Run(RATE)
    run(200, 20.0)
    run(400, 90.0)
    run(100, 4.0)
    assert run.episodes == 2


def test_symptoms_are_told_for_as_long_as_they_hurt_and_then_as_a_shift() -> None:
    run = Run(LATENCY)
    run(200, 0.3)
    run(900, 2.0)
    assert run.episodes == 1
    assert 590 <= len(run.raised) <= 610
    (shift,) = run.shifts
    assert shift.after == pytest.approx(2.0, rel=0.15)


def test_what_passes_is_no_shift() -> None:
    run = Run(RATE)
    run(200, 20.0)
    run(60, 90.0)
    run(200, 20.0)
    assert run.episodes == 1
    assert run.shifts == []


def test_what_goes_on_climbing_has_not_reached_its_level() -> None:
    run = Run(RATE)
    run(200, 20.0)
    last = run(200, lambda number: 60.0 * 1.03**number)
    assert last.anomalies
    assert run.shifts == []
    assert last.states[RATE].shift is None


def test_a_restart_in_the_middle_of_a_shift_goes_on(tmp_path: Any) -> None:
    one, other = Run(RATE), Run(RATE)
    for run in (one, other):
        run(200, 20.0)
        run(60, 90.0)
    path = tmp_path / "state.npz"
    one.pipeline.save(path)
    resumed = DetectionPipeline(
        DetectionSettings.model_validate({"forest": {"enabled": False}}),
        one.history,
        executor=SameThreadExecutor(),
    )
    resumed.load(path)
    one.pipeline = resumed
    one(300, 90.0)
    other(300, 90.0)
    assert one.shifts == other.shifts
    assert one.raised == other.raised
