"""What every series store promises, checked against each implementation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors.contract import Sample, SeriesKey
from collectors.store.contract import SeriesReader, SeriesStore
from collectors.store.sqlite import SqliteSeriesStore

T0 = 1_700_000_000.0
COLUMNS = ["time", "entity", "signal", "value"]
MakeStore = Callable[[], SeriesStore]


class CompactingStore(SqliteSeriesStore):
    """Compacts after every write, as little at a time as it can."""

    def write(self, samples: Sequence[Sample]) -> int:
        written = super().write(samples)
        while not self.compact(now_seconds=T0 * 10, budget_seconds=0.0):
            pass
        return written


class CrowdedStore(SqliteSeriesStore):
    """Has room for one sample outside of blocks, and opens the blocks of an hour again and again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, most_hot_samples=1)

    def write(self, samples: Sequence[Sample]) -> int:
        written = super().write(samples)
        self.compact(now_seconds=0.0, budget_seconds=0.0)
        return written


@pytest.fixture(params=[SqliteSeriesStore, CompactingStore, CrowdedStore])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    made = iter(range(1000))
    return lambda: request.param(tmp_path / f"series-{next(made)}.sqlite")


@pytest.fixture
def store(make_store: MakeStore) -> SeriesStore:
    return make_store()


def test_it_is_a_store_and_a_reader(store: SeriesStore) -> None:
    assert isinstance(store, SeriesStore)
    assert isinstance(store, SeriesReader)


def test_nothing_is_an_empty_table_with_the_columns(store: SeriesStore) -> None:
    frame = store.read(start_seconds=0, end_seconds=1e12)
    assert list(frame.columns) == COLUMNS
    assert frame.empty
    assert list(store.series()) == []
    assert store.write([]) == 0


def test_the_span_is_half_open_and_rows_are_sorted(store: SeriesStore) -> None:
    for offset in (3, 1, 2, 0):
        store.write([Sample(T0 + offset, "host/a", "host_load", offset)])
    frame = store.read(start_seconds=T0 + 1, end_seconds=T0 + 3)
    assert list(frame["time"]) == [T0 + 1, T0 + 2]
    assert list(frame["value"]) == [1.0, 2.0]


def test_entities_and_signals_filter_together(store: SeriesStore) -> None:
    store.write(
        [
            Sample(T0, entity, signal, 1.0)
            for entity in ("host/a", "host/b")
            for signal in ("host_load", "host_cpu_percent")
        ]
    )
    frame = store.read(
        start_seconds=T0, end_seconds=T0 + 1, entities={"host/b"}, signals=["host_load", "other"]
    )
    assert frame[["entity", "signal"]].to_numpy().tolist() == [["host/b", "host_load"]]
    assert store.read(start_seconds=T0, end_seconds=T0 + 1, entities=[]).empty


def test_values_that_are_not_finite_are_left_out(store: SeriesStore) -> None:
    values = [math.nan, math.inf, -math.inf, 1.5]
    samples = [Sample(T0 + i, "host/a", "host_load", v) for i, v in enumerate(values)]
    assert store.write(samples) == 1
    assert list(store.read(start_seconds=0, end_seconds=1e12)["value"]) == [1.5]


def test_a_second_sample_at_the_same_time_replaces_the_first(store: SeriesStore) -> None:
    store.write([Sample(T0, "host/a", "host_load", 1.0)])
    store.write([Sample(T0, "host/a", "host_load", 2.0)])
    assert list(store.read(start_seconds=0, end_seconds=1e12)["value"]) == [2.0]


def test_a_series_tells_its_first_and_newest(store: SeriesStore) -> None:
    for offset in range(5):
        store.write(
            [Sample(T0 + offset, "host/a", "host_load", float(offset), {"simulated": "true"})]
        )
    (info,) = store.series()
    assert info.key == SeriesKey("host/a", "host_load")
    assert (info.first_seconds, info.last_seconds, info.last_value) == (T0, T0 + 4, 4.0)
    assert dict(info.labels) == {"simulated": "true"}


def test_an_unbounded_span_reads_everything(store: SeriesStore) -> None:
    store.write([Sample(T0, "host/a", "host_load", 1.0)])
    assert len(store.read(start_seconds=-math.inf, end_seconds=math.inf)) == 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10_000_000),
            st.sampled_from(["host/a", "host/b/gpu/0"]),
            st.sampled_from(["x", "y"]),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=60,
    )
)
def test_what_goes_in_comes_out(
    make_store: MakeStore, rows: list[tuple[int, str, str, float]]
) -> None:
    store = make_store()
    store.write([Sample(T0 + ms / 1000, entity, name, value) for ms, entity, name, value in rows])
    expected = {(ms, entity, name): value for ms, entity, name, value in rows}
    frame: pd.DataFrame = store.read(start_seconds=0, end_seconds=1e12)
    got = {
        (round((row.time - T0) * 1000), row.entity, row.signal): row.value
        for row in frame.itertuples()
    }
    store.close()
    assert got == expected
    assert frame["time"].is_monotonic_increasing
