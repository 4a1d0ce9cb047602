"""The lines of exposition text, read into numbers by series.

A target repeats nearly all of its series in every scrape. A table gives each series a place once; after
that a line costs one look-up and one number. What a target may make a table hold is bounded, and who
goes beyond is named.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Collection as AnyOf
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from collectors.exposition_lines import (
    DCGM_BLANK_FROM,
    LINE,
    NAME,
    ExpositionError,
    is_present,
    number_of,
    parse_labels,
    parse_quoted,
    stem,
    without_end,
)

DEFAULT_MAX_BYTES = 8 * 1024 * 1024
DEFAULT_MAX_SERIES = 50_000
DEFAULT_MAX_SERIES_PER_NAME = 10_000
_MAX_LINE = 32 * 1024
_MAX_LABELS = 64
_MAX_LABEL_SETS = 4096

ABSENT = math.nan
"""Stands in a row of values for a series that this scrape does not have. Compare with ``!=`` itself."""


class Series(NamedTuple):
    """One series of a target."""

    name: str
    labels: Mapping[str, str]
    from_zero: bool = False
    """The target had others of this name before, so that this one, if it counts, began at zero."""


@dataclass(slots=True)
class Declared:
    """What the comments of a target say about a metric."""

    kind: str = "unknown"
    help: str = ""
    unit: str = ""


@dataclass(slots=True)
class Row:
    """The numbers of one scrape."""

    values: list[float]
    """By place in the table; :data:`ABSENT` where this scrape has none, or none that measures."""
    left_out: Mapping[str, int]
    """Names whose value was NaN, infinite or a blank sentinel, and how often; never read as zero."""
    lines: int
    """Lines that hold a sample."""
    repeated: int = 0
    """Lines whose series stood before in the same scrape; the last one counts."""
    passed: int = 0
    """Lines of names that the table was told to pass over, or that are too many."""
    offenders: Sequence[str] = ()
    """Who went beyond a limit, in words."""
    times: Mapping[int, float] = field(default_factory=dict)
    """Time stamps that the target gave, in seconds, by place."""


class _TooManySeriesError(Exception):
    """The table is full."""


class _TooManyLabelsError(Exception):
    """A series has more labels than any that is meant well."""


class SeriesTable:
    """Reads the scrapes of one target. Not thread-safe; give each target its own.

    Args:
        wanted: names to keep series of; lines of others are passed over once a first line of theirs was
            read well. None keeps all.
        max_bytes: a longer text is refused, so that a broken target cannot fill the memory.
        max_series: a scrape with more series than this is refused.
        max_series_per_name: more series of one name than this are left out and their name is told.
    """

    def __init__(
        self,
        *,
        wanted: AnyOf[str] | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_series: int = DEFAULT_MAX_SERIES,
        max_series_per_name: int = DEFAULT_MAX_SERIES_PER_NAME,
    ) -> None:
        self._wanted = wanted
        self._max_bytes = max_bytes
        self._max_series = max_series
        self._max_series_per_name = max_series_per_name
        self.declared: dict[str, Declared] = {}
        self.series: list[Series] = []
        self.generation = 0
        """Grows when places are given anew."""
        self.passed_names: dict[str, None] = {}
        self._comments: set[int] = set()
        self._types: dict[str, int] = {}
        # By the hash of the text before the value: the texts themselves are most of what a table would
        # hold, and among some thousand series two 64-bit hashes do not meet.
        self._places: dict[int, int] = {}
        self._label_sets: dict[str, Mapping[str, str]] = {}
        self._by_name: Counter[str] = Counter()
        self._known_names: set[str] = set()

    def read(self, text: str, *, open_metrics: bool | None = None) -> Row:
        """Read one scrape.

        Args:
            text: the whole answer.
            open_metrics: whether it is OpenMetrics, whose times are seconds and whose last line is
                ``# EOF``; None looks for that line.

        Raises:
            ExpositionError: naming the first line that cannot be read, the size, or who is too many.
        """
        if len(text) > self._max_bytes:
            raise ExpositionError(
                f"the exposition is {len(text)} bytes long, more than the limit of {self._max_bytes}"
            )
        text, open_metrics = without_end(text, open_metrics)
        try:
            row = self._read(text, open_metrics=open_metrics)
        except _TooManySeriesError:
            # Most may be series of the past: look at those of this scrape alone.
            self._forget()
            try:
                row = self._read(text, open_metrics=open_metrics)
            except _TooManySeriesError:
                offenders = self._offenders(self._by_name.most_common(3))
                self._forget()
                raise ExpositionError(
                    f"more than {self._max_series} series; most are {'; '.join(offenders)}"
                ) from None
        self._known_names.update(self.declared, self._by_name)
        return row

    def _forget(self) -> None:
        self.series = []
        self._places.clear()
        self._label_sets.clear()
        self._by_name.clear()
        self._comments.clear()
        self._types.clear()
        self.declared.clear()
        self.passed_names.clear()
        self._known_names.clear()
        self.generation += 1

    def _read(self, text: str, *, open_metrics: bool) -> Row:
        reading = _Reading(self, open_metrics)
        values = reading.values
        places = self._places
        number = 0
        fast = 0
        for line in text.split("\n"):
            number += 1
            head, _, tail = line.rpartition(" ")
            place = places.get(hash(head))
            if place is None or "_" in tail:
                reading.line(line, number)
                continue
            try:
                value = float(tail)
            except ValueError:
                reading.line(line, number)
                continue
            fast += 1
            if -math.inf < value < DCGM_BLANK_FROM:
                values[place] = value
            else:
                reading.put(place, value)
        return reading.row(fast)

    def place_of(self, line: str, number: int, match: re.Match[str]) -> int | None:
        """Return the place of a line's series, a new one where it has none; None passes over it."""
        text = match["series"].rstrip()
        place = self._places.get(hash(text))
        if place is not None:
            return place
        name = text.partition("{")[0].rstrip()
        if name and self._by_name[name] >= self._max_series_per_name:
            return None
        name, labels = self._parse(text, name, number)
        if self._wanted is not None and name not in self._wanted:
            self.passed_names[name] = None
            return None
        if len(self.series) >= self._max_series:
            raise _TooManySeriesError
        place = len(self.series)
        known = name in self._known_names or stem(name) in self._known_names
        self.series.append(Series(sys.intern(name), labels, known))
        self._by_name[name] += 1
        self._places[hash(text)] = place
        head = line.rpartition(" ")[0]
        if head != text and head.strip() == text:
            self._places[hash(head)] = place
        return place

    def comment(self, line: str) -> None:
        """Take a comment: the type, the unit or the help of a metric."""
        if hash(line) in self._comments:
            return
        parts = line[1:].strip().split(None, 2)
        if len(parts) < 2 or parts[0] not in {"TYPE", "HELP", "UNIT"}:
            return
        if len(self.declared) >= self._max_series:
            return
        name, rest = parts[1].strip('"'), (parts[2].strip() if len(parts) > 2 else "")
        declared = self.declared.setdefault(name, Declared())
        if parts[0] == "TYPE":
            # The line of before is forgotten, so that a target may say it again.
            self._comments.discard(self._types.get(name, 0))
            self._types[name] = hash(line)
            declared.kind = sys.intern(rest)
        elif parts[0] == "UNIT":
            declared.unit = rest
        elif self._wanted is None:
            declared.help = rest
        self._comments.add(hash(line))

    def is_passed(self, name: str) -> bool:
        """Say whether lines of a name need not be looked at."""
        return name in self.passed_names or (
            self._by_name.get(name, 0) >= self._max_series_per_name
        )

    def too_many(self, names: Iterable[str]) -> Sequence[str]:
        """Say which of these names went beyond the limit for one name, and by which label."""
        return self._offenders(
            [(name, self._by_name[name]) for name in names if name not in self.passed_names]
        )

    def _offenders(self, names: Iterable[tuple[str, int]]) -> list[str]:
        found = []
        for name, count in names:
            widest = _widest_label([one.labels for one in self.series if one.name == name])
            by = f" (its label {widest[0]!r} has {widest[1]} values)" if widest else ""
            found.append(f"{name[:200]} with {count} series or more{by}")
        return found

    def _parse(self, text: str, name: str, number: int) -> tuple[str, Mapping[str, str]]:
        if not name:
            return parse_quoted(text, number)
        if not NAME.fullmatch(name):
            raise ExpositionError(f"line {number}: {name[:120]!r} is not a metric name")
        inside = text[text.find("{") + 1 : -1].strip() if text[-1] == "}" else ""
        labels = self._label_sets.get(inside)
        if labels is None:
            labels = parse_labels(inside)
            if labels is None:
                return name, parse_quoted(text, number)[1]
            if len(labels) > _MAX_LABELS:
                raise _TooManyLabelsError(f"{name[:200]} has {len(labels)} labels")
            # GPUs and engines give dozens of metrics with the same labels each.
            if len(self._label_sets) < _MAX_LABEL_SETS:
                self._label_sets[inside] = labels
        return name, labels


