"""Prometheus exposition text and OpenMetrics, read into families.

Series names and labels are parsed by ``prometheus_client``; since a target repeats nearly all of its
series in every scrape, a parser keeps what it has parsed and a repeated scrape costs only the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

DEFAULT_MAX_BYTES = 8 * 1024 * 1024

# NVIDIA's blank values: 0x7ffffffffffffff0 and its neighbours mean "not supported", "not found", "no
# permission" (dcgm_fields.h, DCGM_INT64_BLANK). As a double they all read 9223372036854775808.
BLANK_FROM = 9.223372036854775e18
# The 32-bit and floating-point blanks of the same header (DCGM_INT32_BLANK.., DCGM_FP64_BLANK..) are
# numbers that another exporter may mean, so they are blanks only from DCGM.
_DCGM_BLANK_SPANS = ((2147483632.0, 2147483647.0), (140737488355328.0, 140737488355343.0))
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

_MAX_CACHED_SERIES = 50_000
_SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created", "_info")

# A series is a name, or labels, or both; labels may hold braces, spaces and `#` inside their quotes.
_LINE = re.compile(
    r"""(?P<series>[^\s{#]*+\s*+(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*+")*+\})?+)
        \s*+(?P<value>[^\s#]++)
        (?:[ \t]++(?P<time>[^\s#]++))?+
        \s*+(?P<exemplar>\#.*)?$""",
    re.VERBOSE,
)


class ExpositionError(ValueError):
    """The text is not exposition text; the message names the line."""


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


@dataclass(frozen=True, slots=True)
class Exposition:
    """A whole scrape, by family name as declared (a counter's family may end in ``_total``)."""

    families: Mapping[str, Family]
    left_out: Mapping[str, int]
    """Names whose value was NaN, infinite or a blank sentinel, and how often; never read as zero."""

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
        self._max_bytes = max_bytes
        self._series: dict[str, tuple[str, Mapping[str, str]]] = {}

    def parse(self, text: str) -> Exposition:
        """Read one scrape.

        Raises:
            ExpositionError: naming the first line that cannot be read, or the size.
        """
        if len(text) > self._max_bytes:
            raise ExpositionError(
                f"the exposition is {len(text)} bytes long, more than the limit of {self._max_bytes}"
            )
        if len(self._series) > _MAX_CACHED_SERIES:
            # A target that invents label values without end would otherwise grow this for ever.
            self._series.clear()
        families: dict[str, Family] = {}
        left_out: dict[str, int] = {}
        open_metrics = text.rstrip().endswith("# EOF")
        for number, line in enumerate(text.split("\n"), start=1):
            stripped = line.strip()
            if not stripped:
                continue
            if stripped[0] == "#":
                _read_comment(stripped, families)
                continue
            sample = self._sample(stripped, number, open_metrics=open_metrics)
            if not is_present(sample.name, sample.value):
                left_out[sample.name] = left_out.get(sample.name, 0) + 1
                continue
            _family_of(sample.name, families).samples.append(sample)
        present = {name: family for name, family in families.items() if family.samples}
        return Exposition(MappingProxyType(present), MappingProxyType(left_out))

    def _sample(self, line: str, number: int, *, open_metrics: bool) -> RawSample:
        match = _LINE.match(line)
        if match is None or not match["series"]:
            raise ExpositionError(f"line {number}: not a sample: {line[:120]!r}")
        series = match["series"]
        known = self._series.get(series)
        if known is None:
            known = self._series[series] = _parse_series(series, number)
        try:
            value = float(match["value"])
            stamp = None if match["time"] is None else float(match["time"])
        except ValueError as error:
            raise ExpositionError(f"line {number}: {error} in {line[:120]!r}") from error
        if stamp is not None and not open_metrics:
            stamp /= 1000  # the classic format counts milliseconds, OpenMetrics seconds
        return RawSample(*known, value, stamp)


def parse_exposition(text: str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Exposition:
    """Read one text once; a target that is read again deserves its own :class:`ExpositionParser`.

    Raises:
        ExpositionError: naming the first line that cannot be read, or the size.
    """
    return ExpositionParser(max_bytes=max_bytes).parse(text)


def is_present(name: str, value: float) -> bool:
    """Say whether a metric's value is a measurement, and not NaN, infinite or a blank sentinel."""
    if not math.isfinite(value) or value >= BLANK_FROM:
        return False
    return not (
        name.startswith("DCGM_") and any(low <= value <= high for low, high in _DCGM_BLANK_SPANS)
    )


def _parse_series(series: str, number: int) -> tuple[str, Mapping[str, str]]:
    try:
        (family,) = text_string_to_metric_families(f"{series} 0\n")
        (sample,) = family.samples
    except (ValueError, KeyError, IndexError) as error:
        raise ExpositionError(f"line {number}: {error} in {series[:120]!r}") from error
    # The library renames what it takes for a counter; the name on the line is the one that counts.
    name = series.partition("{")[0].strip() or sample.name
    if series[0] != "{" and not _NAME.fullmatch(name):
        raise ExpositionError(f"line {number}: {name[:120]!r} is not a metric name")
    return name, MappingProxyType(dict(sample.labels))


def _read_comment(line: str, families: dict[str, Family]) -> None:
    parts = line[1:].strip().split(None, 2)
    if len(parts) < 3 or parts[0] not in {"TYPE", "HELP"}:
        return
    name = parts[1].strip('"')
    family = families.setdefault(name, Family(name))
    if parts[0] == "TYPE":
        family.kind = parts[2].strip()
    else:
        family.help = parts[2]


def _family_of(name: str, families: dict[str, Family]) -> Family:
    family = families.get(name)
    if family is None:
        # `x_total` belongs to the family `x` in OpenMetrics, and `x_bucket` to the histogram `x`.
        family = families.get(stem(name))
    if family is None:
        family = families[name] = Family(name)
    return family


def stem(name: str) -> str:
    """Return a sample's name without the suffix that its place in a family gives it."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name
