"""Keeping house in a series store: what is in it, and moving samples out and in.

Tables have the columns ``time`` (seconds since the epoch), ``entity``, ``signal``, ``value``, and
``labels`` (a JSON object; optional when read), one row a sample, in Parquet or CSV.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from collectors.contract import Sample, SeriesKey
from collectors.store.contract import SeriesInfo, SeriesReader, SeriesStore

COLUMNS = ("time", "entity", "signal", "value")
LABELS_COLUMN = "labels"
SUFFIXES = (".parquet", ".csv")

_SCHEMA = pa.schema(
    [
        ("time", pa.float64()),
        ("entity", pa.string()),
        ("signal", pa.string()),
        ("value", pa.float64()),
        (LABELS_COLUMN, pa.string()),
    ]
)
_MILLISECOND = 0.001  # the resolution of stores; the end of a read is exclusive
_CHUNK_SECONDS = 3600.0
# One stray sample of 1970 must not make half a million spans.
_MOST_READS = 100_000
_MOST_TRANSACTIONS = 1_000
_CHUNK_ROWS = 65_536
_LARGEST_EPOCH_SECONDS = 1e11  # of the year 5138; a larger number is in a smaller unit
_LEAST_GAP_SECONDS = 10.0
_GAP_STEPS = 3.0
"""A gap is longer than three usual steps: one lost tick is jitter, three in a row are an outage."""

Progress = Callable[[float], None]
"""Told the share, 0 to 1, that is done."""


class TableError(Exception):
    """A file is not a table of samples; the message names the file, the column and what is wrong."""


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

    Reads one series at a time, so that memory does not grow with the store.

    Raises:
        StoreError: when the store cannot be read.
    """
    known = reader.series()
    if not known:
        return StoreSummary(0, 0, None, None, None, ())
    first = min(info.first_seconds for info in known)
    last = max(info.last_seconds for info in known)
    # Whole seconds that have any sample, after the first.
    occupied = np.empty(0, dtype=np.int64)
    samples = 0
    for done, info in enumerate(known, start=1):
        times = _times_of(reader, info, last)
        samples += len(times)
        occupied = np.union1d(occupied, (times - first).astype(np.int64))
        if progress is not None:
            progress(done / len(known))
    steps = np.diff(occupied)
    step = float(np.median(steps)) if steps.size else None
    least = max(_LEAST_GAP_SECONDS, _GAP_STEPS * (step or 0.0))
    wide = np.flatnonzero(steps > least)
    gaps = [(first + float(occupied[at]), first + float(occupied[at + 1])) for at in wide]
    return StoreSummary(len(known), samples, first, last, step, gaps)


def _times_of(reader: SeriesReader, info: SeriesInfo, last: float) -> NDArray[np.float64]:
    frame = reader.read(
        start_seconds=info.first_seconds,
        # The writer goes on meanwhile; what comes after the listing belongs to the next summary.
        end_seconds=last + _MILLISECOND,
        entities={info.key.entity},
        signals={info.key.signal},
    )
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
    _check_suffix(out)
    known = reader.series()
    labels = {info.key: json.dumps(dict(info.labels), sort_keys=True) for info in known}
    # Without any series the span is empty, whatever was asked for.
    start = max(start_seconds, min((info.first_seconds for info in known), default=math.inf))
    end = min(end_seconds, max((info.last_seconds for info in known), default=0.0) + _MILLISECOND)
    partial = out.with_name(f".{out.name}.partial")
    count, first, last = 0, None, None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _writer(partial, out.suffix) as writer:
            for begin, until in _spans(start, end, _MOST_READS):
                frame = reader.read(
                    start_seconds=begin, end_seconds=until, entities=entities, signals=signals
                )
                if not frame.empty:
                    writer.write_table(_table(frame, labels))
                    count += len(frame)
                    first = float(frame["time"].iloc[0]) if first is None else first
                    last = float(frame["time"].iloc[-1])
                if progress is not None:
                    progress((until - start) / (end - start))
        partial.replace(out)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{out}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Moved(count, first_seconds=first, last_seconds=last)


def _spans(start: float, end: float, most: int) -> Iterator[tuple[float, float]]:
    """Yield adjoining spans of an hour, or longer where there would be more than ``most``."""
    step = max(_CHUNK_SECONDS, (end - start) / most)
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
        frame.assign(**{LABELS_COLUMN: described}), schema=_SCHEMA, preserve_index=False
    )


def _writer(path: Path, suffix: str) -> AbstractContextManager[Any]:
    writer: AbstractContextManager[Any]
    if suffix == ".csv":
        writer = pacsv.CSVWriter(path, _SCHEMA)
    else:
        writer = pq.ParquetWriter(path, _SCHEMA, compression="zstd")
    return writer


def import_samples(store: SeriesStore, path: Path, progress: Progress | None = None) -> Moved:
    """Write a file's samples to a store. The whole file is checked before the first is written.

    Raises:
        TableError: when the file is not a table of samples; the store is unchanged then.
        StoreError: when the store cannot be written.
    """
    rows = sum(len(batch) for batch in _batches(path))
    written, seen, first, last = 0, 0, math.inf, -math.inf
    for batch in _batches(path):
        columns = [batch.column(name).to_pylist() for name in _present(batch)]
        samples = [
            Sample(time, entity, signal, value, _labels_from(*labels))
            for time, entity, signal, value, *labels in zip(*columns, strict=True)
            if value is not None and math.isfinite(value)
        ]
        written += store.write(samples)
        seen += len(batch)
        first = min([first, *(sample.time_seconds for sample in samples)])
        last = max([last, *(sample.time_seconds for sample in samples)])
        if progress is not None:
            progress(seen / rows)
    if not written:
        return Moved(0, rows)
    return Moved(written, rows - written, first, last)