class _Reading:
    """One pass over one text: all but the commonest lines."""

    def __init__(self, table: SeriesTable, open_metrics: bool) -> None:
        self._table = table
        self._open_metrics = open_metrics
        self.values = [ABSENT] * len(table.series)
        self._left_out: dict[str, int] = {}
        self._times: dict[int, float] = {}
        self._too_many: set[str] = set()
        self._bombs: set[str] = set()
        self._lines = 0
        self._passed = 0

    def line(self, line: str, number: int) -> None:
        stripped = line.strip()
        if not stripped:
            return
        if stripped[0] == "#":
            self._table.comment(stripped)
            return
        self._lines += 1
        name = stripped.partition("{")[0].split(None, 1)[0] if stripped[0] != "{" else ""
        if name in self._table.passed_names:
            self._passed += 1
            return
        if len(stripped) > _MAX_LINE:
            self._bombs.add(f"{name[:200]} has lines longer than {_MAX_LINE} characters")
            self._passed += 1
            return
        match = LINE.match(stripped)
        if match is None or not match["series"]:
            raise ExpositionError(f"line {number}: not a sample: {stripped[:120]!r}")
        value, stamp = self._numbers(match, stripped, number)
        try:
            place = self._table.place_of(line.rstrip(), number, match)
        except _TooManyLabelsError as error:
            self._bombs.add(str(error))
            self._passed += 1
            return
        if place is None:
            self._passed += 1
            if self._table.is_passed(name):
                self._too_many.add(name)
            return
        if place == len(self.values):
            self.values.append(ABSENT)
        self.put(place, value)
        if stamp is not None:
            self._times[place] = stamp

    def _numbers(self, match: re.Match[str], line: str, number: int) -> tuple[float, float | None]:
        try:
            value = number_of(match["value"])
            stamp = None if match["time"] is None else number_of(match["time"])
        except ValueError as error:
            raise ExpositionError(f"line {number}: {error} in {line[:120]!r}") from error
        if stamp is not None and not self._open_metrics:
            stamp /= 1000  # the classic format counts milliseconds, OpenMetrics seconds
        return value, stamp

    def put(self, place: int, value: float) -> None:
        name = self._table.series[place].name
        if is_present(name, value):
            self.values[place] = value
            return
        self._left_out[name] = self._left_out.get(name, 0) + 1

    def row(self, fast: int) -> Row:
        lines = self._lines + fast
        present = len(self.values) - self.values.count(ABSENT)
        offenders = [*self._table.too_many(sorted(self._too_many)), *sorted(self._bombs)[:20]]
        left_out = sum(self._left_out.values())
        return Row(
            values=self.values,
            left_out=self._left_out,
            lines=lines,
            repeated=max(0, lines - self._passed - present - left_out),
            passed=self._passed,
            offenders=offenders,
            times=self._times,
        )


def _widest_label(label_sets: Sequence[Mapping[str, str]]) -> tuple[str, int] | None:
    values: dict[str, set[str]] = {}
    for labels in label_sets:
        for label, value in labels.items():
            values.setdefault(label, set()).add(value)
    counts = {label: len(found) for label, found in values.items()}
    return max(counts.items(), key=lambda item: item[1]) if counts else None
