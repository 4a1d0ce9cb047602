from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.contract import Sample, SeriesKey
from collectors.store.keeper import (
    export_rollups,
    export_samples,
    import_rollups,
    import_samples,
    prune_in_steps,
    summarise,
)
from collectors.store.sqlite import SqliteSeriesStore
from collectors.store.tables import TableError, is_rollup, read_samples

START = 1_800_000_000.25
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteSeriesStore]:
    opened = SqliteSeriesStore(tmp_path / "series.sqlite")
    yield opened
    opened.close()


def fill(store: SqliteSeriesStore, seconds: range) -> None:
    store.write(
        [
            Sample(START + at, entity, "gpu_power_watts", float(at), {"simulated": "true"})
            for at in seconds
            for entity in ("host/a/gpu/0", "host/a/gpu/1")
        ]
    )


def test_an_empty_store_is_told_and_exported_as_such(
    store: SqliteSeriesStore, tmp_path: Path
) -> None:
    found = summarise(store)
    assert (found.series, found.samples, found.gaps) == (0, 0, ())
    assert export_samples(store, tmp_path / "out.parquet", **EVER).samples == 0
    assert list(read_samples(tmp_path / "out.parquet")) == ["time", "entity", "signal", "value"]


def test_a_summary_counts_and_finds_the_time_without_samples(store: SqliteSeriesStore) -> None:
    fill(store, range(100))
    fill(store, range(160, 200))
    told: list[float] = []
    found = summarise(store, told.append)
    assert (found.series, found.samples) == (2, 280)
    assert (found.first_seconds, found.last_seconds) == (START, START + 199)
    assert found.usual_step_seconds == 1.0
    assert found.gaps == [(START + 99, START + 160)]
    assert told == [1.0]


def test_a_series_that_another_covers_makes_no_gap(store: SqliteSeriesStore) -> None:
    fill(store, range(10))
    fill(store, range(90, 100))
    store.write([Sample(START + at, "host/a", "host_load", 1.0) for at in range(100)])
    assert summarise(store).gaps == []


def test_a_slow_pace_is_no_gap(store: SqliteSeriesStore) -> None:
    fill(store, range(0, 600, 60))
    assert summarise(store).gaps == []


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_what_is_exported_can_be_imported(
    store: SqliteSeriesStore, tmp_path: Path, kind: str
) -> None:
    fill(store, range(3 * 3600 - 5, 3 * 3600 + 5))
    fill(store, range(5))
    out = tmp_path / "new" / f"out.{kind}"
    moved = export_samples(store, out, **EVER)
    assert moved.samples == 30
    assert (moved.first_seconds, moved.last_seconds) == (START, START + 3 * 3600 + 4)
    other = SqliteSeriesStore(tmp_path / "other.sqlite")
    told: list[float] = []
    again = import_samples(other, out, told.append)
    assert (again.samples, again.left_out, told[-1]) == (30, 0, 1.0)
    assert (again.first_seconds, again.last_seconds) == (moved.first_seconds, moved.last_seconds)
    pd.testing.assert_frame_equal(other.read(**EVER), store.read(**EVER))
    assert [info.labels for info in other.series()] == [{"simulated": "true"}] * 2
    assert not list(out.parent.glob(".*"))
    other.close()


def test_a_stray_old_sample_costs_no_million_reads(
    store: SqliteSeriesStore, tmp_path: Path
) -> None:
    store.write(
        [Sample(at, "host/a", "host_load", 1.0) for at in (0.0, START, START + 1, START + 2)]
    )
    told: list[float] = []
    assert summarise(store).gaps == [(0.0, float(int(START)))]
    assert prune_in_steps(store, before_seconds=START, progress=told.append) == 1
    assert len(told) <= 1001


