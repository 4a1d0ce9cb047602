from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from analysis.detection.wall_clock import WallClock
from analysis.detection.zones import known_zone

BERLIN = ZoneInfo("Europe/Berlin")


def epoch(*when: int) -> float:
    return datetime(*when, tzinfo=BERLIN).timestamp()


def test_the_clock_on_the_wall_changes_with_daylight_saving() -> None:
    clock = WallClock("Europe/Berlin")
    before, after = epoch(2026, 3, 28, 9), epoch(2026, 3, 30, 9)
    assert (after - before) / 3600 == 47  # a day of 23 hours lies between
    assert clock.offset(before) == 3600
    assert clock.offset(after) == 7200
    local = clock.local(np.array([before, after]))
    assert (local % 86_400 / 3600).tolist() == [9.0, 9.0]


def test_many_times_are_the_same_as_each_alone() -> None:
    clock = WallClock("America/New_York")
    times = np.linspace(epoch(2026, 10, 25), epoch(2026, 11, 8), 4001)
    alone = [time + clock.offset(float(time)) for time in times]
    np.testing.assert_array_equal(clock.local(times), alone)
    assert clock.local(np.empty(0)).size == 0


def test_zones_need_not_be_whole_hours() -> None:
    assert WallClock("Asia/Kathmandu").offset(1.7e9) == 5.75 * 3600
    assert WallClock().offset(1.7e9) == 0.0


def test_a_zone_that_is_none_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="Europe/Atlantis"):
        known_zone("Europe/Atlantis")
