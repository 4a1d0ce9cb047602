from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.detection.backtest import LabelledFault, Replayed, joined, judged, replay
from analysis.detection.replaying.advice import advise
from analysis.detection.replaying.judging import (
    AlarmTable,
    constant_control,
    judge,
    random_control,
)
from analysis.detection.replaying.seasons import ReplayedSeasons, SeasonPlan
from analysis.detection.replaying.ticks import TickRows
from analysis.detection.replaying.trials import UNCHANGED, PolicyChange, changes_worth_trying
from analysis.detection.seasonal_history import fit_shapes
from analysis.detection.settings import AlertSettings, DetectionSettings
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesInfo

START = 1_800_000_000.0
QUEUE, DEPTH = SeriesKey("service/llm", "llm_queue_depth"), 2.0


def frame_of(columns: dict[tuple[str, str], Sequence[float]], step: float = 1.0) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "time": START + step * np.arange(len(values)),
                "entity": entity,
                "signal": signal,
                "value": values,
            }
        )
        for (entity, signal), values in columns.items()
    ]
    frame = pd.concat(parts).dropna()
    return frame.sort_values("time", kind="stable", ignore_index=True)


def bursts(seconds: int, starts: Sequence[int], length: int, seed: int = 0) -> np.ndarray:
    """A queue that is short, and for some seconds long."""
    values = DEPTH + np.random.default_rng(seed).normal(0, 0.2, seconds)
    for start in starts:
        values[start : start + length] += 60.0
    return values


def replayed_of(
    frame: pd.DataFrame, settings: DetectionSettings | None = None, **options: Any
) -> Replayed:
    return replay([(np.inf, frame)], settings or DetectionSettings(), START, **options)


def test_the_unchanged_policy_raises_what_the_real_one_does(loaded_service: Any) -> None:
    service = loaded_service(seed=3, fault="slow", fault_at=200, fault_until=1000)
    rows = [
        (s.time_seconds, s.entity, s.signal, s.value) for _ in range(1000) for s in service.second()
    ]
    frame = pd.DataFrame(rows, columns=["time", "entity", "signal", "value"])
    found = replayed_of(frame)
    table = found.trials[UNCHANGED]
    real = [(a.raised_seconds, a.key, a.last_seconds) for a in found.alarms]
    # Long enough that deviations are absorbed, and levels re-based.
    assert max(last - raised for raised, _, last in real) > 590
    assert list(zip(table.raised, table.keys, table.last, strict=True)) == real


def test_an_unchanged_policy_forgets_retired_series_as_the_real_one_does() -> None:
    settings = DetectionSettings(retire_after_seconds=3600.0)
    gone = np.where(np.arange(9000) < 700, bursts(9000, [400], 30), np.nan)
    frame = frame_of(
        {
            ("service/a", "llm_queue_depth"): gone,
            ("service/b", "llm_queue_depth"): bursts(9000, [300, 6000], 30, seed=1),
        }
    )
    found = replayed_of(frame, settings)
    table = found.trials[UNCHANGED]
    assert {key.entity for key in table.keys} == {"service/a", "service/b"}
    assert list(zip(table.raised, table.keys, table.last, strict=True)) == [
        (a.raised_seconds, a.key, a.last_seconds) for a in found.alarms
    ]
    assert any(alarm.raised_seconds > START + 6000 for alarm in found.alarms)


def advice_of(frame: pd.DataFrame, faults: Sequence[LabelledFault] = ()) -> Any:
    return judged(replayed_of(frame, labels=faults), DetectionSettings(), faults)


def test_advice_that_holds_in_both_halves_is_given_and_true() -> None:
    starts = range(300, 3500, 300)
    frame = frame_of({QUEUE: bursts(3600, starts, 4)})
    result = advice_of(frame)
    assert len(result.alarms) == len(starts)
    best = result.advice.proposals[0]
    assert best.confirmed
    assert best.chosen_on.false_alarms_removed == best.chosen_on.false_alarms_before > 3
    assert result.advice.together is not None
    assert result.advice.together.false_alarms_removed > 3
    told = tomllib.loads(result.advice.toml)["analysis"]["detection"]
    again = replayed_of(frame, DetectionSettings.model_validate(told))
    assert len(again.alarms) < len(result.alarms) / 2


