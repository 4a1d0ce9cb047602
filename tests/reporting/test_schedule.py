from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from analysis.journal import EventKind, Journal
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
from healing.ledger import Ledger
from reporting.reports.archive import ReportArchive
from reporting.schedule import ReportSchedule
from reporting.settings import Format, ReportingSettings

MakeSchedule = Callable[..., ReportSchedule]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteSeriesStore]:
    opened = SqliteSeriesStore(tmp_path / "series.sqlite")
    opened.write([Sample(at("2026-11-19T12:00"), "collector/a", "scrape_success", 1.0)])
    yield opened
    opened.close()


@pytest.fixture
def archive(tmp_path: Path) -> ReportArchive:
    return ReportArchive(tmp_path / "reports", formats=(Format.JSON,), keep_seconds=1e9)


@pytest.fixture
def make(journal: Journal, store: SqliteSeriesStore, archive: ReportArchive) -> MakeSchedule:
    def build(clock: Callable[[], float] = lambda: 0.0, **changes: object) -> ReportSchedule:
        settings = ReportingSettings.model_validate({"report_schedule": "0 6 * * *", **changes})
        return ReportSchedule(settings, journal, Ledger(journal), store, archive, clock=clock)

    return build


def begins(journal: Journal, when: str) -> None:
    journal.append(EventKind.STARTED, time_seconds=at(when), summary="started")


@pytest.mark.parametrize(
    ("schedule", "now", "until"),
    [
        ("0 6 * * *", "2026-11-20T06:00:00", "2026-11-20T06:00"),
        ("0 6 * * *", "2026-11-20T05:59:59", "2026-11-19T06:00"),
        ("*/15 * * * *", "2026-11-20T06:44:00", "2026-11-20T06:30"),
        ("0 8 * * mon", "2026-11-20T09:00:00", "2026-11-16T08:00"),
        ("0 0 1 1 *", "2026-11-20T09:00:00", "2026-01-01T00:00"),
        ("0 0 29 2 *", "2026-11-20T09:00:00", "2024-02-29T00:00"),
    ],
)
def test_the_newest_period_that_has_ended(
    make: MakeSchedule, schedule: str, now: str, until: str
) -> None:
    due = make(report_schedule=schedule).due(at(now))
    assert due == (at(until) - 86400.0, at(until))


def test_the_zone_moves_the_hour_over_the_change_of_clocks(make: MakeSchedule) -> None:
    schedule = make(timezone="Europe/Berlin")
    before, after = at("2026-10-24T12:00"), at("2026-10-26T12:00")
    first, second = schedule.due(before), schedule.due(after)
    assert first is not None
    assert second is not None
    assert first[1] == at("2026-10-24T06:00", "Europe/Berlin")
    assert second[1] - first[1] == 2 * 86400.0 + 3600.0
    assert schedule.next_seconds(after) == at("2026-10-27T06:00", "Europe/Berlin")


def test_a_report_is_written_once_and_the_journal_knows(
    make: MakeSchedule, journal: Journal, archive: ReportArchive
) -> None:
    begins(journal, "2026-11-19T10:00")
    schedule = make()
    entry = schedule.run_due(at("2026-11-20T06:00:01"))
    assert entry is not None
    assert schedule.run_due(at("2026-11-20T23:00")) is None
    assert archive.entries() == (entry,)
    (event,) = journal.events(kinds={EventKind.REPORT_WRITTEN})
    assert event.data["period"] == "20261119T060000Z--20261120T060000Z"
    assert (archive.directory / event.data["files"][0]).is_file()


def test_of_missed_periods_the_newest_is_made_up_for(
    make: MakeSchedule, journal: Journal, archive: ReportArchive
) -> None:
    begins(journal, "2026-11-10T10:00")
    make().run_due(at("2026-11-15T06:00"))
    make().run_due(at("2026-11-20T11:00"))  # asleep for five days
    assert [entry.until_seconds for entry in archive.entries()] == [
        at("2026-11-20T06:00"),
        at("2026-11-15T06:00"),
    ]


def test_there_is_no_report_about_the_time_before_the_first_start(
    make: MakeSchedule, journal: Journal
) -> None:
    begins(journal, "2026-11-20T10:00")
    assert make().run_due(at("2026-11-20T11:00")) is None
    assert make().run_due(at("2026-11-21T06:00")) is not None


def test_the_thread_writes_at_start_and_stops(
    make: MakeSchedule, journal: Journal, archive: ReportArchive
) -> None:
    begins(journal, "2026-11-19T10:00")
    written = threading.Event()
    write = archive.write

    def note(report: object) -> object:
        entry = write(report)  # type: ignore[arg-type]
        written.set()
        return entry

    archive.write = note  # type: ignore[method-assign,assignment]
    schedule = make(clock=lambda: at("2026-11-20T06:30"))
    schedule.start()
    try:
        assert written.wait(20)
    finally:
        schedule.stop()
    assert len(archive.entries()) == 1


def test_a_report_that_fails_is_told_once_and_tried_again(
    make: MakeSchedule, journal: Journal, archive: ReportArchive
) -> None:
    begins(journal, "2026-11-19T10:00")
    archive.directory.parent.mkdir(exist_ok=True)
    archive.directory.write_text("in the way", "utf-8")
    schedule = make(clock=lambda: at("2026-11-20T06:30"))
    schedule.look()
    schedule.look()
    (event,) = journal.events(kinds={EventKind.PART_FAILED})
    assert "report could not be written" in event.summary
    archive.directory.unlink()
    schedule.look()
    assert len(archive.entries()) == 1


def test_without_a_schedule_there_is_nothing_to_start(make: MakeSchedule) -> None:
    with pytest.raises(ValueError, match="not scheduled"):
        make(report_schedule=None)
