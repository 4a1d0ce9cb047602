from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.detection.backtest import LabelledFault, backtest
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample, SeriesKey
from collectors.store.sqlite import SqliteSeriesStore
from galen.errors import ConfigError
from galen.replay import Findings, load_faults, load_history, render_html
from galen.watch import WATCH_ENTITY

START = 1_800_000_000.0
EVER = (float("-inf"), float("inf"))
FAULT = (300, 340)


def ticks(count: int = 420) -> list[tuple[float, list[Sample]]]:
    """A latency that jumps during the fault, read at a pace that is never quite a second."""
    rng = random.Random(0)
    now, found = START, []
    for number in range(count):
        now = round(now + 1.0 + rng.uniform(0.001, 0.3), 3)
        slow = 3.0 if FAULT[0] <= number < FAULT[1] else 1.0
        values = {"llm_latency_seconds": slow * rng.gauss(0.5, 0.02), "llm_queue_depth": 2.0}
        samples = [Sample(now, "service/llm", name, value) for name, value in values.items()]
        if number:
            samples.append(Sample(now, WATCH_ENTITY, "scrape_duration_seconds", 0.01))
        found.append((now, samples))
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "series.sqlite"
    store = SqliteSeriesStore(path)
    for _, samples in ticks():
        store.write(samples)
    store.close()
    return path


def test_a_replay_of_the_store_ticks_and_scores_as_the_live_loop_did(stored: Path) -> None:
    history = History(capacity_ticks=600)
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
    highest: dict[SeriesKey, float] = {}
    raised: dict[SeriesKey, float] = {}
    for now, samples in ticks():
        for found in pipeline.tick(now, history.append(now, samples)).anomalies:
            key = SeriesKey(found.entity, found.signal)
            raised.setdefault(key, now)
            highest[key] = max(highest.get(key, 0.0), found.score)
    given = load_history(stored, *EVER)
    told: list[float] = []
    result = backtest(
        given.frame, DetectionSettings(), given.start_seconds, given.end_seconds,
        tick_times=given.tick_times, progress=told.append, warmup_seconds=0,
    )  # fmt: skip
    assert raised
    assert {alarm.key: alarm.raised_seconds for alarm in result.alarms} == raised
    assert {alarm.key: alarm.highest_score for alarm in result.alarms} == highest
    assert result.ticks == 420
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0, abs=0.01)


def test_a_fault_of_another_signal_is_not_noticed(stored: Path) -> None:
    given = load_history(stored, *EVER)
    times = [now for now, _ in ticks()]
    span = times[FAULT[0]], times[FAULT[1]]

    def findings(signal: str) -> Findings:
        faults = [LabelledFault(*span, ["service/llm"], [signal])]
        result = backtest(
            given.frame, DetectionSettings(), given.start_seconds, given.end_seconds,
            labels=faults, tick_times=given.tick_times,
        )  # fmt: skip
        return Findings.of(result, source="series.sqlite", judged=True)

    right, wrong = findings("llm_latency_seconds"), findings("llm_queue_depth")
    assert (right.qualities[0].detected, right.as_hoped) == (1, True)
    assert right.qualities[0].median_delay_seconds is not None
    assert (wrong.qualities[0].detected, wrong.as_hoped) == (0, False)
    assert [quality.name for quality in right.qualities] == ["galen", "random", "always"]


def test_the_page_escapes_names_and_needs_nothing_beside_itself(stored: Path) -> None:
    given = load_history(stored, *EVER)
    frame = given.frame.replace({"entity": {"service/llm": "service/<script>alert(1)</script>"}})
    result = backtest(frame, DetectionSettings(), given.start_seconds, given.end_seconds)
    assert result.alarms
    page = render_html(Findings.of(result, source="<b>", judged=False))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
    assert "http" not in page


def test_wide_and_long_files_give_the_same_samples(tmp_path: Path) -> None:
    long = (
        "time,entity,signal,value\n10,host/a,host_load,1\n11,host/a,host_load,2\n11,file/w,cpu,5\n"
    )
    (tmp_path / "l.csv").write_text(long)
    wide = "timestamp,host/a:host_load,cpu\n10,1,\n11,2,5\n"
    (tmp_path / "w.csv").write_text(wide)
    frame = pd.read_csv(tmp_path / "w.csv")
    (tmp_path / "p").mkdir()
    frame.to_parquet(tmp_path / "p" / "w.parquet")
    wanted = {(10.0, "host/a", "host_load", 1.0), (11.0, "host/a", "host_load", 2.0),
              (11.0, "file/w", "cpu", 5.0)}  # fmt: skip
    for name in ("l.csv", "w.csv", "p/w.parquet"):
        given = load_history(tmp_path / name, *EVER)
        assert set(given.frame.itertuples(index=False, name=None)) == wanted, name
        assert given.tick_times is None
        assert given.start_seconds == 10.0
        assert 11.0 < given.end_seconds < 11.01


def test_what_cannot_be_replayed_is_said(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to replay"):
        load_history(stored, 0.0, 10.0)
    (tmp_path / "x.csv").write_text("when,cpu\n1,2\n")
    with pytest.raises(ConfigError, match=r"x\.csv, line 1: the first column is 'when'"):
        load_history(tmp_path / "x.csv", *EVER)
    pd.DataFrame({"timestamp": [1], "cpu": ["a"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet: column 'cpu'"):
        load_history(tmp_path / "x.parquet", *EVER)


def test_labels_are_read_with_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        "start,end,entity,signal\n100,200,,\n"
        "2027-01-15T08:00:00Z,2027-01-15T08:01:00Z,service/llm,llm_latency_seconds\n"
    )
    first, second = load_faults(path)
    assert first == LabelledFault(100, 200)
    assert second == LabelledFault(START, START + 60, ["service/llm"], ["llm_latency_seconds"])
    path.write_text("start,end\n1,2\n")
    assert load_faults(path) == [LabelledFault(1, 2)]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("start\n1\n", "line 1: there is no column 'end'"),
        ("", "line 1: there is no column 'end'"),
        ("start,end\n1,2\nnoon,3\n", "line 3, column 'start': 'noon' is not a time"),
        ("start,end\n5,2\n", "line 2, column 'end': the end is before the start"),
        ("start,end\n5\n", "line 2, column 'end': '' is not a time"),
        ("start,end\nnan,2\n", "line 2"),
    ],
)
def test_wrong_labels_are_refused_naming_the_place(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"labels\.csv, {wrong}"):
        load_faults(path)


def test_missing_values_of_a_wide_file_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    pd.DataFrame({"timestamp": [1.0, 2.0], "cpu": [np.nan, 1.0]}).to_parquet(path)
    assert load_history(path, *EVER).frame["time"].tolist() == [2.0]