def test_advice_that_only_fits_the_first_half_is_not_given() -> None:
    frame = frame_of({QUEUE: bursts(3600, range(300, 1700, 300), 4)})
    advice = advice_of(frame).advice
    assert advice.proposals
    assert not any(one.confirmed for one in advice.proposals)
    assert (advice.toml, advice.together) == ("", None)


def test_advice_does_not_lose_faults() -> None:
    # Long bursts are faults and short ones are not; half of the faults are no longer than they.
    starts, faulty = range(300, 3500, 300), {600, 1200, 2400, 3000}
    values = bursts(3600, [s for s in starts if s not in faulty], 4)
    values += bursts(3600, sorted(faulty), 5, seed=1) - DEPTH
    faults = [LabelledFault(START + s, START + s + 20) for s in sorted(faulty)]
    result = advice_of(frame_of({QUEUE: values}), faults)
    assert result.quality.detected == len(faulty)
    assert result.quality.false_alarms > 0
    for one in result.advice.proposals:
        if one.chosen_on.faults_lost or one.confirmed_on.faults_lost:
            assert not one.confirmed
    lost = [one.change.name for one in result.advice.proposals if one.chosen_on.faults_lost]
    assert "four times the duration" in lost


def test_names_from_the_data_cannot_leave_the_snippet() -> None:
    evil = 'x"]\n[healing]\nmode = "auto" # [*?]'
    key = SeriesKey("a/b", evil)
    times = START + np.array([10.0, 20.0, 80.0, 90.0])
    noisy = AlarmTable([key] * 4, times, times + 1)
    none = AlarmTable([], np.empty(0), np.empty(0))
    tables = {UNCHANGED: noisy, PolicyChange("longer", duration_factor=2.0): none}
    toml = advise(tables, DetectionSettings(), (), [key], (START, START + 100)).toml
    told = tomllib.loads(toml)
    assert list(told) == ["analysis"]
    settings = DetectionSettings.model_validate(told["analysis"]["detection"])
    (override,) = settings.overrides
    assert override.covers("a/b", evil)
    assert not override.covers("a/b", evil.replace("*", "z"))


def test_the_changes_that_are_tried_are_valid_settings() -> None:
    for alerts in (
        AlertSettings(),
        AlertSettings(clear_level=0.01, clear_seconds=3600, rearm_seconds=86400),
    ):
        for change in changes_worth_trying(alerts):
            AlertSettings.model_validate({**alerts.model_dump(), **dict(change.alerts)})


def test_the_constant_control_is_what_its_alarms_would_be() -> None:
    keys = [SeriesKey("host/a", "x"), SeriesKey("host/a", "y"), SeriesKey("host/b", "x")]
    faults = [
        LabelledFault(1000, 1130, ["host/a"]),
        LabelledFault(1100, 1300, (), ["x"]),
        LabelledFault(1505, 1590),
    ]
    span = (600.0, 2000.0)
    starts = np.arange(*span, 60.0)
    table = AlarmTable(
        [key for _ in starts for key in keys],
        np.repeat(starts, len(keys)),
        np.repeat(starts + 60, len(keys)),
    )
    assert constant_control(faults, keys, span) == judge(table, faults, 3, span).quality
    short = constant_control([LabelledFault(1505, 1510)], keys, span)
    assert (short.detected, short.delay_seconds) == (1, (5.0,))
    assert constant_control([LabelledFault(1505, 1590, ["gpu/9"])], keys, span).detected == 0
    assert random_control(0, faults, keys, span, 0).false_alarms == 0
    assert random_control(9, [], keys, span, 0).false_alarms == 9


def test_parts_of_a_fleet_are_joined_to_the_whole() -> None:
    columns = {
        (f"service/{name}", "llm_queue_depth"): bursts(1500, [400 + 50 * at, 1000], 8, seed=at)
        for at, name in enumerate("abc")
    }
    faults = [LabelledFault(START + 400, START + 500, ["service/b"])]
    whole = judged(replayed_of(frame_of(columns), labels=faults), DetectionSettings(), faults)
    parts = [
        replayed_of(frame_of({name: values}), labels=faults) for name, values in columns.items()
    ]
    together = judged(joined(parts), DetectionSettings(), faults)
    for name in ("alarms", "right", "quality", "controls", "realised_tail_rate", "ticks", "advice"):
        assert getattr(together, name) == getattr(whole, name), name
    assert [t.key for t in together.traces] == [t.key for t in whole.traces]


