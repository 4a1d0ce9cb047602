"""Keeping house in a series store: what is in it, and moving samples and roll-ups out and in.

Files are those of :mod:`collectors.store.tables`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from collectors.contract import Sample, SeriesKey
from collectors.store.contract import SeriesReader, SeriesStore
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
from collectors.store.tables import (
    COLUMNS,
    LABELS_COLUMN,
    ROLLUP_COLUMNS,
    ROLLUPS_SCHEMA,
    SAMPLES_SCHEMA,
    TableError,
    batches,
    check_suffix,
    labels_from,
    present,
    writer,
)

_MILLISECOND = 0.001  # the resolution of stores; the end of a read is exclusive
_CHUNK_SECONDS = 3600.0
# One stray sample of 1970 must not make half a million spans.
_MOST_READS = 100_000
_MOST_SUMMARY_READS = 2_000
_MOST_TRANSACTIONS = 1_000
_ROLLUP_CHUNK_SECONDS = 86_400.0
_COMPACT_SECONDS = 0.5
_LEAST_GAP_SECONDS = 10.0
_GAP_STEPS = 3.0
"""A gap is longer than three usual steps: one lost tick is jitter, three in a row are an outage."""

Progress = Callable[[float], None]
"""Told the share, 0 to 1, that is done."""


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a store holds."""

    series: int
    samples: int
    first_seconds: float | None
    last_seconds: float | None
    usual_step_seconds: float | None
    """Median distance of the seconds that have any sample."""
    gaps: Sequence[tuple[float, float]]
    """Last sample before and first sample after each time without any, to the second."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What an export or an import moved."""

    samples: int
    left_out: int = 0
    """Samples whose value was missing or not finite."""
    first_seconds: float | None = None
    last_seconds: float | None = None


def summarise(reader: SeriesReader, progress: Progress | None = None) -> StoreSummary:
    """Count what a store holds and find the times in which nothing was written.

    Reads an hour at a time, so that memory does not grow with the store.

    Raises:
        StoreError: when the store cannot be read.
    """
    known = reader.series()
    if not known:
        return StoreSummary(0, 0, None, None, None, ())
    first = min(info.first_seconds for info in known)
    # The writer goes on meanwhile; what comes after the listing belongs to the next summary.
    last = max(info.last_seconds for info in known)
    # Whole seconds that have any sample, after the first.
    occupied: list[NDArray[np.int64]] = []
    samples = 0
    end = last + _MILLISECOND
    for begin, until in _spans(first, end, _CHUNK_SECONDS, _MOST_SUMMARY_READS):
        times = _times(reader, begin, until)
        samples += len(times)
        occupied.append(np.unique((times - first).astype(np.int64)))
        if progress is not None:
            progress((until - first) / (end - first))
    seconds = np.unique(np.concatenate(occupied))
    steps = np.diff(seconds)
    step = float(np.median(steps)) if steps.size else None
    least = max(_LEAST_GAP_SECONDS, _GAP_STEPS * (step or 0.0))
    wide = np.flatnonzero(steps > least)
    gaps = [(first + float(seconds[at]), first + float(seconds[at + 1])) for at in wide]
    return StoreSummary(len(known), samples, first, last, step, gaps)


def _times(reader: SeriesReader, start: float, end: float) -> NDArray[np.float64]:
    if isinstance(reader, SqliteSeriesReader):
        return reader.read_times(start_seconds=start, end_seconds=end)
    frame = reader.read(start_seconds=start, end_seconds=end)
    return frame["time"].to_numpy(dtype=np.float64)


