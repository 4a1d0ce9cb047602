"""Where the history of a backtest comes from: a series store, a file, Prometheus; in chunks of time."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.detection.wide_csv import TIME_COLUMN, WideCsvError, read_wide_csv, times_of
from collectors.entities import entity
from collectors.prometheus_history import PrometheusHistory
from collectors.store.contract import SeriesReader
from collectors.store.tables import COLUMNS, TableError, batches, columns_of, read_samples
from galen.errors import ConfigError
from galen.watch import WATCH_ENTITY

_END_SLACK_SECONDS = 0.001  # the store keeps milliseconds, and an end is exclusive
_FIRST_CHUNK_SECONDS = 600.0
_SHORTEST_CHUNK_SECONDS = 60.0
_LONGEST_CHUNK_SECONDS = 86_400.0
_CHUNK_SAMPLES = 500_000
"""Samples of a chunk, about; what a replay holds of history at once, some 40 MB."""
_WIDE_ROWS = 2000


@dataclass(frozen=True, slots=True)
class ReplayHistory:
    """History to replay, oldest first."""

    start_seconds: float
    """Where ticks begin; the first sample is not before it."""
    end_seconds: float
    """Where history ends, as far as is known beforehand; for the progress bar."""
    chunks: Iterator[tuple[float, pd.DataFrame]]
    """Up to when, exclusively, and the samples since the chunk before."""
    step_seconds: float | None = None
    """The distance of its samples, where that is known beforehand."""
    watch_entity: str | None = None
    """Whose samples say when the watch loop ticked; None where nothing says so."""


def from_store(reader: SeriesReader, start_seconds: float, end_seconds: float) -> ReplayHistory:
    """Read a series store; either bound may be infinite.

    The watch loop writes a sample of itself at every tick, so a store knows when it ticked and the
    replay can tick then.

    Raises:
        ConfigError: when nothing lies in the time.
        StoreError: when the store cannot be read.
    """
    known = reader.series()
    first = min((info.first_seconds for info in known), default=math.inf)
    last = max((info.last_seconds for info in known), default=-math.inf)
    start, end = max(start_seconds, first), min(end_seconds, last + _END_SLACK_SECONDS)
    if start >= end:
        raise _nothing("the series store")
    watched = any(info.key.entity == WATCH_ENTITY for info in known)

    def read(begin: float, until: float) -> pd.DataFrame:
        return reader.read(start_seconds=begin, end_seconds=until)

    # What was deleted may still be listed: the first sample says where ticks begin.
    chunks = _without_empty_start(chunks_of(read, start, end))
    first_chunk = next(chunks, None)
    if first_chunk is None:
        raise _nothing("the series store")
    begins = float(first_chunk[1]["time"].iloc[0])
    return ReplayHistory(
        begins,
        end,
        _with_first(first_chunk, chunks),
        watch_entity=WATCH_ENTITY if watched else None,
    )


def chunks_of(
    read: Callable[[float, float], pd.DataFrame], start_seconds: float, end_seconds: float
) -> Iterator[tuple[float, pd.DataFrame]]:
    """Read a time in chunks whose length follows how many samples there are.

    Args:
        read: reads samples with ``start <= time < end``.
        start_seconds: the first moment.
        end_seconds: the first moment that is not read.
    """
    begin, length = start_seconds, _FIRST_CHUNK_SECONDS
    while begin < end_seconds:
        until = min(begin + length, end_seconds)
        frame = read(begin, until)
        yield until, frame
        begin = until
        wanted = length * _CHUNK_SAMPLES / max(len(frame), 1)
        # At most four times as long as the last: a quiet hour must not lead to a huge next chunk.
        length = min(max(wanted, _SHORTEST_CHUNK_SECONDS), 4.0 * length, _LONGEST_CHUNK_SECONDS)


def from_prometheus(
    history: PrometheusHistory,
    start_seconds: float,
    end_seconds: float,
    stop: threading.Event,
    note: Callable[[str], None],
) -> ReplayHistory:
    """Read the history of a fleet by the queries that are asked live.

    Args:
        history: of which server.
        start_seconds: the first moment.
        end_seconds: the first moment that is not read.
        stop: ends a wait for a failing server.
        note: told once why an answer was incomplete, and which queries the server refuses.
    """

    def chunks() -> Iterator[tuple[float, pd.DataFrame]]:
        told: set[str] = set()
        for until, frame in history.frames(start_seconds, end_seconds, stop):
            for texts in history.take_notes():
                for text in texts:
                    if text not in told:
                        told.add(text)
                        note(text)
            yield until, frame

    start = history.on_steps(start_seconds)
    return ReplayHistory(start, end_seconds, chunks(), step_seconds=history.step_seconds)


def from_file(path: Path, start_seconds: float, end_seconds: float) -> ReplayHistory:
    """Read a wide or long table, CSV or Parquet; either bound may be infinite.

    A long table that is sorted by time is read in pieces, whatever its size; others are read whole.

    Raises:
        ConfigError: when the file cannot be read as a table, or nothing lies in the time.
    """
    try:
        if all(name in columns_of(path) for name in COLUMNS):
            rises, last = _time_column(path)
            chunks = _long_chunks(path) if rises else iter([(math.inf, read_samples(path))])
        else:
            wide = _wide(path)
            times = times_of(wide[TIME_COLUMN], len(wide))
            last = float(times[-1])
            chunks = _melted(wide, times, path)
        inside = _without_empty_start(_within(chunks, start_seconds, end_seconds))
        first = next(inside, None)
    except (TableError, WideCsvError) as error:
        raise ConfigError(
            str(error),
            fix=f"A long table has {', '.join(COLUMNS)}; a wide one {TIME_COLUMN} and one column "
            "a metric, `entity:signal` or a name.",
        ) from error
    if first is None:
        raise _nothing(str(path))
    begins = float(first[1]["time"].iloc[0])
    return ReplayHistory(
        begins, min(end_seconds, last + _END_SLACK_SECONDS), _with_first(first, inside)
    )


def _time_column(path: Path) -> tuple[bool, float]:
    """Say whether the times of a long table never fall, and the largest, without reading the rest."""
    rises, last = True, -math.inf
    try:
        for batch in _times_of_long(path):
            times = batch.column(0).to_numpy(zero_copy_only=False).astype(float)
            times = times[np.isfinite(times)]
            if len(times):
                rises = rises and bool(times[0] >= last and (np.diff(times) >= 0).all())
                last = max(last, float(times.max()))
    except (OSError, pa.ArrowException, ValueError, TypeError):
        # Reading the table itself says what is wrong, and where.
        return False, math.inf
    return rises, last


def _times_of_long(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".csv":
        convert = pacsv.ConvertOptions(
            column_types={"time": pa.float64()}, include_columns=["time"]
        )
        with closing(pacsv.open_csv(path, convert_options=convert)) as reader:
            yield from reader
    else:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=["time"])


def _long_chunks(path: Path) -> Iterator[tuple[float, pd.DataFrame]]:
    waiting: pd.DataFrame | None = None
    for batch in batches(path, COLUMNS):
        frame = pa.Table.from_batches([batch.select(list(COLUMNS))]).to_pandas().dropna()
        if frame.empty:
            continue
        if waiting is not None:
            # Before the first time of the next batch all samples are known.
            yield float(frame["time"].iloc[0]), waiting
        waiting = frame
    if waiting is not None:
        yield math.inf, waiting


def _wide(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return read_wide_csv(path)
    frame = pd.read_parquet(path)
    if frame.empty or str(frame.columns[0]) != TIME_COLUMN:
        raise TableError(f"{path}: the first column is not {TIME_COLUMN!r}, or there is no row")
    for name in frame.columns[1:]:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise TableError(f"{path}: column {str(name)!r} holds {frame[name].dtype}, no numbers")
    return frame


def _melted(
    wide: pd.DataFrame, times: NDArray[np.float64], path: Path
) -> Iterator[tuple[float, pd.DataFrame]]:
    """Turn one column a metric into one row a sample; a bare name is a signal of the file's name."""
    names = [str(name).rpartition(":") for name in wide.columns[1:]]
    entities = pd.Index([about or entity("file", path.stem) for about, _, _ in names])
    signals = pd.Index([signal for _, _, signal in names])
    values = wide.iloc[:, 1:].to_numpy(dtype=float, na_value=np.nan)
    for first in range(0, len(wide), _WIDE_ROWS):
        block = values[first : first + _WIDE_ROWS]
        rows, columns = np.nonzero(np.isfinite(block))
        last = first + _WIDE_ROWS
        yield (
            float(times[last]) if last < len(times) else math.inf,
            pd.DataFrame(
                {
                    "time": times[first + rows],
                    "entity": entities[columns],
                    "signal": signals[columns],
                    "value": block[rows, columns],
                }
            ),
        )


def _within(
    chunks: Iterator[tuple[float, pd.DataFrame]], start_seconds: float, end_seconds: float
) -> Iterator[tuple[float, pd.DataFrame]]:
    for until, frame in chunks:
        times = frame["time"]
        yield until, frame[(times >= start_seconds) & (times < end_seconds)]
        if until >= end_seconds:
            return


def _without_empty_start(
    chunks: Iterator[tuple[float, pd.DataFrame]],
) -> Iterator[tuple[float, pd.DataFrame]]:
    return itertools.dropwhile(lambda chunk: chunk[1].empty, chunks)


def _with_first(
    first: tuple[float, pd.DataFrame], rest: Iterator[tuple[float, pd.DataFrame]]
) -> Iterator[tuple[float, pd.DataFrame]]:
    return itertools.chain([first], rest)


def _nothing(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: there is nothing to replay in that time",
        fix="Choose another --from and --to; `galen store info` shows what there is.",
    )