def taken(rows: TickRows, frame: pd.DataFrame, until: float = np.inf) -> list[Any]:
    return [(at - START, row.tolist()) for at, row in rows.take(frame, until)]


def table(*samples: tuple[float, str, float]) -> pd.DataFrame:
    columns = ["time", "entity", "value"]
    frame = pd.DataFrame([(START + at, *rest) for at, *rest in samples], columns=columns)
    return frame.assign(signal="x")


def test_samples_belong_to_the_first_tick_that_is_not_before_them() -> None:
    frame = table((0, "a", 1), (0.4, "b", 2), (1.0, "a", 3), (1.2, "a", 4), (1.9, "a", 5))
    nan = pytest.approx(np.nan, nan_ok=True)
    assert taken(TickRows(START, step_seconds=1.0), frame) == [
        (0, [1]), (1, [3, 2]), (2, [5, nan]),
    ]  # fmt: skip


def test_the_watch_loops_own_ticks_are_used_where_it_ran() -> None:
    frame = table(
        # History from elsewhere, then the loop's first tick, two more, a stop, and a new start.
        (0, "a", 1), (15, "a", 2), (1000, "a", 3), (1001.2, "a", 4), (1001.2, "w", 1),
        (1002.5, "a", 5), (1002.5, "w", 1), (2000, "a", 6), (2001, "a", 7), (2001, "w", 1),
    )  # fmt: skip
    rows = TickRows(START, step_seconds=15.0, watch_entity="w")
    assert [at for at, _ in taken(rows, frame)] == pytest.approx(
        [0, 15, 1000, 1001.2, 1002.5, 2000, 2001]
    )


def test_silence_is_replayed_and_a_long_one_is_a_pause() -> None:
    rows = TickRows(START, step_seconds=60.0)
    ticks = [at for at, _ in taken(rows, table((0, "a", 1), (300, "a", 1), (86_400, "a", 1)))]
    assert ticks[:6] == [0, 60, 120, 180, 240, 300]
    assert len(ticks) == 6 + 60 + 1
    assert ticks[-1] == 86_400


def test_a_tick_waits_for_all_its_samples() -> None:
    rows = TickRows(START, step_seconds=10.0)
    assert taken(rows, table((0, "a", 1), (5, "a", 2)), START + 7) == [(0, [1])]
    assert taken(rows, table((8, "b", 3)), START + 10) == []
    assert taken(rows, table((10, "c", 4)), START + 11) == [(10, [2, 3, 4])]


def test_replayed_seasons_are_those_of_the_store() -> None:
    hours = 80
    at = START + 300.0 * np.arange(12 * hours)
    values = (
        50 + 30 * np.sin(2 * np.pi * at / 86_400) + np.random.default_rng(0).normal(0, 1, len(at))
    )
    key = SeriesKey("gpu/0", "gpu_utilization_percent")

    class Reader:
        def series(self) -> list[SeriesInfo]:
            return [SeriesInfo(key, {}, float(at[0]), float(at[-1]), 0.0)]

        def read_rollup(self, **_: Any) -> pd.DataFrame:
            columns = {"time": at // 60 * 60, "entity": key.entity, "signal": key.signal}
            return pd.DataFrame({**columns, "mean": values})

    seasons = ReplayedSeasons(SeasonPlan(79.5 * 3600, 1e9, 1e9))
    found = {}
    for now, value in zip(at, values, strict=True):
        shapes = seasons.take(float(now), np.array([value]), [key])
        found |= shapes
        if shapes:
            upto = at < now - now % 300
            at, values = at[upto], values[upto]
            break
    stored = fit_shapes(Reader(), 0.0, 1e12)  # type: ignore[arg-type]
    assert found.keys() == stored.keys() == {key}
    np.testing.assert_allclose(found[key].offsets, stored[key].offsets)
