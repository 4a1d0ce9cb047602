from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reporting.reports import words


@pytest.mark.parametrize(
    ("value", "unit", "says"),
    [
        (None, "seconds", "n/a"),
        (float("nan"), "watts", "n/a"),
        (0.0, "seconds", "0 s"),
        (0.00042, "seconds", "420 µs"),
        (0.252, "seconds", "252 ms"),
        (8.2, "seconds", "8.2 s"),
        (630.0, "seconds", "10.5 min"),
        (9000.0, "seconds", "2.5 h"),
        (3 * 2**30, "bytes", "3 GiB"),
        (1536.0, "bytes/second", "1.5 KiB/s"),
        (91.0, "celsius", "91 °C"),
        (34.0, "requests", "34 requests"),
        (1.0, "bool", "1"),
        (186_739.0, "", "186,739"),
        (8_560_000.0, "", "8.56 M"),
        (0.0042, "watts", "0.0042 W"),
        (-12.5, "celsius", "-12.5 °C"),
    ],
)
def test_quantities(value: float | None, unit: str, says: str) -> None:
    assert words.quantity(value, unit) == says


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.5, "50 %"),
        (0.986, "98.6 %"),
        (0.9987, "99.87 %"),
        (0.99987, "99.987 %"),
        (0.9999996, "> 99.999 %"),
        (0.000001, "< 0.001 %"),
        (None, "n/a"),
    ],
)
def test_a_share_is_never_rounded_to_perfect(value: float | None, says: str) -> None:
    assert words.share(value) == says


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["seconds", "ratio", ""]))
def test_every_number_can_be_said(value: float, unit: str) -> None:
    assert words.quantity(value, unit)


def test_times_are_in_the_zone_that_was_asked_for() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert words.moment(1_763_600_400.0, berlin) == "Thu 20 Nov 2025 02:00:00"
    assert words.day_time(1_763_600_400.0, berlin) == "20 Nov 02:00"
    assert words.clock_time(None, berlin) == "n/a"


@pytest.mark.parametrize(
    ("signal", "says"),
    [
        ("llm_error_ratio", "LLM error ratio"),
        ("gpu_ecc_uncorrectable_total", "GPU ECC uncorrectable"),
        ("engine_step_age_seconds", "Engine step age"),
        ("", ""),
    ],
)
def test_signals_in_words(signal: str, says: str) -> None:
    assert words.signal_words(signal) == says
