"""The series store beside plain SQLite rows and Parquet: writing, reading and bytes a sample.

``python -m benchmarks store [-- --quick] [-- --json FILE] [-- --recorded FILE]``

- Writing: calls of 5,000 series while two other processes read; compaction runs in between as it does
  beside the watch loop and counts. Goal: 200,000 samples a second. The rate a second of the writer's CPU
  time is beside it: it depends less on what else the machine does.
- Reading: 300 series of 24 h at 5 s (5.2 million samples) into one table. Goal: below 1 s.
- Size: of that file with its roll-ups, closed. Goal: at most 16 bytes a sample.

The series are constants, counters, whole numbers, decimals and noise. ``--recorded`` gives the bytes a
sample of a series file that was recorded, instead. Exit status 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from collectors.contract import Sample, SeriesKey
from collectors.store.frames import sample_frame
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore

START = 1_800_000_000.0
STEP_SECONDS = 5.0
GOALS = {"write_samples_per_second": 200_000.0, "read_seconds": 1.0, "bytes_per_sample": 16.0}
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}

_ROWS = """
CREATE TABLE samples (series_id INTEGER NOT NULL, time INTEGER NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (series_id, time)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    write_series: int
    write_batches: int
    read_series: int
    read_ticks: int
    rounds: int


FULL = Size(write_series=5000, write_batches=800, read_series=300, read_ticks=17_280, rounds=5)
QUICK = Size(write_series=500, write_batches=20, read_series=30, read_ticks=720, rounds=2)


def values_of(series: int, ticks: int) -> NDArray[np.float64]:
    """Return ``[ticks, series]`` numbers as a fleet has them, a fifth of each kind."""
    chance = np.random.default_rng(7)
    table = np.empty((ticks, series))
    walk = np.cumsum(chance.normal(0, 0.3, (ticks, series)), axis=0)
    for number in range(series):
        table[:, number] = (
            np.full(ticks, 80.0 * 2**30),  # memory of a GPU in bytes
            np.cumsum(chance.integers(0, 400, ticks)).astype(float),  # requests
            np.round(60 + walk[:, number]),  # degrees
            np.round(350 + 10 * walk[:, number] + chance.normal(0, 5, ticks), 3),  # watts
            0.5 + chance.normal(0, 0.1, ticks),  # a ratio of two noisy numbers
        )[number % 5]
    return table


def keys_of(series: int) -> list[SeriesKey]:
    return [
        SeriesKey(f"host/box{n // 40}/gpu/{n // 5 % 8}", f"signal_{n % 5}") for n in range(series)
    ]


class Galen:
    """The store, compacted as the watch loop does it."""

    name = "galen"

    def __init__(self, path: Path, keys: Sequence[SeriesKey]) -> None:
        self._keys = keys
        self._store = SqliteSeriesStore(path)
        self._labels = {"simulated": "true"}

    def prepare(self, at: float, values: Sequence[float]) -> list[Sample]:
        labels = self._labels
        return [
            Sample(at, key.entity, key.signal, value, labels)
            for key, value in zip(self._keys, values, strict=True)
        ]

    def write(self, at: float, batch: list[Sample]) -> None:
        self._store.write(batch)
        self._store.compact(now_seconds=at, budget_seconds=0.1)

    def finish(self) -> None:
        while not self._store.compact(now_seconds=START * 2, budget_seconds=1.0):
            pass
        self._store.close()

    @staticmethod
    def read(path: Path, _keys: Sequence[SeriesKey]) -> pd.DataFrame:
        with closing(SqliteSeriesReader(path)) as reader:
            return reader.read(**EVER)

    @staticmethod
    def read_recent(path: Path, until: float) -> int:
        with closing(SqliteSeriesReader(path)) as reader:
            entities = [f"host/box0/gpu/{n}" for n in range(8)]
            return len(reader.read(start_seconds=until - 600, end_seconds=until, entities=entities))


class Rows:
    """A row a sample, as this store kept them in its first layout."""

    name = "SQLite rows"

    def __init__(self, path: Path, _keys: Sequence[SeriesKey]) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA page_size = 1024")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_ROWS)

    def prepare(self, at: float, values: Sequence[float]) -> list[tuple[int, int, float]]:
        stamp = round(at * 1000)
        return [(number, stamp, value) for number, value in enumerate(values)]

    def write(self, _at: float, batch: list[tuple[int, int, float]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO samples VALUES (?, ?, ?)", batch)
        self._connection.execute("COMMIT")

    def finish(self) -> None:
        self._connection.close()

    @staticmethod
    def read(path: Path, keys: Sequence[SeriesKey]) -> pd.DataFrame:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT series_id, time, value FROM samples").fetchall()
        series, times, values = zip(*rows, strict=True)
        return sample_frame(series, np.array(times) / 1000.0, values, dict(enumerate(keys)))

    @staticmethod
    def read_recent(path: Path, until: float) -> int:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
        ) as connection:
            return len(
                connection.execute(
                    f"SELECT * FROM samples WHERE series_id IN ({','.join(map(str, range(40)))}) "
                    "AND time >= ? AND time < ?",
                    ((until - 600) * 1000, until * 1000),
                ).fetchall()
            )


class Parquet:
    """One long table through pyarrow and pandas; nobody reads it before it is closed."""

    name = "Parquet"
    _SCHEMA = pa.schema(
        [
            ("time", pa.float64()),
            ("entity", pa.dictionary(pa.int32(), pa.string())),
            ("signal", pa.dictionary(pa.int32(), pa.string())),
            ("value", pa.float64()),
        ]
    )

    def __init__(self, path: Path, keys: Sequence[SeriesKey]) -> None:
        self._names = [
            pa.array([getattr(key, name) for key in keys]).dictionary_encode()
            for name in ("entity", "signal")
        ]
        self._writer = pq.ParquetWriter(path, self._SCHEMA, compression="zstd")
        self._waiting: list[pa.Table] = []

    def prepare(self, at: float, values: Sequence[float]) -> pa.Table:
        times = pa.array(np.full(len(values), at))
        return pa.table([times, *self._names, pa.array(values)], schema=self._SCHEMA)

    def write(self, _at: float, batch: pa.Table) -> None:
        self._waiting.append(batch)
        if sum(map(len, self._waiting)) >= 1_000_000:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    @staticmethod
    def read(path: Path, _keys: Sequence[SeriesKey]) -> pd.DataFrame:
        return pd.read_parquet(path)


def read_for_ever(kind: Any, path: Path, newest: Any, stop: Any, count: Any) -> None:
    """Read the last ten minutes of 40 series again and again: what a dashboard does."""
    while not stop.is_set():
        kind.read_recent(path, newest.value)
        with count.get_lock():
            count.value += 1


@contextmanager
def readers(kind: Any, path: Path, number: int) -> Iterator[tuple[Any, Any]]:
    """Run readers beside the block; gives the time that they read up to, and how often they did."""
    context = multiprocessing.get_context("spawn")
    newest, stop, count = context.Value("d", START), context.Event(), context.Value("q", 0)
    children = [
        context.Process(target=read_for_ever, args=(kind, path, newest, stop, count), daemon=True)
        for _ in range(number)
    ]
    for child in children:
        child.start()
    deadline = time.monotonic() + 60
    while number and count.value < number and time.monotonic() < deadline:
        time.sleep(0.05)  # until they have read once
    count.value = 0
    try:
        yield newest, count
    finally:
        stop.set()
        for child in children:
            child.join(30)


def measure_writing(kind: Any, folder: Path, size: Size) -> dict[str, float]:
    """Return samples a second, and reads a second meanwhile."""
    keys = keys_of(size.write_series)
    path = folder / f"write-{kind.__name__}"
    target = kind(path, keys)
    table = values_of(size.write_series, 100)
    spent, busy, slowest = 0.0, 0.0, 0.0
    target.write(START, target.prepare(START, table[0].tolist()))
    with readers(kind, path, 2 if hasattr(kind, "read_recent") else 0) as (newest, count):
        began = time.perf_counter()
        for tick in range(1, size.write_batches + 1):
            at = START + tick * STEP_SECONDS
            batch = target.prepare(at, table[tick % 100].tolist())
            started, before = time.perf_counter(), time.process_time()
            target.write(at, batch)
            took = time.perf_counter() - started
            spent += took
            busy += time.process_time() - before
            slowest = max(slowest, took)
            newest.value = at
        passed = time.perf_counter() - began
        reads = count.value
    started, before = time.perf_counter(), time.process_time()
    target.finish()  # what is still to be compacted, or to be written at all, counts too
    spent += time.perf_counter() - started
    busy += time.process_time() - before
    samples = size.write_batches * size.write_series
    return {
        "samples_per_second": samples / spent,
        "samples_per_cpu_second": samples / busy,
        "slowest_call_seconds": slowest,
        "reads_per_second": reads / passed,
    }


def measure_reading(kind: Any, folder: Path, size: Size) -> dict[str, float]:
    """Return seconds a read, and bytes a sample."""
    keys = keys_of(size.read_series)
    path = folder / f"read-{kind.__name__}"
    target = kind(path, keys)
    table = values_of(size.read_series, size.read_ticks)
    for tick in range(size.read_ticks):
        at = START + tick * STEP_SECONDS
        target.write(at, target.prepare(at, table[tick].tolist()))
    target.finish()
    del target
    seconds = []
    for _ in range(size.rounds):
        started = time.perf_counter()
        frame = kind.read(path, keys)
        seconds.append(time.perf_counter() - started)
    assert len(frame) == table.size
    return {
        "read_seconds": statistics.median(seconds),
        "bytes_per_sample": path.stat().st_size / table.size,
    }


def measure_recorded(source: Path, folder: Path) -> dict[str, float]:
    """Return the bytes a sample of what a series file holds, with and without roll-ups."""
    with closing(SqliteSeriesReader(source)) as reader:
        frame = reader.read(**EVER)
    path = folder / "recorded"
    store = SqliteSeriesStore(path)
    for at, rows in frame.groupby("time"):
        store.write(
            [
                Sample(at, *row)
                for row in zip(rows["entity"], rows["signal"], rows["value"], strict=True)
            ]
        )
    while not store.compact(now_seconds=START * 2, budget_seconds=1.0):
        pass
    store.vacuum()
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        (bare,) = connection.execute(
            "SELECT sum(length(times) + length(data)) FROM blocks"
        ).fetchone()
    return {
        "samples": len(frame),
        "series": len(frame.groupby(["entity", "signal"])),
        "bytes_per_sample": path.stat().st_size / len(frame),
        "blocks_bytes_per_sample": bare / len(frame),
    }


def report(found: dict[str, Any]) -> bool:
    """Print a table and the verdicts, and say whether all goals were reached."""
    print(
        f"{'':14}{'write/s':>12}{'/CPU s':>12}{'slowest call':>14}{'reads/s':>9}{'read s':>9}"
        f"{'B/sample':>10}"
    )
    base = found["SQLite rows"]
    for name, row in found.items():
        print(
            f"{name:14}{row['samples_per_second']:12,.0f}{row['samples_per_cpu_second']:12,.0f}"
            f"{row['slowest_call_seconds']:12.3f} s"
            f"{row['reads_per_second']:9.1f}{row['read_seconds']:9.3f}{row['bytes_per_sample']:10.2f}"
            f"   x{row['samples_per_second'] / base['samples_per_second']:.2f}"
            f" x{row['read_seconds'] / base['read_seconds']:.2f}"
            f" x{row['bytes_per_sample'] / base['bytes_per_sample']:.2f} of rows"
        )
    own = found["galen"]
    verdicts = {
        "write_samples_per_second": own["samples_per_second"] >= GOALS["write_samples_per_second"],
        "read_seconds": own["read_seconds"] < GOALS["read_seconds"],
        "bytes_per_sample": own["bytes_per_sample"] <= GOALS["bytes_per_sample"],
    }
    for name, reached in verdicts.items():
        print(f"{'reached' if reached else 'MISSED'}: {name}, goal {GOALS[name]:g}")
    return all(verdicts.values())


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the numbers where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: goals do not count")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--recorded", type=Path, help="a series file: only its bytes a sample")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        if options.recorded is not None:
            found: dict[str, Any] = measure_recorded(options.recorded, Path(folder))
            reached = found["bytes_per_sample"] <= GOALS["bytes_per_sample"]
            for name, value in found.items():
                print(f"{name:26}{value:14,.2f}")
        else:
            found = {
                kind.name: measure_writing(kind, Path(folder), size)
                | measure_reading(kind, Path(folder), size)
                for kind in (Galen, Rows, Parquet)
            }
            reached = report(found)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"size": asdict(size), "found": found}, indent=2) + "\n", "utf-8"
        )
    return 0 if reached or options.quick else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
