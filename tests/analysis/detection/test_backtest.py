from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from analysis.detection.backtest import LabelledFault, backtest
from analysis.detection.contract import Detections
from analysis.detection.settings import DetectionSettings
from collectors.contract import SeriesKey

Replay = Callable[..., list[Detections]]
START = 1_800_000_000.0


def long_table(service: Any, seconds: int) -> pd.DataFrame:
    rows = []
    for _ in range(seconds):
        rows.extend((s.time_seconds, s.entity, s.signal, s.value) for s in service.second())
    return pd.DataFrame(rows, columns=["time", "entity", "signal", "value"])


@pytest.fixture
def slow(loaded_service: Any) -> Any:
    return loaded_service(seed=0, fault="slow", fault_at=180, fault_until=205)


def test_a_replay_says_what_the_live_pipeline_said(
    loaded_service: Any, replay: Replay, slow: Any
) -> None:
    live = replay(slow, 220)
    table = long_table(loaded_service(seed=0, fault="slow", fault_at=180, fault_until=205), 220)
    result = backtest(table, DetectionSettings(), START + 1, START + 221, warmup_seconds=0)
    raised = {
        SeriesKey(a.entity, a.signal): detections.time_seconds
        for detections in reversed(live)
        for a in detections.anomalies
    }
    assert raised
    assert {alarm.key: alarm.raised_seconds for alarm in result.alarms} == raised
    assert (result.ticks, result.series) == (220, len(live[-1].states))


def test_it_counts_hits_delays_and_false_alarms(slow: Any) -> None:
    table = long_table(slow, 240)
    right = LabelledFault(START + 180, START + 210, ["service/llm"])
    result = backtest(table, DetectionSettings(), START + 1, START + 241, labels=[right])
    assert (result.quality.faults, result.quality.detected) == (1, 1)
    assert result.quality.false_alarms == 0
    assert 0 < result.quality.delay_seconds[0] <= 10
    assert result.controls["always"].detected == 1
    assert result.controls["always"].false_alarms > 10
    wrong = LabelledFault(START + 130, START + 150, ["service/llm"])
    other = backtest(table, DetectionSettings(), START + 1, START + 241, labels=[wrong])
    assert other.quality.detected == 0
    assert other.quality.false_alarms == len(other.alarms) > 0
    assert other.quality.false_alarms_per_series_day > 0
    assert sum(other.alarms_per_series_day().values()) > 0


def test_it_is_causal(slow: Any) -> None:
    table = long_table(slow, 215)
    whole = backtest(table, DetectionSettings(), START + 1, START + 216)
    short = backtest(
        table[table["time"] < START + 195], DetectionSettings(), START + 1, START + 216
    )
    early = [(a.key, a.raised_seconds) for a in whole.alarms if a.raised_seconds < START + 195]
    assert early
    assert early == [
        (a.key, a.raised_seconds) for a in short.alarms if a.raised_seconds < START + 195
    ]


def test_it_reads_a_store() -> None:
    class Reader:
        def series(self) -> list[Any]:
            return []

        def read(self, *, start_seconds: float, end_seconds: float, **_: Any) -> pd.DataFrame:
            times = [start_seconds + tick for tick in range(30)]
            up = [0.0 if tick > 20 else 1.0 for tick in range(30)]
            return pd.DataFrame(
                {"time": times, "entity": "service/llm", "signal": "engine_up", "value": up}
            )

        def close(self) -> None:
            pass

    result = backtest(Reader(), DetectionSettings(), 0.0, 30.0, warmup_seconds=0)
    (alarm,) = result.alarms
    assert (alarm.key.signal, alarm.detectors) == ("engine_up", ("limit",))
    assert alarm.raised_seconds == 22.0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'entity'"):
        backtest(pd.DataFrame({"time": [1.0]}), DetectionSettings(), 0, 10)
    empty = pd.DataFrame({"time": [50.0], "entity": "a/b", "signal": "x", "value": 1.0})
    with pytest.raises(ValueError, match="nothing to replay"):
        backtest(empty, DetectionSettings(), 0, 10)