def export_samples(
    reader: SeriesReader,
    out: Path,
    *,
    start_seconds: float,
    end_seconds: float,
    entities: Collection[str] | None = None,
    signals: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Moved:
    """Write samples with ``start <= time < end`` to a file, sorted by time.

    The file appears whole or not at all. An hour is in memory at a time.

    Raises:
        StoreError: when the store cannot be read.
        TableError: when the file's kind is not known or it cannot be written.
    """
    known = reader.series()
    labels = {info.key: json.dumps(dict(info.labels), sort_keys=True) for info in known}
    # Without any series the span is empty, whatever was asked for.
    start = max(start_seconds, min((info.first_seconds for info in known), default=math.inf))
    end = min(end_seconds, max((info.last_seconds for info in known), default=0.0) + _MILLISECOND)

    def tables() -> Iterator[pa.Table]:
        for begin, until in _spans(start, end, _CHUNK_SECONDS):
            frame = reader.read(
                start_seconds=begin, end_seconds=until, entities=entities, signals=signals
            )
            if not frame.empty:
                yield _table(frame, labels)
            if progress is not None:
                progress((until - start) / (end - start))

    return _write_out(out, SAMPLES_SCHEMA, tables())


def export_rollups(
    reader: SeriesReader,
    out: Path,
    *,
    resolution_seconds: int,
    start_seconds: float,
    end_seconds: float,
    entities: Collection[str] | None = None,
    signals: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Moved:
    """Write the buckets that begin in ``start <= time < end`` to a file, sorted by time.

    The file appears whole or not at all. A day is in memory at a time.

    Args:
        reader: the store.
        out: the file.
        resolution_seconds: 60 or 3600.
        start_seconds: seconds since the epoch; finite.
        end_seconds: seconds since the epoch; finite.
        entities: only these.
        signals: only these.
        progress: told the share that is done.

    Raises:
        StoreError: when the store cannot be read.
        TableError: when the file's kind is not known or it cannot be written.
    """

    def tables() -> Iterator[pa.Table]:
        for begin, until in _spans(start_seconds, end_seconds, _ROLLUP_CHUNK_SECONDS):
            frame = reader.read_rollup(
                start_seconds=begin, end_seconds=until, resolution_seconds=resolution_seconds,
                entities=entities, signals=signals,
            )  # fmt: skip
            if not frame.empty:
                frame = frame.assign(resolution_seconds=resolution_seconds)
                yield pa.Table.from_pandas(frame, schema=ROLLUPS_SCHEMA, preserve_index=False)
            if progress is not None:
                progress((until - start_seconds) / (end_seconds - start_seconds))

    return _write_out(out, ROLLUPS_SCHEMA, tables())


def _write_out(out: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> Moved:
    check_suffix(out)
    partial = out.with_name(f".{out.name}.partial")
    count, first, last = 0, None, None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with writer(partial, out.suffix, schema) as target:
            for table in tables:
                target.write_table(table)
                count += len(table)
                first = table["time"][0].as_py() if first is None else first
                last = table["time"][-1].as_py()
        partial.replace(out)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{out}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Moved(count, first_seconds=first, last_seconds=last)


def _spans(
    start: float, end: float, seconds: float, most: int = _MOST_READS
) -> Iterator[tuple[float, float]]:
    """Yield adjoining spans of some time, or longer where there would be more than ``most``."""
    step = max(seconds, (end - start) / most)
    while start < end:
        until = min(start + step, end)
        yield start, until
        start = until


def _table(frame: pd.DataFrame, labels: Mapping[SeriesKey, str]) -> pa.Table:
    described = [
        labels.get(SeriesKey(entity, signal), "{}")
        for entity, signal in zip(frame["entity"], frame["signal"], strict=True)
    ]
    return pa.Table.from_pandas(
        frame.assign(**{LABELS_COLUMN: described}), schema=SAMPLES_SCHEMA, preserve_index=False
    )


def import_samples(store: SeriesStore, path: Path, progress: Progress | None = None) -> Moved:
    """Write a file's samples to a store. The whole file is checked before the first is written.

    Raises:
        TableError: when the file is not a table of samples; the store is unchanged then.
        StoreError: when the store cannot be written.
    """
    rows = sum(len(batch) for batch in batches(path, COLUMNS))
    written, seen, first, last = 0, 0, math.inf, -math.inf
    for batch in batches(path, COLUMNS):
        columns = [batch.column(name).to_pylist() for name in present(batch)]
        samples = [
            Sample(at, entity, signal, value, labels_from(*labels))
            for at, entity, signal, value, *labels in zip(*columns, strict=True)
            if value is not None and math.isfinite(value)
        ]
        written += store.write(samples)
        # What came long ago goes to its blocks, or a large file would wait outside of them.
        store.compact(now_seconds=time.time(), budget_seconds=_COMPACT_SECONDS)
        seen += len(batch)
        first = min([first, *(sample.time_seconds for sample in samples)])
        last = max([last, *(sample.time_seconds for sample in samples)])
        if progress is not None:
            progress(seen / rows)
    if not written:
        return Moved(0, rows)
    return Moved(written, rows - written, first, last)


def import_rollups(store: SqliteSeriesStore, path: Path, progress: Progress | None = None) -> Moved:
    """Write a file's roll-ups to a store. The whole file is checked before the first is written.

    A bucket that the store has is replaced.

    Raises:
        TableError: when the file is not a table of roll-ups; the store is unchanged then.
        StoreError: when the store cannot be written.
    """
    rows = sum(len(batch) for batch in batches(path, ROLLUP_COLUMNS))
    seen, first, last = 0, math.inf, -math.inf
    for batch in batches(path, ROLLUP_COLUMNS):
        frame = batch.to_pandas()
        for resolution, part in frame.groupby("resolution_seconds"):
            store.write_rollups(part, resolution_seconds=int(str(resolution)))
        seen += len(batch)
        first, last = min(first, frame["time"].min()), max(last, frame["time"].max())
        if progress is not None:
            progress(seen / rows)
    return Moved(rows, 0, first, last) if rows else Moved(0)


def compact_in_steps(store: SeriesStore, progress: Progress | None = None) -> None:
    """Compact all that is due, some at a time; it may be ended between and goes on another time.

    Raises:
        StoreError: when the store cannot be written.
    """
    steps = 0
    while not store.compact(now_seconds=time.time(), budget_seconds=_COMPACT_SECONDS):
        steps += 1
        if progress is not None:
            progress(1.0 - 0.9**steps)  # how much is left is not known before it is done


def prune_in_steps(
    store: SeriesStore, *, before_seconds: float, progress: Progress | None = None
) -> int:
    """Delete samples older than a time, an hour of them a transaction; return how many went.

    One transaction over days would make the store's log as large as what it deletes.

    Raises:
        StoreError: when the store cannot be written.
    """
    first = min((info.first_seconds for info in store.series()), default=before_seconds)
    gone = 0
    for _, until in _spans(first, before_seconds, _CHUNK_SECONDS, _MOST_TRANSACTIONS):
        gone += store.prune(before_seconds=until)
        if progress is not None:
            progress((until - first) / (before_seconds - first))
    return gone
