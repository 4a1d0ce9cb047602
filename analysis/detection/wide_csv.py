"""Reads a wide CSV of metrics: the first column is the time, each other column is one metric."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

TIME_COLUMN = "timestamp"
_LARGEST_EPOCH = 1e11
"""Seconds of the year 5138; a larger number is in a smaller unit."""


class WideCsvError(ValueError):
    """A file is not a wide CSV of metrics; the message names the file, the line and the column."""


def read_wide_csv(path: Path | str) -> pd.DataFrame:
    """Read a wide CSV.

    The first column is called ``timestamp`` and is kept as it is written; all others are numbers, and
    an empty field or ``nan`` is a missing value.

    Returns:
        ``timestamp`` as text and one float column a metric, in the order of the file.

    Raises:
        WideCsvError: naming file, line and column, and what was expected there.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WideCsvError(f"{path}: cannot be read as CSV: {error}") from error
    if not rows or not any(rows[0]):
        raise WideCsvError(f"{path}: the file is empty; expected a header such as `timestamp,cpu`")
    header = [name.strip() for name in rows[0]]
    _check_header(path, header)
    # Blank lines at the end are no rows; inside, csv reports them as empty lists as well.
    body = [(number, row) for number, row in enumerate(rows[1:], start=2) if row]
    if not body:
        raise WideCsvError(f"{path}: there is a header but no row")
    values = np.full((len(body), len(header) - 1), np.nan)
    for place, (number, row) in enumerate(body):
        if len(row) != len(header):
            raise WideCsvError(
                f"{path}, line {number}: {len(row)} fields, but the header has {len(header)}"
            )
        if not row[0].strip():
            raise WideCsvError(
                f"{path}, line {number}, column {TIME_COLUMN!r}: the time is missing"
            )
        for column, text in enumerate(row[1:]):
            values[place, column] = _number(path, number, header[column + 1], text)
    frame = pd.DataFrame(values, columns=pd.Index(header[1:]))
    frame.insert(0, TIME_COLUMN, [row[0].strip() for _, row in body])
    return frame


def _check_header(path: Path, header: list[str]) -> None:
    if header[0] != TIME_COLUMN:
        raise WideCsvError(
            f"{path}, line 1: the first column is {header[0]!r}, expected {TIME_COLUMN!r}"
        )
    if len(header) < 2:
        raise WideCsvError(f"{path}, line 1: there is no metric beside {TIME_COLUMN!r}")
    for place, name in enumerate(header, start=1):
        if not name:
            raise WideCsvError(f"{path}, line 1: column {place} has no name")
        if header.count(name) > 1:
            raise WideCsvError(f"{path}, line 1: two columns are called {name!r}")


def _number(path: Path, line: int, column: str, text: str) -> float:
    text = text.strip()
    if not text:
        return np.nan
    try:
        value = float(text)
    except ValueError:
        raise WideCsvError(
            f"{path}, line {line}, column {column!r}: {text[:40]!r} is not a number; "
            "leave the field empty where a value is missing"
        ) from None
    return value if np.isfinite(value) else np.nan


def times_of(timestamps: pd.Series, judged_rows: int) -> NDArray[np.float64]:
    """Return seconds for a column of timestamps: epoch numbers, ISO times, or else row numbers.

    Only the first ``judged_rows`` say how times are written, so that no row changes the time of one
    before it: row numbers stand in where one of those cannot be read or they do not rise. A later
    time that cannot be read is that of the row before plus the usual step.
    """
    rows = np.arange(len(timestamps), dtype=float)
    seconds = np.array(pd.to_numeric(timestamps, errors="coerce"), dtype=float)
    if np.isnan(seconds[:judged_rows]).any():
        parsed = pd.to_datetime(timestamps, errors="coerce", utc=True, format="mixed")
        epoch = pd.Timestamp(0, tz="UTC")
        seconds = np.array((parsed - epoch) / pd.Timedelta(seconds=1), dtype=float)
    judged = seconds[:judged_rows]
    if np.isnan(judged).any() or not np.all(np.diff(judged) > 0):
        return rows
    # Epochs in milliseconds, microseconds or nanoseconds are told by their size.
    while np.abs(judged).max() > _LARGEST_EPOCH:
        seconds, judged = seconds / 1000.0, judged / 1000.0
    step = float(np.median(np.diff(judged))) if len(judged) > 1 else 1.0
    for row in np.flatnonzero(np.isnan(seconds)):
        seconds[row] = seconds[row - 1] + step
    return seconds