def test_an_export_takes_what_was_asked_for(store: SqliteSeriesStore, tmp_path: Path) -> None:
    fill(store, range(100))
    out = tmp_path / "out.csv"
    export_samples(
        store, out, start_seconds=START + 10, end_seconds=START + 20, entities={"host/a/gpu/1"}
    )
    frame = read_samples(out)
    assert frame["time"].tolist() == [START + at for at in range(10, 20)]
    assert set(frame["entity"]) == {"host/a/gpu/1"}


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 10**7), st.text("ab,\"'\n é", min_size=1, max_size=6)),
        st.floats(allow_nan=False, allow_infinity=False),
        max_size=20,
    ),
    st.sampled_from(["csv", "parquet"]),
)
def test_any_value_and_name_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    found: dict[tuple[int, str], float],
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("keeper")
    store = SqliteSeriesStore(folder / "series.sqlite")
    store.write([Sample(at / 8, name, "signal", value) for (at, name), value in found.items()])
    export_samples(store, folder / f"out.{kind}", **EVER)
    frame = read_samples(folder / f"out.{kind}")
    pd.testing.assert_frame_equal(frame, store.read(**EVER))
    store.close()


HEADER = "time,entity,signal,value\n"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "cannot be read"),
        ("time,entity,value\n1,a,2\n", "no column 'signal'.*needs time, entity, signal, value"),
        (HEADER + "1,a,b,2\n2,a,b,many\n", "column 'value': Row #3.*'many'"),
        (HEADER + "noon,a,b,2\n", "column 'time': Row #2.*'noon'"),
        (HEADER + "1,a,b,2\n,a,b,2\n", "row 3, column 'time': the time is missing"),
        (HEADER + "1800000000000,a,b,2\n", "row 2, column 'time'.*not in seconds"),
        (HEADER + "-1,a,b,2\n", "row 2, column 'time'.*not in seconds"),
        (HEADER + "1,,b,2\n", "row 2, column 'entity': the entity is missing"),
        (HEADER + "1,a,,2\n", "row 2, column 'signal': the signal is missing"),
        (HEADER + "1,a,b\n", "Expected 4 columns, got 3"),
        ("time,entity,signal,value,labels\n1,a,b,2,[1]\n", "column 'labels': not a JSON object"),
    ],
)
def test_a_wrong_csv_is_refused_whole_naming_the_place(
    store: SqliteSeriesStore, tmp_path: Path, text: str, wrong: str
) -> None:
    path = tmp_path / "given.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=rf"given\.csv.*{wrong}"):
        import_samples(store, path)
    assert store.series() == []


def test_a_wrong_parquet_is_refused_naming_the_column(
    store: SqliteSeriesStore, tmp_path: Path
) -> None:
    path = tmp_path / "given.parquet"
    pq.write_table(pa.table({"time": ["x"], "entity": ["a"], "signal": ["b"], "value": [1]}), path)
    with pytest.raises(TableError, match=r"given\.parquet: column 'time' holds string.*seconds"):
        import_samples(store, path)
    path.write_bytes(b"no parquet")
    with pytest.raises(TableError, match=r"given\.parquet: cannot be read"):
        import_samples(store, path)
    with pytest.raises(TableError, match=r"must end in one of \.parquet, \.csv"):
        import_samples(store, tmp_path / "given.xlsx")


def test_a_parquet_of_pandas_with_whole_numbers_and_categories_is_taken(
    store: SqliteSeriesStore, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"value": [1, 2], "time": [10, 20], "entity": ["a", "a"], "signal": "s"})
    frame.astype({"entity": "category"}).to_parquet(tmp_path / "given.parquet")
    assert import_samples(store, tmp_path / "given.parquet").samples == 2
    assert store.read(**EVER)["value"].tolist() == [1.0, 2.0]


