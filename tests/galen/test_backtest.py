from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.detection.backtest import BacktestResult, LabelledFault, judged, replay
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample, SeriesKey
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
from galen.backtest.findings import Findings
from galen.backtest.labels import load_faults
from galen.backtest.page import render_html
from galen.backtest.sources import ReplayHistory, chunks_of, from_file, from_store
from galen.errors import ConfigError
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


def history_of(path: Path, start: float = EVER[0], end: float = EVER[1]) -> ReplayHistory:
    return from_store(SqliteSeriesReader(path), start, end)


def result_of(
    given: ReplayHistory, faults: list[LabelledFault] | None = None, warmup: float = 120.0
) -> BacktestResult:
    settings = DetectionSettings()
    replayed = replay(
        given.chunks, settings, given.start_seconds, labels=faults or (),
        watch_entity=given.watch_entity, warmup_seconds=warmup,
    )  # fmt: skip
    return judged(replayed, settings, faults or ())


def findings_of(result: BacktestResult, *, judged: bool = True, source: str = "s") -> Findings:
    return Findings.of(result, source=source, judged=judged, nominal_tail_rate=0.005)


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
    given = history_of(stored)
    assert given.watch_entity == WATCH_ENTITY
    result = result_of(given, warmup=0)
    assert raised
    assert {alarm.key: alarm.raised_seconds for alarm in result.alarms} == raised
    assert {alarm.key: alarm.highest_score for alarm in result.alarms} == highest
    assert result.ticks == 420
    assert given.start_seconds == result.start_seconds == ticks(1)[0][0]
    assert result.end_seconds == ticks()[-1][0] <= given.end_seconds


def test_chunks_of_time_change_nothing(stored: Path) -> None:
    reader = SqliteSeriesReader(stored)
    whole = result_of(history_of(stored))

    def pieces() -> Iterator[tuple[float, pd.DataFrame]]:
        begin = START
        while begin < START + 600:
            # Lengths that cut ticks at every place.
            until = begin + 6.7
            yield until, reader.read(start_seconds=begin, end_seconds=until)
            begin = until

    parts = result_of(ReplayHistory(whole.start_seconds, 0.0, pieces(), watch_entity=WATCH_ENTITY))
    assert parts.alarms == whole.alarms != []
    assert (parts.ticks, parts.series) == (whole.ticks, whole.series)
    assert parts.realised_tail_rate == whole.realised_tail_rate


def test_chunks_follow_the_number_of_samples() -> None:
    asked: list[tuple[float, float]] = []

    def read(begin: float, until: float) -> pd.DataFrame:
        asked.append((begin, until))
        return pd.DataFrame({"time": np.zeros(int((until - begin) * 1000))})

    assert [until for until, _ in chunks_of(read, 0.0, 5000.0)][-1] == 5000.0
    lengths = [until - begin for begin, until in asked]
    assert [begin for begin, _ in asked[1:]] == [until for _, until in asked[:-1]]
    assert lengths[0] == 600
    assert set(lengths[1:-1]) == {500.0}


def test_a_replay_that_is_stopped_tells_what_it_has(stored: Path) -> None:
    given, stop, settings = history_of(stored), threading.Event(), DetectionSettings()
    at = ticks()[FAULT[0] + 20][0]
    replayed = replay(
        given.chunks, settings, given.start_seconds, watch_entity=given.watch_entity,
        progress=lambda now: stop.set() if now >= at else None, stop=stop.is_set,
    )  # fmt: skip
    faults = [LabelledFault(ticks()[FAULT[0]][0], at), LabelledFault(at + 50, at + 60)]
    result = judged(replayed, settings, faults)
    found = findings_of(result)
    assert (found.whole, found.as_hoped) == (False, False)
    assert found.end_seconds == at
    assert [fault.detected for fault in found.faults] == [True]
    assert found.faults_outside == 1
    assert "Stopped before the end" in render_html(found)


