from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore

T0 = 1_700_002_800.0  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteSeriesStore]:
    opened = SqliteSeriesStore(tmp_path / "series.sqlite")
    yield opened
    opened.close()


def count(store: SqliteSeriesStore, table: str) -> int:
    (rows,) = store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(rows)


def fill(store: SqliteSeriesStore, seconds: range, series: int = 3) -> None:
    for at in seconds:
        store.write([Sample(T0 + at, f"host/{name}", "x", at + name / 8) for name in range(series)])


def test_the_hour_that_runs_stays_as_it_was_written(store: SqliteSeriesStore) -> None:
    fill(store, range(0, 2 * 3600, 60))
    before = store.read(**EVER)
    assert store.compact(now_seconds=T0 + 7200 + 60, budget_seconds=10.0)
    assert (count(store, "blocks"), count(store, "hot")) == (3, 60)
    assert store.compact(now_seconds=T0 + 7200 + 120, budget_seconds=10.0)
    assert (count(store, "blocks"), count(store, "hot")) == (6, 0)
    pd.testing.assert_frame_equal(store.read(**EVER), before)


def test_late_samples_open_their_block_again(store: SqliteSeriesStore) -> None:
    fill(store, range(0, 3600, 10))
    store.compact(now_seconds=T0 + 7200, budget_seconds=10.0)
    store.write([Sample(T0 + 5, "host/0", "x", -1.0), Sample(T0 + 10, "host/0", "x", -2.0)])
    for _ in range(2):
        frame = store.read(start_seconds=T0, end_seconds=T0 + 11, entities=["host/0"])
        assert frame["value"].tolist() == [0.0, -1.0, -2.0]
        store.compact(now_seconds=T0 + 7200, budget_seconds=10.0)
    assert (count(store, "blocks"), count(store, "hot")) == (3, 0)


def test_a_budget_of_nothing_still_moves_something_and_loses_nothing(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    store = SqliteSeriesStore(tmp_path / "series.sqlite", clock=lambda: float(next(ticks)))
    fill(store, range(5), series=500)
    before = store.read(**EVER)
    calls, blocks = 0, [0]
    while not store.compact(now_seconds=T0 + 7200, budget_seconds=0.0):
        calls += 1
        blocks.append(count(store, "blocks"))
        pd.testing.assert_frame_equal(store.read(**EVER), before)
        rolled = store.read_rollup(**EVER)
        assert (len(rolled), rolled["count"].sum()) == (500, 2500)
    assert calls > 1
    assert blocks == sorted(set(blocks))
    assert (count(store, "blocks"), count(store, "hot")) == (500, 0)
    store.close()


def test_too_many_samples_do_not_wait_for_the_hour(tmp_path: Path) -> None:
    store = SqliteSeriesStore(tmp_path / "series.sqlite", most_hot_samples=100)
    for at in range(400):
        store.write([Sample(T0 + at, "host/a", "x", float(at))])
        store.compact(now_seconds=T0 + at, budget_seconds=1.0)
        assert count(store, "hot") <= 101
    assert store.read(**EVER)["value"].tolist() == [float(at) for at in range(400)]
    store.close()


def test_samples_of_tomorrow_hold_up_no_others(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + 86_400, "host/a", "x", 9.0)])
    fill(store, range(0, 3600, 60))
    store.write([Sample(T0 + 86_401, "host/a", "x", 9.0)])
    store.compact(now_seconds=T0 + 7200, budget_seconds=10.0)
    assert (count(store, "blocks"), count(store, "hot")) == (3, 2)
    assert len(store.read(**EVER)) == 182


def test_a_constant_a_counter_and_noise_take_few_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    total, counter = 720 * 24, 0.0
    for at in range(total):
        counter += float(noise.integers(0, 50))
        load = round(float(noise.normal(60, 4)), 2)
        values = {"constant": 1.0, "counter": counter, "noisy": load}
        store.write([Sample(T0 + 5 * at, "host/a", name, values[name]) for name in values])
        store.compact(now_seconds=T0 + 5 * at, budget_seconds=1.0)
    store.compact(now_seconds=T0 * 2, budget_seconds=10.0)
    store.close()
    assert (tmp_path / "series.sqlite").stat().st_size / (3 * total) < 6