def test_a_sample_without_a_number_is_left_out_and_counted(
    store: SqliteSeriesStore, tmp_path: Path
) -> None:
    path = tmp_path / "given.csv"
    path.write_text(HEADER + "1,a,b,2\n2,a,b,\n3,a,b,nan\n4,a,b,inf\n")
    moved = import_samples(store, path)
    assert (moved.samples, moved.left_out) == (1, 3)
    assert [info.key for info in store.series()] == [SeriesKey("a", "b")]


def test_pruning_in_steps_deletes_what_is_older_and_nothing_else(store: SqliteSeriesStore) -> None:
    fill(store, range(0, 4 * 3600, 600))
    told: list[float] = []
    gone = prune_in_steps(store, before_seconds=START + 2.5 * 3600, progress=told.append)
    assert gone == 2 * 15
    assert len(told) == 3
    assert told[-1] == 1.0
    assert store.read(**EVER)["time"].min() == START + 2.5 * 3600
    assert prune_in_steps(store, before_seconds=START) == 0


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("resolution", [60, 3600])
def test_rollups_that_are_exported_can_be_imported(
    store: SqliteSeriesStore, tmp_path: Path, kind: str, resolution: int
) -> None:
    fill(store, range(0, 3 * 3600, 7))
    out = tmp_path / f"out.{kind}"
    span = {"start_seconds": START - 3600, "end_seconds": START + 5 * 3600}
    moved = export_rollups(store, out, resolution_seconds=resolution, **span)
    assert is_rollup(out)
    expected = store.read_rollup(**EVER, resolution_seconds=resolution)
    assert moved.samples == len(expected) >= 6
    other = SqliteSeriesStore(tmp_path / "other.sqlite")
    for _ in range(2):  # the second time each takes the place of itself
        assert import_rollups(other, out).samples == len(expected)
        pd.testing.assert_frame_equal(
            other.read_rollup(**EVER, resolution_seconds=resolution), expected
        )
    assert other.read_rollup(**EVER, resolution_seconds=7200)["count"].sum() == 2 * 1543
    assert other.series() == []
    other.close()


def test_imported_minutes_leave_an_hour_that_knows_more(
    store: SqliteSeriesStore, tmp_path: Path
) -> None:
    fill(store, range(0, 3600, 10))
    store.compact(now_seconds=START * 2, budget_seconds=10.0)
    hours = store.read_rollup(**EVER, resolution_seconds=3600)
    minute = int(START // 60) * 60
    (tmp_path / "one.csv").write_text(
        "time,entity,signal,resolution_seconds,min,max,mean,count\n"
        f"{minute + 60},host/a/gpu/0,gpu_power_watts,60,-1,1,0.5,2\n"
    )
    import_rollups(store, tmp_path / "one.csv")
    pd.testing.assert_frame_equal(store.read_rollup(**EVER, resolution_seconds=3600), hours)
    found = store.read_rollup(start_seconds=minute + 60, end_seconds=minute + 61)
    assert found[["min", "max", "mean", "count"]].iloc[0].tolist() == [-1, 1, 0.5, 2]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("60,a,b,60,1,2,3,1", "column 'mean': it is not between"),
        ("60,a,b,60,1,2,,1", "column 'mean': it is not between"),
        ("60,a,b,60,1,inf,2,1", "column 'min': min and max must be finite"),
        ("60,a,b,60,1,2,1.5,0", "column 'count': a bucket has"),
        ("60,a,b,90,1,2,1.5,1", "column 'resolution_seconds': it must be 60 or 3600"),
        ("61,a,b,60,1,2,1.5,1", "column 'time': it is not the beginning"),
    ],
)
def test_a_rollup_that_no_samples_give_is_refused(
    store: SqliteSeriesStore, tmp_path: Path, row: str, wrong: str
) -> None:
    path = tmp_path / "given.csv"
    path.write_text(f"time,entity,signal,resolution_seconds,min,max,mean,count\n{row}\n")
    with pytest.raises(TableError, match=rf"row 2, {wrong}"):
        import_rollups(store, path)
    assert store.read_rollup(**EVER).empty
