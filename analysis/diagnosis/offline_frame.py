"""Reading what is explained off line: a wide CSV of metrics, a CSV of edges, an onset.

The first column of the metrics is the time (seconds since the epoch, or ISO 8601); every other column is
``entity:signal``, split at its last colon. An empty cell is a missing value. An edge ``source,target``
says that the source calls, or sends its work to, the target: trouble at the target shows at the source.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from collectors.contract import SeriesKey

Edges = Sequence[tuple[str, str]]

_MISSING = frozenset({"", "nan", "null", "none", "na"})


class FrameError(ValueError):
    """A file cannot be used; the message names the file, the line, the column and the fix."""


class Cell(NamedTuple):
    """A place in a file, as people count: the header is line 1."""

    line: int
    column: str


def split_column(column: str) -> SeriesKey:
    """Split ``entity:signal`` at the last colon.

    Raises:
        FrameError: when there is no colon, or nothing on one of its sides.
    """
    entity, _, signal = column.rpartition(":")
    if not entity or not signal:
        raise FrameError(
            f"column {column!r} is not of the form entity:signal, such as llm:queue_depth"
        )
    return SeriesKey(entity, signal)


def parse_time(text: str) -> float:
    """Return seconds since the epoch from a number or an ISO 8601 time; without a zone it is UTC.

    Raises:
        FrameError: when the text is neither.
    """
    stripped = text.strip()
    try:
        number = float(stripped)
    except ValueError:
        pass
    else:
        if math.isfinite(number):
            return number
        raise FrameError(f"{text!r} is not a time")
    try:
        moment = datetime.fromisoformat(stripped)
    except ValueError:
        raise FrameError(
            f"{text!r} is not a time: give seconds since the epoch or ISO 8601, such as "
            "2026-11-21T03:12:07Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def read_frame(path: Path) -> pd.DataFrame:
    """Read a wide CSV of metrics.

    Returns:
        One row a time, sorted, the index float seconds; of two rows of one time the later one stays.

    Raises:
        FrameError: naming the file, the line and the column.
    """
    header, rows = _read_rows(path)
    if len(header) < 2:
        raise FrameError(f"{path}: line 1: needs a time column and at least one metric")
    seen: set[str] = set()
    for column in header[1:]:
        if column in seen:
            raise FrameError(f"{path}: line 1: column {column!r} is there twice")
        seen.add(column)
        try:
            split_column(column)
        except FrameError as error:
            raise FrameError(f"{path}: line 1: {error}") from None
    if not rows:
        raise FrameError(f"{path}: has a header and no rows")
    times = np.empty(len(rows))
    values = np.empty((len(rows), len(header) - 1))
    for index, (line, row) in enumerate(rows):
        if len(row) != len(header):
            raise FrameError(
                f"{path}: line {line}: {len(row)} fields, the header has {len(header)}"
            )
        try:
            times[index] = parse_time(row[0])
        except FrameError as error:
            raise FrameError(f"{path}: line {line}, column {header[0]!r}: {error}") from None
        values[index] = [
            _number(path, Cell(line, column), text)
            for column, text in zip(header[1:], row[1:], strict=True)
        ]
    frame = pd.DataFrame(values, index=pd.Index(times, name="timestamp"), columns=header[1:])
    frame = frame[~frame.index.duplicated(keep="last")]
    return frame.sort_index()


def read_edges(path: Path) -> list[tuple[str, str]]:
    """Read a CSV with the columns ``source`` and ``target``.

    Raises:
        FrameError: naming the file and the line.
    """
    header, rows = _read_rows(path)
    names = [name.strip().lower() for name in header]
    if "source" not in names or "target" not in names:
        raise FrameError(f"{path}: line 1: needs the columns source and target, has {header}")
    source, target = names.index("source"), names.index("target")
    edges = []
    for line, row in rows:
        if len(row) <= max(source, target) or not row[source].strip() or not row[target].strip():
            raise FrameError(f"{path}: line {line}: needs a source and a target")
        edges.append((row[source].strip(), row[target].strip()))
    return edges


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            rows = [(reader.line_num, row) for row in reader if row]
            end = reader.line_num
    except OSError as error:
        raise FrameError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FrameError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise FrameError(f"{path}: is not valid CSV: {error}") from error
    if not header:
        raise FrameError(f"{path}: is empty ({end} lines)")
    return [name.strip() for name in header], rows


def _number(path: Path, cell: Cell, text: str) -> float:
    stripped = text.strip()
    if stripped.lower() in _MISSING:
        return math.nan
    try:
        number = float(stripped)
    except ValueError:
        raise FrameError(
            f"{path}: line {cell.line}, column {cell.column!r}: {text!r} is not a number; leave the "
            "cell empty where a value is missing"
        ) from None
    return number if math.isfinite(number) else math.nan