def read_samples(path: Path) -> pd.DataFrame:
    """Read a whole file into the table that :meth:`SeriesReader.read` returns.

    Raises:
        TableError: when the file is not a table of samples.
    """
    batches = [batch.select(list(COLUMNS)) for batch in _batches(path)]
    frame: pd.DataFrame = pa.Table.from_batches(batches, pa.schema(list(_SCHEMA)[:4])).to_pandas()
    return frame.dropna().sort_values("time", kind="stable", ignore_index=True)


def columns_of(path: Path) -> Sequence[str]:
    """Return the names of a file's columns.

    Raises:
        TableError: when the file cannot be read.
    """
    _check_suffix(path)
    try:
        if path.suffix == ".csv":
            with closing(pacsv.open_csv(path)) as reader:
                names: Sequence[str] = reader.schema.names
                return names
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    return names


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
    for _, until in _spans(first, before_seconds, _MOST_TRANSACTIONS):
        gone += store.prune(before_seconds=until)
        if progress is not None:
            progress((until - first) / (before_seconds - first))
    return gone


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise TableError(f"{path}: its name must end in one of {', '.join(SUFFIXES)}")


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the checked rows of a file, in the types of the schema."""
    names = columns_of(path)
    for name in COLUMNS:
        if name not in names:
            raise TableError(
                f"{path}: there is no column {name!r}; it has {', '.join(map(repr, names))} "
                f"and needs {', '.join(COLUMNS)}"
            )
    wanted = [*COLUMNS, *([LABELS_COLUMN] if LABELS_COLUMN in names else [])]
    row = 1 if path.suffix == ".csv" else 0  # the header is the first row of a CSV
    try:
        for batch in _raw_batches(path, wanted):
            _check(path, batch, row)
            row += len(batch)
            yield batch
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: {_in_words(str(error), names)}") from error


def _raw_batches(path: Path, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([_SCHEMA.field(name) for name in wanted])
    if path.suffix == ".csv":
        convert = pacsv.ConvertOptions(
            column_types=schema, include_columns=list(wanted), strings_can_be_null=False
        )
        # One thread: only then does an error name the row.
        with closing(
            pacsv.open_csv(path, pacsv.ReadOptions(use_threads=False), convert_options=convert)
        ) as reader:
            yield from reader
        return
    with pq.ParquetFile(path) as file:
        for name in wanted:
            kind = file.schema_arrow.field(name).type
            if not _fits(kind, schema.field(name).type):
                raise TableError(f"{path}: column {name!r} holds {kind}, expected {_WORDS[name]}")
        for batch in file.iter_batches(_CHUNK_ROWS, columns=list(wanted)):
            yield batch.select(list(wanted)).cast(schema)


_WORDS = {
    "time": "numbers: seconds since the epoch",
    "entity": "text",
    "signal": "text",
    "value": "numbers",
    LABELS_COLUMN: "text: a JSON object",
}


def _fits(kind: pa.DataType, wanted: pa.DataType) -> bool:
    if wanted == pa.float64():
        return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check(path: Path, batch: pa.RecordBatch, row: int) -> None:
    """Refuse what a sample cannot have; ``row`` is the number of the row before the first."""
    times = batch.column("time").to_numpy(zero_copy_only=False)
    _refuse(path, "time", row, ~np.isfinite(times), "the time is missing")
    _refuse(
        path, "time", row, (times < 0) | (times > _LARGEST_EPOCH_SECONDS),
        "the time is not in seconds since the epoch",
    )  # fmt: skip
    for name in ("entity", "signal"):
        texts = batch.column(name).to_pylist()
        _refuse(path, name, row, np.array([not text for text in texts]), f"the {name} is missing")
    if LABELS_COLUMN in batch.schema.names:
        texts = batch.column(LABELS_COLUMN).to_pylist()
        wrong = np.array([not _are_labels(text) for text in texts])
        _refuse(path, LABELS_COLUMN, row, wrong, "not a JSON object")


def _are_labels(text: str | None) -> bool:
    try:
        _labels_from(text)
    except ValueError:
        return False
    return True


def _refuse(path: Path, column: str, row: int, wrong: NDArray[np.bool_], why: str) -> None:
    places = np.flatnonzero(wrong)
    if places.size:
        raise TableError(f"{path}, row {row + int(places[0]) + 1}, column {column!r}: {why}")


def _in_words(error: str, names: Sequence[str]) -> str:
    """Put the name of the column where Arrow gives its number."""
    for number, name in enumerate(names):
        error = error.replace(f"CSV column #{number}:", f"column {name!r}:")
    return error


def _present(batch: pa.RecordBatch) -> Sequence[str]:
    names: Sequence[str] = batch.schema.names
    return names


@lru_cache(maxsize=4096)
def _labels_from(text: str | None = None) -> Mapping[str, str]:
    """Read the labels of a row; a million rows have a handful of them.

    Raises:
        ValueError: when the text is not a JSON object.
    """
    given = json.loads(text or "{}")
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one kind of error for any wrong text
    return {str(name): str(value) for name, value in given.items()}
