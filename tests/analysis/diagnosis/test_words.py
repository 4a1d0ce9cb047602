from __future__ import annotations

import pytest

from analysis.diagnosis.words import clock_words, number_words, range_words, value_words


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (31, "requests", "31 requests"),
        (0.041, "seconds", "41 ms"),
        (4.25, "seconds", "4.25 seconds"),
        (0.373, "ratio", "37.3 %"),
        (2147483648, "bytes", "2.0 GiB"),
        (1048576, "bytes/second", "1.0 MiB/second"),
        (0, "bool", "no"),
        (1, "bool", "yes"),
        (4, "state", "stalled"),
        (99, "state", "99"),
        (79, "code", "79"),
        (float("nan"), "seconds", "not a number"),
        (float("inf"), "state", "not a number"),
    ],
)
def test_values(value: float, unit: str, words: str) -> None:
    assert value_words(value, unit) == words


@pytest.mark.parametrize(
    ("low", "high", "expected", "unit", "words"),
    [
        (0, 4, 1, "requests", "normally 0 to 4 requests"),
        (0.2, 1.5, 0.4, "seconds", "normally 200 ms to 1.50 seconds"),
        (1, 1, 1, "bool", "normally yes"),
        (None, None, 3, "celsius", "normally about 3 celsius"),
        (None, None, None, "celsius", ""),
    ],
)
def test_ranges(
    low: float | None, high: float | None, expected: float | None, unit: str, words: str
) -> None:
    assert range_words(low, high, expected, unit) == words


def test_clock_and_numbers() -> None:
    assert clock_words(1795230727) == "03:12:07"
    assert [number_words(n) for n in (0.0312, 4.2, 31.4, 1250.4)] == [
        "0.031",
        "4.20",
        "31.4",
        "1,250",
    ]
