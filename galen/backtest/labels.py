"""Labelled faults from a file."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from analysis.detection.replaying.judging import LabelledFault
from galen.commands.context import parse_moment
from galen.errors import ConfigError


def load_faults(path: Path) -> list[LabelledFault]:
    """Read labelled faults: a CSV ``start,end`` with ``entity`` and ``signal`` where they are known.

    Raises:
        ConfigError: naming file, line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {"start", "end"} - set(rows.fieldnames or ())
            if missing:
                raise ConfigError(
                    f"{path}, line 1: there is no column {min(missing)!r}",
                    fix="The columns are start,end and, where known, entity,signal.",
                )
            return [_fault(path, rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error


def _fault(path: Path, line: int, row: dict[str, str | None]) -> LabelledFault:
    def moment(column: str) -> float:
        text = (row[column] or "").strip()
        return parse_moment(text, name=f"{path}, line {line}, column {column!r}")

    start, end = moment("start"), moment("end")
    if not (math.isfinite(start) and start <= end < math.inf):
        raise ConfigError(f"{path}, line {line}, column 'end': the end is before the start")
    about, signal = ((row.get(name) or "").strip() for name in ("entity", "signal"))
    return LabelledFault(start, end, [about] if about else (), [signal] if signal else ())