def test_a_fault_of_another_signal_is_not_noticed(stored: Path) -> None:
    times = [now for now, _ in ticks()]
    span = times[FAULT[0]], times[FAULT[1]]

    def findings(signal: str) -> Findings:
        faults = [LabelledFault(*span, ["service/llm"], [signal])]
        return findings_of(result_of(history_of(stored), faults))

    right, wrong = findings("llm_latency_seconds"), findings("llm_queue_depth")
    assert (right.qualities[0].detected, right.as_hoped) == (1, True)
    assert right.qualities[0].median_delay_seconds is not None
    assert right.faults[0].noticed_by == "service/llm llm_latency_seconds"
    assert (wrong.qualities[0].detected, wrong.as_hoped) == (0, False)
    assert wrong.faults[0].noticed_by is None
    assert [quality.name for quality in right.qualities] == ["galen", "random", "always"]
    # The nearest miss is shown: the series that the fault was about, in its time.
    (missed,) = [trace for trace in wrong.traces if trace.missed_fault]
    assert missed.signal == "llm_queue_depth"
    assert missed.times[0] < span[1]
    assert missed.times[-1] >= span[0]


def test_the_page_escapes_names_and_needs_nothing_beside_itself(stored: Path) -> None:
    given = history_of(stored)
    bad = "service/<script>alert(1)</script>"
    chunks = (
        (until, frame.replace({"entity": {"service/llm": bad}})) for until, frame in given.chunks
    )
    result = result_of(ReplayHistory(given.start_seconds, 0.0, chunks))
    assert result.alarms
    page = render_html(findings_of(result, judged=False, source="<b>"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>&lt;" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert page.count('class="plot"') == len(result.traces) > 0
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_wide_and_long_files_give_the_same_samples(tmp_path: Path) -> None:
    long = (
        "time,entity,signal,value\n10,host/a,host_load,1\n11,host/a,host_load,2\n11,file/w,cpu,5\n"
    )
    (tmp_path / "l.csv").write_text(long)
    lines = long.splitlines(keepends=True)
    (tmp_path / "unsorted.csv").write_text("".join([lines[0], *reversed(lines[1:])]))
    wide = "timestamp,host/a:host_load,cpu\n10,1,\n11,2,5\n"
    (tmp_path / "w.csv").write_text(wide)
    frame = pd.read_csv(tmp_path / "w.csv")
    (tmp_path / "p").mkdir()
    frame.to_parquet(tmp_path / "p" / "w.parquet")
    wanted = {(10.0, "host/a", "host_load", 1.0), (11.0, "host/a", "host_load", 2.0),
              (11.0, "file/w", "cpu", 5.0)}  # fmt: skip
    for name in ("l.csv", "unsorted.csv", "w.csv", "p/w.parquet"):
        given = from_file(tmp_path / name, *EVER)
        read = pd.concat([frame for _, frame in given.chunks])
        assert set(read.itertuples(index=False, name=None)) == wanted, name
        assert read["time"].is_monotonic_increasing
        assert given.watch_entity is None
        assert given.start_seconds == 10.0
        assert 11.0 < given.end_seconds < 11.01


def test_a_long_file_is_read_in_pieces(tmp_path: Path) -> None:
    times = np.repeat(np.arange(100_000.0), 2)
    frame = pd.DataFrame({"time": times, "entity": "host/a", "signal": "host_load", "value": 1.0})
    frame.to_parquet(tmp_path / "l.parquet")
    chunks = list(from_file(tmp_path / "l.parquet", 5.0, 99_000.0).chunks)
    assert len(chunks) > 2
    assert max(len(chunk) for _, chunk in chunks) < 70_000
    assert sum(len(chunk) for _, chunk in chunks) == 2 * (99_000 - 5)
    for until, chunk in chunks:
        assert chunk["time"].max() <= until


def test_what_cannot_be_replayed_is_said(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to replay"):
        history_of(stored, 0.0, 10.0)
    (tmp_path / "x.csv").write_text("when,cpu\n1,2\n")
    with pytest.raises(ConfigError, match=r"x\.csv, line 1: the first column is 'when'"):
        from_file(tmp_path / "x.csv", *EVER)
    (tmp_path / "y.csv").write_text("time,entity,signal,value\nnoon,a,b,1\n")
    with pytest.raises(ConfigError, match=r"y\.csv"):
        from_file(tmp_path / "y.csv", *EVER)
    pd.DataFrame({"timestamp": [1], "cpu": ["a"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet: column 'cpu'"):
        from_file(tmp_path / "x.parquet", *EVER)


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
    ((_, frame),) = from_file(path, *EVER).chunks
    assert frame["time"].tolist() == [2.0]
