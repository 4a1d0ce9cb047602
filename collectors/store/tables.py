"""Files of samples and of roll-ups, in Parquet or CSV by their names.

Samples have the columns ``time`` (seconds since the epoch), ``entity``, ``signal``, ``value``, and
``labels`` (a JSON object; optional when read). Roll-ups have ``time`` (the beginning of the bucket),
``entity``, ``signal``, ``resolution_seconds`` (60 or 3600), ``min``, ``max``, ``mean``, ``count``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

COLUMNS = ("time", "entity", "signal", "value")
ROLLUP_COLUMNS = (
    "time", "entity", "signal", "resolution_seconds", "min", "max", "mean", "count",
)  # fmt: skip
LABELS_COLUMN = "labels"
SUFFIXES = (".parquet", ".csv")

_TYPES = {
    "time": pa.float64(),
    "entity": pa.string(),
    "signal": pa.string(),
    "value": pa.float64(),
    LABELS_COLUMN: pa.string(),
    "min": pa.float64(),
    "max": pa.float64(),
    "mean": pa.float64(),
    "count": pa.int64(),
    "resolution_seconds": pa.int64(),
}
SAMPLES_SCHEMA = pa.schema([(name, _TYPES[name]) for name in (*COLUMNS, LABELS_COLUMN)])
ROLLUPS_SCHEMA = pa.schema([(name, _TYPES[name]) for name in ROLLUP_COLUMNS])
_CHUNK_ROWS = 65_536
_LARGEST_EPOCH_SECONDS = 1e11  # of the year 5138; a larger number is in a smaller unit


class TableError(Exception):
    """A file is not such a table; the message names the file, the column and what is wrong."""


def read_samples(path: Path) -> pd.DataFrame:
    """Read a whole file into the table that :meth:`SeriesReader.read` returns.

    Raises:
        TableError: when the file is not a table of samples.
    """
    found = [batch.select(list(COLUMNS)) for batch in batches(path, COLUMNS)]
    frame: pd.DataFrame = pa.Table.from_batches(
        found, pa.schema(list(SAMPLES_SCHEMA)[:4])
    ).to_pandas()
    return frame.dropna().sort_values("time", kind="stable", ignore_index=True)


def columns_of(path: Path) -> Sequence[str]:
    """Return the names of a file's columns.

    Raises:
        TableError: when the file cannot be read.
    """
    check_suffix(path)
    try:
        if path.suffix == ".csv":
            with closing(pacsv.open_csv(path)) as reader:
                names: Sequence[str] = reader.schema.names
                return names
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    return names


def writer(path: Path, suffix: str, schema: pa.Schema) -> AbstractContextManager[Any]:
    """Open a file to write tables of a schema to."""
    opened: AbstractContextManager[Any]
    if suffix == ".csv":
        opened = pacsv.CSVWriter(path, schema)
    else:
        opened = pq.ParquetWriter(path, schema, compression="zstd")
    return opened


def is_rollup(path: Path) -> bool:
    """Say whether a file holds roll-ups and not samples.

    Raises:
        TableError: when the file cannot be read.
    """
    return set(ROLLUP_COLUMNS) <= set(columns_of(path))


def check_suffix(path: Path) -> None:
    """Refuse a name whose kind is not known.

    Raises:
        TableError: when it ends in neither of ``SUFFIXES``.
    """
    if path.suffix not in SUFFIXES:
        raise TableError(f"{path}: its name must end in one of {', '.join(SUFFIXES)}")


def batches(path: Path, needed: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the checked rows of a file, in our types.

    Args:
        path: the file.
        needed: the columns that it must have; the labels come too where there are some.

    Raises:
        TableError: when the file is not such a table.
    """
    names = columns_of(path)
    for name in needed:
        if name not in names:
            raise TableError(
                f"{path}: there is no column {name!r}; it has {', '.join(map(repr, names))} "
                f"and needs {', '.join(needed)}"
            )
    wanted = [*needed, *([LABELS_COLUMN] if LABELS_COLUMN in names else [])]
    row = 1 if path.suffix == ".csv" else 0  # the header is the first row of a CSV
    try:
        for batch in _raw_batches(path, wanted):
            _check(path, batch, row)
            row += len(batch)
            yield batch
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: {_in_words(str(error), names)}") from error


def _raw_batches(path: Path, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([(name, _TYPES[name]) for name in wanted])
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
    **dict.fromkeys(("value", "min", "max", "mean"), "numbers"),
    **dict.fromkeys(("count", "resolution_seconds"), "whole numbers"),
    LABELS_COLUMN: "text: a JSON object",
}


def _fits(kind: pa.DataType, wanted: pa.DataType) -> bool:
    if wanted == pa.int64():
        return bool(pa.types.is_integer(kind))
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
    if "mean" in batch.schema.names:
        _check_buckets(path, batch, row)
    if LABELS_COLUMN in batch.schema.names:
        texts = batch.column(LABELS_COLUMN).to_pylist()
        wrong = np.array([not _are_labels(text) for text in texts])
        _refuse(path, LABELS_COLUMN, row, wrong, "not a JSON object")


def _check_buckets(path: Path, batch: pa.RecordBatch, row: int) -> None:
    """Refuse what no samples can have given."""
    low, mean, high, count, size, time = (
        batch.column(name).to_numpy(zero_copy_only=False)
        for name in ("min", "mean", "max", "count", "resolution_seconds", "time")
    )
    # Written so that a missing number is refused as well.
    _refuse(path, "mean", row, ~((low <= mean) & (mean <= high)), "it is not between min and max")
    _refuse(path, "min", row, ~np.isfinite(low + high), "min and max must be finite")
    _refuse(path, "count", row, ~(count > 0), "a bucket has at least one sample")
    _refuse(
        path, "resolution_seconds", row, ~((size == 60) | (size == 3600)), "it must be 60 or 3600"
    )
    _refuse(path, "time", row, time % size != 0, "it is not the beginning of a bucket")


def _are_labels(text: str | None) -> bool:
    try:
        labels_from(text)
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


def present(batch: pa.RecordBatch) -> Sequence[str]:
    """Return the names of the columns."""
    names: Sequence[str] = batch.schema.names
    return names


@lru_cache(maxsize=4096)
def labels_from(text: str | None = None) -> Mapping[str, str]:
    """Read the labels of a row; a million rows have a handful of them.

    Raises:
        ValueError: when the text is not a JSON object.
    """
    given = json.loads(text or "{}")
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one kind of error for any wrong text
    return {str(name): str(value) for name, value in given.items()}
