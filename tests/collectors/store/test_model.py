"""Whatever is written, compacted, pruned and opened again, the store is what a dictionary would be."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from collectors.contract import Sample
from collectors.store import compaction
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
from tests.collectors.store.layout_one import write_layout_one

T0 = 1_700_002_800  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}
Key = tuple[int, str, str]

TIMES = st.one_of(
    st.integers(T0 * 1000, (T0 + 3 * 3600) * 1000),
    st.sampled_from([(T0 + 3600 * hour) * 1000 + off for hour in range(4) for off in (-1, 0, 1)]),
    st.sampled_from([T0 * 1000 + 5000 * step for step in range(20)]),
)
ROWS = st.lists(
    st.tuples(
        TIMES,
        st.sampled_from(["host/a", "host/b"]),
        st.sampled_from(["x", "y"]),
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-5, 5).map(float),
            st.sampled_from([0.0, -0.0, 5e-324, 1.7e308]),
        ),
    ),
    max_size=30,
)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pairs, compaction._PAIRS = compaction._PAIRS, 1  # stop between any two series
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "series.sqlite"
        self.rows: dict[Key, float] = {}

    @initialize(old=ROWS)
    def begin(self, old: list[tuple[int, str, str, float]]) -> None:
        if old:
            write_layout_one(self.path, old)
            # SQLite keeps no sign of zero in a column of numbers.
            self.rows = {(at, entity, signal): value + 0.0 for at, entity, signal, value in old}
        self.reader = SqliteSeriesReader(self.path)
        self.open()

    def open(self) -> None:
        self.store = SqliteSeriesStore(self.path, most_hot_samples=25)

    @rule(rows=ROWS)
    def write(self, rows: list[tuple[int, str, str, float]]) -> None:
        assert self.store.write(
            [Sample(at / 1000, entity, signal, value) for at, entity, signal, value in rows]
        ) == len(rows)
        self.rows |= {(at, entity, signal): value for at, entity, signal, value in rows}

    @rule(hour=st.integers(-1, 5))
    def compact(self, hour: int) -> None:
        self.store.compact(now_seconds=T0 + hour * 3600 + 200, budget_seconds=0.0)

    @rule()
    def compact_all(self) -> None:
        for _ in range(100):
            if self.store.compact(now_seconds=T0 * 2, budget_seconds=1.0):
                break
        assert not self.store._connection.execute("SELECT 1 FROM hot").fetchone()

    @rule(before=TIMES)
    def prune(self, before: int) -> None:
        self.store.prune(before_seconds=before / 1000)
        self.rows = {key: value for key, value in self.rows.items() if key[0] >= before}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(start=TIMES, stop=TIMES, signal=st.sampled_from(["x", "y"]))
    def read_a_part(self, start: int, stop: int, signal: str) -> None:
        frame = self.reader.read(
            start_seconds=start / 1000, end_seconds=stop / 1000, signals=[signal]
        )
        expected = {
            key: value
            for key, value in self.rows.items()
            if start <= key[0] < stop and key[2] == signal
        }
        assert _as_rows(frame) == _bits(expected)

    @invariant()
    def it_holds_what_was_written(self) -> None:
        frame = self.reader.read(**EVER)
        assert frame["time"].is_monotonic_increasing
        assert len(frame) == len(self.rows)
        assert _as_rows(frame) == _bits(self.rows)

    @invariant()
    def it_lists_what_was_written(self) -> None:
        expected = {}
        for (at, entity, signal), value in sorted(self.rows.items()):
            first = expected.get((entity, signal), (at,))[0]
            expected[entity, signal] = (first, at, value)
        got = {
            info.key: (info.first_seconds * 1000, info.last_seconds * 1000, info.last_value)
            for info in self.reader.series()
        }
        assert {key: tuple(map(round, span[:2])) for key, span in got.items()} == {
            key: span[:2] for key, span in expected.items()
        }
        assert {key: span[2] for key, span in got.items()} == {
            key: span[2] for key, span in expected.items()
        }

    def teardown(self) -> None:
        compaction._PAIRS = self.pairs
        self.store.close()
        self.reader.close()
        shutil.rmtree(self.folder)


def _bits(rows: dict[Key, float]) -> dict[Key, bytes]:
    return {key: np.float64(value).tobytes() for key, value in rows.items()}


def _as_rows(frame: pd.DataFrame) -> dict[Key, bytes]:
    return {
        (round(row.time * 1000), row.entity, row.signal): np.float64(row.value).tobytes()
        for row in frame.itertuples()
    }


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
