from __future__ import annotations

import pytest

from analysis.diagnosis.words import (
    ahead_words,
    clock_words,
    number_words,
    range_words,
    shift_words,
    span_words,
    value_words,
)
from analysis.findings import Exhaustion, LevelShift


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


def test_lengths_of_time() -> None:
    spans = (40.0, 89.0, 720.0, 5600.0, 7560.0, 260_000.0)
    assert [span_words(each) for each in spans] == [
        "40 s",
        "89 s",
        "12 min",
        "1.6 h",
        "2.1 h",
        "3.0 days",
    ]


def test_what_runs_out_is_told_with_its_interval() -> None:
    ahead = Exhaustion(
        limit=1.0, per_second=1e-4, seconds=7560, soonest_seconds=6800, latest_seconds=8600
    )
    assert ahead_words(ahead, "ratio") == "at this rate 100 % in 2.1 h (1.9 h to 2.4 h)"
    open_end = ahead.model_copy(update={"latest_seconds": None})
    assert ahead_words(open_end, "ratio") == "at this rate 100 % in 2.1 h (1.9 h at the soonest)"
    sharp = ahead.model_copy(update={"soonest_seconds": 7550, "latest_seconds": 7570})
    assert ahead_words(sharp, "ratio") == "at this rate 100 % in 2.1 h"


def test_a_shift_of_level_is_told() -> None:
    shift = LevelShift(
        entity="service/llm",
        signal="llm_requests_per_second",
        unit="requests/second",
        at_seconds=1_000_000.0,
        before=20,
        after=90,
    )
    assert shift_words(shift) == "moved from 20 requests/second to 90 requests/second at 13:46:40"
