from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.detection.limits import Limits, bundled_limits, parse_limits
from collectors.contract import SeriesKey
from collectors.signals import catalogue


def score_of(signal: str, *values: float) -> float:
    limits = Limits()
    limits.grow([SeriesKey("x/y", signal)])
    for tick, value in enumerate(values):
        score = limits.score(float(tick), np.array([value]), np.array([True])).score[0]
    return float(score)


def test_every_rule_is_of_a_signal_in_the_catalogue() -> None:
    assert set(bundled_limits()) <= set(catalogue())
    assert all(rule.source for rule in bundled_limits().values())


@pytest.mark.parametrize(
    ("signal", "good", "bad"),
    [
        ("engine_up", 1, 0),
        ("health_canary_ok", 1, 0),
        ("gpu_available", 1, 0),
        ("canary_output_match", 1, 0.5),
        ("engine_step_age_seconds", 0.5, 9),
        ("gpu_temperature_margin_celsius", 12, 0),
        ("gpu_xid", 0, 79),
        ("gpu_throttle_thermal", 0, 1),
        *[("gpu_state", 0, state) for state in range(1, 7)],
        *[("gpu_driver_state", 7, state) for state in range(1, 7)],
        ("gpu_driver_library_mismatch", 0, 1),
        ("gpu_recovery_action", 0, 3),
        ("gpu_row_remap_failed", 0, 1),
        ("gpu_retired_pages_pending", 0, 1),
        ("gpu_processes_vanished", 0, 2),
        ("gpu_pcie_link_width_ratio", 1, 0.5),
        ("host_disk_used_ratio", 0.95, 0.97),
        ("engine_invalid_outputs", 0, 1),
        ("scrape_success", 1, 0),
    ],
)
def test_a_limit_separates_good_from_bad(signal: str, good: float, bad: float) -> None:
    assert score_of(signal, good) == 0
    assert score_of(signal, bad) > 1


def test_an_increase_is_told_from_a_value() -> None:
    assert np.isnan(score_of("host_oom_kills_total", 4))
    assert score_of("host_oom_kills_total", 4, 4) == 0
    assert score_of("host_oom_kills_total", 4, np.nan, 5) > 1


def test_a_signal_without_a_rule_and_a_missing_value_have_no_opinion() -> None:
    assert np.isnan(score_of("llm_slots", 4))
    assert np.isnan(score_of("engine_up", np.nan))


@settings(deadline=None)
@given(st.floats(min_value=-1e9, max_value=1e9))
def test_scores_are_bounded_and_above_one_only_beyond_the_limit(value: float) -> None:
    score = score_of("host_clock_offset_seconds", value)
    assert 0 <= score <= 10
    assert (score > 1) == (abs(value) > 1)


def test_a_fault_in_the_rules_names_its_place() -> None:
    with pytest.raises(ValueError, match=r"mine\.toml \[engine_up\].*above"):
        parse_limits('[engine_up]\nsource = "x"', origin="mine.toml")
    with pytest.raises(ValueError, match=r"\[engine_up\] minimum_values"):
        parse_limits('[engine_up]\nbelow = 1\nminimum_values = 0\nsource = "x"')
    with pytest.raises(ValueError, match=r"\[engine_up\] bellow"):
        parse_limits('[engine_up]\nbellow = 1\nbelow = 1\nsource = "x"')


def test_a_gpu_that_galen_itself_released_breaks_no_rule() -> None:
    assert score_of("gpu_state", 7) == 0
    assert score_of("gpu_driver_state", 7) == 0
