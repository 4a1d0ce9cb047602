from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.signals import catalogue
from dashboard import words


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.82, "seconds", "820 ms"),
        (0.0042, "seconds", "4.2 ms"),
        (3.14159, "seconds", "3.14 s"),
        (0.031, "ratio", "3.1 %"),
        (18.4 * 2**30, "bytes", "18.4 GiB"),
        (89.4, "celsius", "89 °C"),
        (12_345.0, "tokens/second", "12.3k tok/s"),
        (0x20, "bitmask", "0x20"),
        (7.0, "furlongs", "7 furlongs"),
        (None, "seconds", words.ABSENT),
        (float("nan"), "seconds", words.ABSENT),
    ],
)
def test_quantities_read_as_people_say_them(value: float | None, unit: str, expected: str) -> None:
    assert words.quantity(value, unit) == expected


@settings(deadline=None)
@given(
    value=st.none() | st.floats(allow_nan=True, allow_infinity=True),
    unit=st.sampled_from(sorted({signal.unit for signal in catalogue().values()})),
)
def test_every_value_of_every_unit_has_words(value: float | None, unit: str) -> None:
    assert words.quantity(value, unit)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (370, "6 min 10 s"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations_take_at_most_two_units(seconds: float, expected: str) -> None:
    assert words.duration(seconds) == expected


def test_a_distance_has_a_sign() -> None:
    assert (words.offset(12), words.offset(-180)) == ("+12 s", "-3 min")


def test_clock_times_name_the_day_when_it_is_another() -> None:
    zone = ZoneInfo("Europe/Berlin")
    at = 1_790_000_000.0
    assert words.clock_time(at, zone, now_seconds=at + 60) == "16:13:20"
    assert words.clock_time(at, zone, now_seconds=at + 86400) == "21 Sep 16:13"
    assert words.moment(at, zone) == "2026-09-21 16:13:20 CEST"


@pytest.mark.parametrize(
    ("entity", "expected"),
    [
        ("host/box1/gpu/0", "box1 / gpu 0"),
        ("service/llm", "llm"),
        ("fleet", "fleet"),
        ("odd", "odd"),
    ],
)
def test_entities_are_short(entity: str, expected: str) -> None:
    assert words.short_entity(entity) == expected


def test_identifiers_become_phrases() -> None:
    assert words.phrase("gpu_overheating") == "GPU overheating"
    assert words.phrase("restart-engine") == "restart engine"


@settings(deadline=None)
@given(st.text(), st.integers(3, 40))
def test_a_text_that_is_too_long_keeps_its_ends(text: str, length: int) -> None:
    fitted = words.fit(text, length)
    assert len(fitted) <= length
    assert fitted == text or (fitted[0], fitted[-1]) == (text[0], text[-1])
