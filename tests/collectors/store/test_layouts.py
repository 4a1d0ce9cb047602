"""Files of layout 1 are read as they are and brought over while they are used."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from collectors.contract import Sample, SeriesKey
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
from tests.collectors.store.layout_one import write_layout_one

T0 = 1_700_002_800  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "series.sqlite"
    write_layout_one(
        path,
        [
            (T0 * 1000 + 250 + at * 5000, entity, "x", math.sin(at))
            for at in range(3000)
            for entity in ("host/a", "host/b")
        ],
    )
    return path


def table_names(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def test_a_reader_reads_it_without_a_writer(path: Path) -> None:
    reader = SqliteSeriesReader(path)
    frame = reader.read(start_seconds=T0, end_seconds=T0 + 100, entities=["host/a"])
    assert frame["value"].tolist() == [math.sin(at) for at in range(20)]
    assert [info.key for info in reader.series()] == [
        SeriesKey("host/a", "x"), SeriesKey("host/b", "x"),
    ]  # fmt: skip
    assert reader.read_rollup(**EVER)["count"].sum() == 6000
    reader.close()
    assert "blocks" not in table_names(path)


def test_a_writer_moves_its_samples_bit_by_bit_and_reads_stay_the_same(path: Path) -> None:
    before = SqliteSeriesReader(path).read(**EVER)
    rolled = SqliteSeriesReader(path).read_rollup(**EVER)
    store = SqliteSeriesStore(path)
    pd.testing.assert_frame_equal(store.read(**EVER), before)
    while not store.compact(now_seconds=T0, budget_seconds=0.0):
        pd.testing.assert_frame_equal(store.read(**EVER), before)
    pd.testing.assert_frame_equal(store.read(**EVER), before)
    pd.testing.assert_frame_equal(store.read_rollup(**EVER), rolled)
    store.close()
    assert "samples" not in table_names(path)


def test_what_was_written_since_counts_more(path: Path) -> None:
    store = SqliteSeriesStore(path)
    store.write([Sample(T0 + 0.25, "host/a", "x", 42.0), Sample(T0 + 1, "host/a", "x", 43.0)])
    for _ in range(3):
        frame = store.read(start_seconds=T0, end_seconds=T0 + 6, entities=["host/a"])
        assert frame["value"].tolist() == [42.0, 43.0, math.sin(1)]
        assert store.read_rollup(**EVER)["count"].sum() == 6001
        store.compact(now_seconds=T0 + 7200, budget_seconds=0.0)
    store.close()


def test_it_can_be_pruned_and_vacuumed(path: Path) -> None:
    store = SqliteSeriesStore(path)
    assert store.prune(before_seconds=T0 + 5000) == 2000
    assert store.read(**EVER)["time"].min() == T0 + 5000.25
    while not store.compact(now_seconds=T0, budget_seconds=1.0):
        pass
    assert store.give_back() == 0
    assert store.vacuum() > 0
    assert len(store.read(**EVER)) == 4000
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA page_size").fetchone() == (8192,)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