def _read_while_it_compacts(path: Path, stop: Any, queue: Any) -> None:
    reader = SqliteSeriesReader(path)
    seen: list[tuple[int, int, bool]] = []
    while not stop.is_set() or not seen:
        frame = reader.read(**EVER)
        counts = reader.read_rollup(**EVER)["count"].sum()
        twice = frame.duplicated(["time", "entity", "signal"]).any()
        seen.append((len(frame), int(counts), bool(twice)))
    queue.put(seen)


def test_another_process_sees_every_sample_once_while_they_move(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    store = SqliteSeriesStore(path, most_hot_samples=500)
    fill(store, range(10), series=20)
    context = multiprocessing.get_context("spawn")
    stop, queue = context.Event(), context.Queue()
    child = context.Process(target=_read_while_it_compacts, args=(path, stop, queue), daemon=True)
    child.start()
    for at in range(10, 1500, 3):
        fill(store, range(at, at + 3), series=20)
        store.compact(now_seconds=T0, budget_seconds=0.0)
    stop.set()
    seen = queue.get(timeout=60)
    child.join(timeout=30)
    # A call writes 20 samples, and a read that came between two states would show a part of them.
    assert all(samples % 20 == 0 and not twice for samples, _, twice in seen)
    assert [samples for samples, *_ in seen] == sorted(samples for samples, *_ in seen)
    # The second read of a round is no older than the first.
    assert all(counted % 20 == 0 and counted >= samples for samples, counted, _ in seen)
    assert len(store.read(**EVER)) == 20 * 1501
    store.close()


def test_space_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    store = SqliteSeriesStore(path)
    noise = np.random.default_rng(0)
    for at in range(0, 3600 * 20, 30):
        store.write([Sample(T0 + at, f"host/{n}", "x", float(noise.random())) for n in range(10)])
    while not store.compact(now_seconds=T0 * 2, budget_seconds=1.0):
        pass
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full = path.stat().st_size
    store.prune(before_seconds=T0 + 3600 * 19)
    store.prune_rollups(minutes_before_seconds=T0 * 2, hours_before_seconds=T0 * 2)
    assert store.give_back() > 0
    while store.give_back():
        pass
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < full / 3
    assert len(store.read(**EVER)) == 10 * 120
    store.close()


def test_what_happens_between_two_steps_is_not_lost(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    store = SqliteSeriesStore(tmp_path / "series.sqlite", clock=lambda: float(next(ticks)))
    fill(store, range(5), series=500)
    assert not store.compact(now_seconds=T0 + 7200, budget_seconds=0.0)
    blocks = count(store, "blocks")
    store.write([Sample(T0 + 1, "host/0", "x", -1.0), Sample(T0 + 3, "host/499", "x", -3.0)])
    assert store.prune(before_seconds=T0 + 2) == 2 * 500 + 1
    store.write([Sample(T0 + 2, "host/0", "x", -2.0), Sample(T0 + 2, "host/499", "x", -2.0)])
    store.close()
    store = SqliteSeriesStore(tmp_path / "series.sqlite", clock=lambda: float(next(ticks)))
    for _ in range(50):
        frame = store.read(**EVER).set_index(["entity", "time"])["value"]
        assert len(frame) == 3 * 500
        assert frame["host/0", T0 + 2] == frame["host/499", T0 + 2] == -2.0
        assert frame["host/499", T0 + 3] == -3.0
        assert store.compact(now_seconds=T0 + 7200, budget_seconds=0.0) in {True, False}
    assert 0 < blocks < count(store, "blocks") == 500
    assert (count(store, "hot"), count(store, "compacting")) == (0, 0)
    store.close()


def test_a_portion_that_is_pruned_away_leaves_no_mark(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    store = SqliteSeriesStore(tmp_path / "series.sqlite", clock=lambda: float(next(ticks)))
    fill(store, range(5), series=500)
    store.compact(now_seconds=T0 + 7200, budget_seconds=0.0)
    assert store.prune(before_seconds=T0 + 100) == 2500
    store.write([Sample(T0 + 5, "host/0", "x", 5.0)])
    for _ in range(5):
        assert store.read(**EVER)["value"].tolist() == [5.0]
        store.compact(now_seconds=T0 + 7200, budget_seconds=0.0)
    store.close()
