"""The grammar of one line of exposition text, and which of its numbers are measurements."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

# NVIDIA's blank values: 0x7ffffffffffffff0 and its neighbours mean "not supported", "not found", "no
# permission" (dcgm_fields.h, DCGM_INT64_BLANK). As a double they all read 9223372036854775808.
BLANK_FROM = 9.223372036854775e18
# The 32-bit and floating-point blanks of the same header (DCGM_INT32_BLANK.., DCGM_FP64_BLANK..) are
# numbers that another exporter may mean, so they are blanks only from DCGM.
_DCGM_BLANK_SPANS = ((2147483632.0, 2147483647.0), (140737488355328.0, 140737488355343.0))
DCGM_BLANK_FROM = _DCGM_BLANK_SPANS[0][0]

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*+)"\s*(?:,|$)')
_ESCAPE = re.compile(r'\\[\\n"]')
_ESCAPED = {r"\\": "\\", r"\n": "\n", r"\"": '"'}
# A series is a name, or labels, or both; labels may hold braces, spaces and `#` inside their quotes.
LINE = re.compile(
    r"""(?P<series>[^\s{#]*+\s*+(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*+")*+\})?+)
        \s*+(?P<value>[^\s#]++)
        (?:[ \t]++(?P<time>[^\s#]++))?+
        \s*+(?P<exemplar>\#.*)?$""",
    re.VERBOSE,
)
_SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created", "_info")


class ExpositionError(ValueError):
    """The text is not exposition text; the message names the line."""


def is_present(name: str, value: float) -> bool:
    """Say whether a metric's value is a measurement, and not NaN, infinite or a blank sentinel."""
    if not math.isfinite(value) or value >= BLANK_FROM:
        return False
    return not (
        name.startswith("DCGM_") and any(low <= value <= high for low, high in _DCGM_BLANK_SPANS)
    )


def stem(name: str) -> str:
    """Return a sample's name without the suffix that its place in a family gives it."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def number_of(text: str) -> float:
    """Read a value or a time.

    Raises:
        ValueError: when it is none.
    """
    if "_" in text:  # Python's own notation
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)


def without_end(text: str, open_metrics: bool | None) -> tuple[str, bool]:
    """Return a text without OpenMetrics' last line, and whether it is OpenMetrics.

    Raises:
        ExpositionError: when it should end so and does not, or goes on after that.
    """
    ended = text.rstrip().endswith("# EOF")
    if open_metrics and not ended:
        raise ExpositionError(
            f"line {text.count(chr(10)) + 1}: OpenMetrics without `# EOF`: the answer is not whole"
        )
    if not ended:
        return text, False
    body = text.rstrip().removesuffix("# EOF")
    if "\n# EOF\n" in f"\n{body}":
        line = f"\n{body}".partition("\n# EOF\n")[0].count("\n") + 2
        raise ExpositionError(f"line {line}: there is more after `# EOF`")
    return body, True if open_metrics is None else open_metrics


def parse_labels(inside: str) -> Mapping[str, str] | None:
    """Return the labels of a series, or None where they are not of the plain form."""
    labels: dict[str, str] = {}
    place = 0
    while place < len(inside):
        match = _LABEL.match(inside, place)
        if match is None or match[1] in labels:
            return None
        value = match[2]
        if "\\" in value:
            value = _ESCAPE.sub(lambda found: _ESCAPED[found[0]], value)
        labels[sys.intern(match[1])] = sys.intern(value)
        place = match.end()
    return MappingProxyType(labels)


def parse_quoted(text: str, number: int) -> tuple[str, Mapping[str, str]]:
    """Read what the plain form does not cover, such as names in quotes; the library knows all of it."""
    try:
        (family,) = text_string_to_metric_families(f"{text} 0\n")
        (sample,) = family.samples
    except (ValueError, KeyError, IndexError) as error:
        raise ExpositionError(f"line {number}: {error} in {text[:120]!r}") from error
    return sample.name, MappingProxyType(dict(sample.labels))
