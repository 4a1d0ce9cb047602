"""Prometheus exposition text and OpenMetrics, read into families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from collectors.exposition_lines import ExpositionError, is_present, stem
from collectors.series_table import ABSENT, DEFAULT_MAX_BYTES, Row, SeriesTable

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Exposition",
    "ExpositionError",
    "ExpositionParser",
    "Family",
    "RawSample",
    "is_present",
    "parse_exposition",
    "stem",
]


class RawSample(NamedTuple):
    """One number as the target gave it."""

    name: str
    labels: Mapping[str, str]
    value: float
    time_seconds: float | None = None


@dataclass(slots=True)
class Family:
    """A metric with its samples; ``kind`` is Prometheus' type, ``unknown`` where none is declared."""

    name: str
    kind: str = "unknown"
    help: str = ""
    samples: list[RawSample] = field(default_factory=list)
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Exposition:
    """A whole scrape, by family name as declared (a counter's family may end in ``_total``)."""

    families: Mapping[str, Family]
    left_out: Mapping[str, int]
    """Names whose value was NaN, infinite or a blank sentinel, and how often; never read as zero."""
    lines: int = 0
    """Lines that held a sample."""
    repeated: int = 0
    """Lines whose series stood before; the last one counts."""
    offenders: tuple[str, ...] = ()
    """Who went beyond a limit and was left out, in words."""

    def samples(self) -> Iterator[RawSample]:
        """Yield every sample of every family."""
        for family in self.families.values():
            yield from family.samples

    def named(self, name: str) -> list[RawSample]:
        """Return the samples whose own name (with ``_bucket``, ``_total``...) is ``name``."""
        for candidate in (name, stem(name)):
            family = self.families.get(candidate)
            if family is not None:
                return [sample for sample in family.samples if sample.name == name]
        return []


class ExpositionParser:
    """Parses the scrapes of one target. Not thread-safe; give each target its own.

    Args:
        max_bytes: a longer text is refused, so that a broken target cannot fill the memory.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._table = SeriesTable(max_bytes=max_bytes)

    def parse(self, text: str, *, open_metrics: bool | None = None) -> Exposition:
        """Read one scrape.

        Args:
            text: the whole answer.
            open_metrics: whether it is OpenMetrics; None looks for its last line.

        Raises:
            ExpositionError: naming the first line that cannot be read, or the size.
        """
        row = self._table.read(text, open_metrics=open_metrics)
        families: dict[str, Family] = {
            name: Family(name, declared.kind, declared.help, [], declared.unit)
            for name, declared in self._table.declared.items()
        }
        for sample in samples_of(self._table, row):
            _family_of(sample.name, families).samples.append(sample)
        present = {name: family for name, family in families.items() if family.samples}
        return Exposition(
            MappingProxyType(present),
            MappingProxyType(dict(row.left_out)),
            row.lines,
            row.repeated,
            tuple(row.offenders),
        )


def parse_exposition(
    text: str, *, max_bytes: int = DEFAULT_MAX_BYTES, open_metrics: bool | None = None
) -> Exposition:
    """Read one text once; a target that is read again deserves its own :class:`ExpositionParser`.

    Raises:
        ExpositionError: naming the first line that cannot be read, or the size.
    """
    return ExpositionParser(max_bytes=max_bytes).parse(text, open_metrics=open_metrics)


def samples_of(table: SeriesTable, row: Row) -> Iterator[RawSample]:
    """Yield what a scrape holds, series by series."""
    for place, value in enumerate(row.values):
        if value is not ABSENT:
            series = table.series[place]
            yield RawSample(series.name, series.labels, value, row.times.get(place))


def _family_of(name: str, families: dict[str, Family]) -> Family:
    family = families.get(name)
    if family is None:
        # `x_total` belongs to the family `x` in OpenMetrics, and `x_bucket` to the histogram `x`.
        family = families.get(stem(name))
    if family is None:
        family = families[name] = Family(name)
    return family
