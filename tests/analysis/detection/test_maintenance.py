from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from analysis.detection.maintenance import Maintenance
from analysis.detection.settings import MaintenanceWindow
from collectors.contract import SeriesKey

GPU = SeriesKey("host/a/gpu/0", "gpu_temperature_celsius")
SERVICE = SeriesKey("service/llm", "llm_queue_depth")
KEYS = [GPU, SERVICE]


def _maintenance(**window) -> Maintenance:
    found = Maintenance([MaintenanceWindow(name="w", **window)])
    found.grow(KEYS)
    return found


def _at(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _open(maintenance: Maintenance, text: str) -> bool:
    return bool(maintenance.covered(_at(text), 2).all())


def test_a_window_of_cron_is_open_from_each_firing_for_its_duration():
    nightly = _maintenance(cron="30 2 * * *", duration_seconds=3600)
    times = {
        "2026-11-20T02:29:59": False,
        "2026-11-20T02:30:00": True,
        "2026-11-20T03:29:59": True,
        "2026-11-20T03:30:00": False,
        "2026-11-21T02:45:00": True,
    }
    assert {text: _open(nightly, text) for text in times} == times


def test_cron_is_meant_in_the_windows_time_zone_summer_and_winter():
    early = _maintenance(cron="0 6 * * *", duration_seconds=60, timezone="Europe/Berlin")
    assert _open(early, "2026-01-10T05:00:30+00:00")
    assert not _open(early, "2026-01-10T04:00:30+00:00")
    assert _open(early, "2026-07-10T04:00:30+00:00")
    assert not _open(early, "2026-07-10T05:00:30+00:00")


def test_overlapping_firings_leave_no_gap():
    always = _maintenance(cron="*/10 * * * *", duration_seconds=900)
    start = _at("2026-11-20T00:00:00")
    assert all(always.covered(start + 60 * minute + 1, 2).all() for minute in range(15, 200))


@given(st.lists(st.integers(0, 4 * 86400), min_size=1, max_size=40))
def test_a_clock_that_jumps_finds_the_same_answer(offsets):
    start = _at("2026-11-20T00:00:00")
    kept = _maintenance(cron="15 */7 * * *", duration_seconds=5400)
    for offset in offsets:
        fresh = _maintenance(cron="15 */7 * * *", duration_seconds=5400)
        assert np.array_equal(kept.covered(start + offset, 2), fresh.covered(start + offset, 2))


def test_a_window_of_one_start_and_end():
    once = _maintenance(
        start="2026-11-20T10:00:00", end="2026-11-20T11:00:00", timezone="Asia/Tokyo"
    )
    assert _open(once, "2026-11-20T01:30:00+00:00")
    assert not _open(once, "2026-11-20T10:30:00+00:00")


def test_only_series_that_match_are_covered_new_ones_too():
    gpus = _maintenance(cron="* * * * *", duration_seconds=61, entities=["host/a", "host/a/*"])
    now = _at("2026-11-20T10:00:30")
    assert gpus.covered(now, 2).tolist() == [True, False]
    gpus.grow([SeriesKey("host/a", "host_load1"), SeriesKey("host/b", "host_load1")])
    assert gpus.covered(now, 4).tolist() == [True, False, True, False]

    signals = _maintenance(cron="* * * * *", duration_seconds=61, signals=["llm_*"])
    assert signals.covered(now, 2).tolist() == [False, True]


ICS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//test//EN
BEGIN:VEVENT
UID:1
DTSTAMP:20260101T000000Z
DTSTART:20261102T090000Z
DTEND:20261102T100000Z
RRULE:FREQ=WEEKLY;COUNT=4
EXDATE:20261109T090000Z
SUMMARY:patching
END:VEVENT
BEGIN:VEVENT
UID:2
DTSTAMP:20260101T000000Z
DTSTART;VALUE=DATE:20261225
DTEND;VALUE=DATE:20261226
SUMMARY:holiday
END:VEVENT
END:VCALENDAR
"""


@pytest.fixture
def ics(tmp_path: Path) -> Path:
    path = tmp_path / "calendar.ics"
    path.write_text(ICS, encoding="utf-8", newline="\r\n")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-02T09:00:00", True),
        ("2026-11-02T09:59:59", True),
        ("2026-11-02T10:00:00", False),
        ("2026-11-09T09:30:00", False),  # taken out
        ("2026-11-16T09:30:00", True),
        ("2026-11-30T09:30:00", False),  # the series is over
        ("2026-12-25T00:00:00", True),
        ("2026-12-25T23:59:59", True),
        ("2026-12-26T00:00:00", False),
    ],
)
def test_a_window_of_a_calendar_is_open_during_its_events(ics, text, expected):
    assert _open(_maintenance(calendar=ics), text) is expected


def test_a_calendar_is_read_again_when_it_changes_and_a_bad_one_keeps_the_last(ics):
    calendar = _maintenance(calendar=ics)
    assert not _open(calendar, "2026-11-16T08:30:00")
    assert _open(calendar, "2026-11-02T09:10:00")
    ics.write_text("this is no calendar", encoding="utf-8")
    assert _open(calendar, "2026-11-02T09:12:00")
    ics.unlink()
    assert _open(calendar, "2026-11-02T09:14:00")
    ics.write_text(ICS.replace("20261102T09", "20261102T08"), encoding="utf-8")
    assert _open(calendar, "2026-11-16T08:30:00")


def test_a_calendar_that_is_not_there_yet_opens_nothing_and_stops_nobody(ics):
    later = _maintenance(calendar=ics.with_name("later.ics"))
    assert not _open(later, "2026-11-02T09:10:00")
    ics.rename(ics.with_name("later.ics"))
    assert _open(later, "2026-11-02T09:11:00")


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({}, "say when"),
        ({"cron": "0 1 * * *"}, "go together"),
        ({"cron": "61 1 * * *", "duration_seconds": 5}, "cron '61 1 \\* \\* \\*'"),
        ({"cron": "* * * * *", "duration_seconds": 5, "calendar": "x.ics"}, "say when"),
        ({"start": "2026-01-01T00:00:00"}, "go together"),
        ({"start": "2026-01-02T00:00:00", "end": "2026-01-01T00:00:00"}, "end must be after"),
        ({"calendar": "x.ics", "timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused_with_the_reason(window, message):
    with pytest.raises(ValidationError, match=message):
        MaintenanceWindow(name="w", **window)


def test_beginning_and_end_are_known():
    nightly = _maintenance(cron="0 2 * * *", duration_seconds=60)
    start = datetime(2026, 11, 20, 1, 59, 30, tzinfo=UTC)
    seen = []
    for seconds in (0, 30, 60, 120):
        nightly.covered((start + timedelta(seconds=seconds)).timestamp(), 2)
        seen.append(nightly.open_windows)
    assert seen == [(), ("w",), ("w",), ()]
