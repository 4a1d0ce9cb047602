from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.contract import Sample
from collectors.store.contract import check_resolution, resolution_for
from collectors.store.frames import rolled_up
from collectors.store.sqlite import SqliteSeriesStore

T0 = 1_700_002_800  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteSeriesStore]:
    opened = SqliteSeriesStore(tmp_path / "series.sqlite")
    yield opened
    opened.close()


def compact(store: SqliteSeriesStore) -> None:
    while not store.compact(now_seconds=T0 * 2.0, budget_seconds=0.0):
        pass


def rows_of(frame: pd.DataFrame) -> list[tuple[float, ...]]:
    return [tuple(row) for row in frame[["time", "min", "max", "mean", "count"]].to_numpy()]


def test_a_bucket_has_lowest_highest_mean_and_count(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + at, "host/a", "x", value) for at, value in ((0, 4), (59, 1), (60, 7))])
    for state in ("hot", "in blocks"):
        frame = store.read_rollup(**EVER)
        assert list(frame) == ["time", "entity", "signal", "min", "max", "mean", "count"], state
        assert rows_of(frame) == [(T0, 1, 4, 2.5, 2), (T0 + 60, 7, 7, 7, 1)]
        assert rows_of(store.read_rollup(**EVER, resolution_seconds=3600)) == [(T0, 1, 7, 4, 3)]
        compact(store)


def test_a_late_sample_and_a_second_one_are_counted_once(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + at, "host/a", "x", float(at)) for at in range(60)])
    compact(store)
    store.write([Sample(T0 + 10, "host/a", "x", 600.0), Sample(T0 + 10.5, "host/a", "x", -5.0)])
    expected = [(T0, -5.0, 600.0, (sum(range(60)) - 10 + 600 - 5) / 61, 61)]
    assert rows_of(store.read_rollup(**EVER)) == expected
    compact(store)
    assert rows_of(store.read_rollup(**EVER)) == expected
    assert rows_of(store.read_rollup(**EVER, resolution_seconds=3600)) == expected


def test_rollups_outlive_their_samples_and_take_late_ones(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + at, "host/a", "x", float(at)) for at in (0, 1, 61, 7200)])
    compact(store)
    assert store.prune(before_seconds=T0 + 3600) == 3
    assert store.read(**EVER)["time"].tolist() == [T0 + 7200]
    assert rows_of(store.read_rollup(**EVER))[:2] == [(T0, 0, 1, 0.5, 2), (T0 + 60, 61, 61, 61, 1)]
    store.write([Sample(T0 + 30, "host/a", "x", 8.0)])
    for _ in range(2):
        found = rows_of(store.read_rollup(**EVER))
        assert found[:2] == [(T0, 0, 8, 3.0, 3), (T0 + 60, 61, 61, 61, 1)]
        compact(store)


def test_a_bucket_whose_hour_was_pruned_in_part_keeps_its_count(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + at, "host/a", "x", 1.0) for at in range(0, 3600, 10)])
    compact(store)
    assert store.prune(before_seconds=T0 + 1805) == 181
    store.write([Sample(T0 + 1801, "host/a", "x", 5.0), Sample(T0 + 3591, "host/a", "x", 5.0)])
    compact(store)
    counts = dict(store.read_rollup(**EVER)[["time", "count"]].itertuples(index=False))
    assert counts == {T0 + 60 * at: 6 + (at in {30, 59}) for at in range(60)}


def test_minutes_go_before_hours(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + 3600 * at, "host/a", "x", float(at)) for at in range(3)])
    compact(store)
    store.prune(before_seconds=T0 * 2)
    assert store.series() == []
    gone = store.prune_rollups(minutes_before_seconds=T0 + 7200, hours_before_seconds=T0 + 3600)
    assert gone == 2
    assert store.read_rollup(**EVER)["time"].tolist() == [T0 + 7200]
    assert store.read_rollup(**EVER, resolution_seconds=3600)["time"].tolist() == [
        T0 + 3600, T0 + 7200,
    ]  # fmt: skip
    store.prune_rollups(minutes_before_seconds=T0 * 2, hours_before_seconds=T0 * 2)
    store.prune(before_seconds=0)
    assert store._connection.execute("SELECT count(*) FROM series").fetchone() == (0,)


def test_the_span_takes_the_buckets_that_begin_in_it(store: SqliteSeriesStore) -> None:
    store.write([Sample(T0 + at, "host/a", "x", 1.0) for at in range(0, 7200, 30)])
    compact(store)
    frame = store.read_rollup(
        start_seconds=T0 + 3500, end_seconds=T0 + 3700, resolution_seconds=60, signals=["x"]
    )
    assert frame["time"].tolist() == [T0 + 3540, T0 + 3600, T0 + 3660]
    assert frame["count"].tolist() == [2, 2, 2]
    assert store.read_rollup(**EVER, entities=["host/b"]).empty


@pytest.mark.parametrize("seconds", [0, 1, 90, -60])
def test_a_resolution_that_is_no_minutes_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="multiple of 60"):
        check_resolution(seconds)


def test_the_resolution_follows_the_span() -> None:
    assert resolution_for(1800) is None
    assert resolution_for(86_400) == 60
    assert resolution_for(7 * 86_400) == 900
    assert resolution_for(30 * 86_400) == 3600
    assert resolution_for(10_000 * 86_400) == 86_400


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 3 * 3_600_000),
                st.sampled_from(["host/a", "host/b"]),
                st.one_of(
                    st.floats(-1e300, 1e300, allow_subnormal=False), st.integers(0, 9).map(float)
                ),
            ),
            max_size=30,
        ),
        max_size=5,
    ),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.sampled_from([60, 300, 3600, 7200]),
)
def test_buckets_are_what_the_samples_say(
    tmp_path_factory: pytest.TempPathFactory,
    writes: list[list[tuple[int, str, float]]],
    compacts: list[bool],
    resolution: int,
) -> None:
    store = SqliteSeriesStore(tmp_path_factory.mktemp("rollups") / "series.sqlite")
    for rows, do_compact in zip(writes, compacts, strict=False):
        store.write([Sample(T0 + at / 1000, entity, "x", value) for at, entity, value in rows])
        if do_compact:
            compact(store)
    got = store.read_rollup(**EVER, resolution_seconds=resolution)
    expected = rolled_up(store.read(**EVER), resolution)
    store.close()
    columns = ["time", "entity", "min", "max", "count"]
    got = got.sort_values(["time", "entity"], ignore_index=True)
    pd.testing.assert_frame_equal(got[columns], expected[columns], check_dtype=False)
    scale = np.maximum(expected["min"].abs(), expected["max"].abs())
    assert ((got["mean"] - expected["mean"]).abs() <= 1e-9 * scale).all()
