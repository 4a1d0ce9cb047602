"""Writes reports by the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from analysis.journal import EventKind, Journal
from collectors.store.contract import SeriesReader
from reporting.reports.archive import ArchivedReport, ReportArchive
from reporting.reports.build import build_report
from reporting.reports.incidents import ActionLog
from reporting.settings import ReportingSettings

log = structlog.get_logger(__name__)

# What a sleeping machine, a clock that jumped or a full disk made us miss is looked for this often.
_CATCH_UP_SECONDS = 600
_LONGEST_LOOK_BACK = timedelta(days=8 * 366)  # 29 February comes every four years, or eight


class ReportSchedule:
    """Writes the report of the newest period that is due, once.

    A period ends when the schedule fires, and reaches back by the configured window. Periods that were
    missed are not made up for, but for the newest: a report about last week would come too late to
    help, and can be had from ``galen report``.

    Args:
        settings: with a schedule.
        journal: read for the report, and told of it.
        ledger: of actions.
        store: of series.
        archive: where reports go.
        clock: seconds since the epoch.

    Raises:
        ValueError: when the settings have no schedule.
    """

    def __init__(
        self,
        settings: ReportingSettings,
        journal: Journal,
        ledger: ActionLog,
        store: SeriesReader,
        archive: ReportArchive,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if settings.report_schedule is None:
            raise ValueError("reports are not scheduled: report_schedule is null")
        self._settings = settings
        self._journal = journal
        self._ledger = ledger
        self._store = store
        self._archive = archive
        self._clock = clock
        self._zone = ZoneInfo(settings.timezone)
        self._trigger = CronTrigger.from_crontab(settings.report_schedule, timezone=self._zone)
        self._scheduler: BackgroundScheduler | None = None
        self._lock = threading.Lock()
        self._failed_until: float | None = None

    def start(self) -> None:
        """Run in a thread of its own until :meth:`stop`."""
        if self._scheduler is not None:
            raise RuntimeError("the schedule has been started already")
        self._scheduler = BackgroundScheduler(timezone=self._zone)
        options = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler.add_job(self.look, self._trigger, id="report", **options)
        self._scheduler.add_job(
            self.look,
            "interval",
            seconds=_CATCH_UP_SECONDS,
            id="catch-up",
            next_run_time=datetime.fromtimestamp(self._clock(), self._zone),
            **options,
        )
        self._scheduler.start()

    def stop(self) -> None:
        """End the thread; a report that is being written is finished first."""
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=True)
            self._scheduler = None

    def next_seconds(self, now_seconds: float) -> float | None:
        """Return when the schedule fires next after a time."""
        now = datetime.fromtimestamp(now_seconds, self._zone)
        fires = self._trigger.get_next_fire_time(None, now + timedelta(microseconds=1))
        return None if fires is None else float(fires.timestamp())

    def due(self, now_seconds: float) -> tuple[float, float] | None:
        """Return the newest period that has ended, as its bounds; None before the first."""
        until = self._last_fire(now_seconds)
        return None if until is None else (until - self._settings.report_window_seconds, until)

    def run_due(self, now_seconds: float) -> ArchivedReport | None:
        """Write the report that is due, if it is not there; return its entry when it was written.

        A period that ended before Galen was first started has nothing to tell and is left out.
        """
        with self._lock:
            period = self.due(now_seconds)
            if period is None or self._archive.get(*period) is not None:
                return None
            if not self._journal.events(until_seconds=period[1], limit=1):
                return None
            return self._write(period)

    def _write(self, period: tuple[float, float]) -> ArchivedReport:
        report = build_report(
            self._journal,
            self._ledger,
            self._store,
            since_seconds=period[0],
            until_seconds=period[1],
            timezone=self._settings.timezone,
            clock=self._clock,
        )
        entry = self._archive.write(report)
        self._journal.append(
            EventKind.REPORT_WRITTEN,
            time_seconds=self._clock(),
            summary=f"Report written: {report.verdict}",
            data={
                "period": entry.period,
                "directory": str(self._archive.directory),
                "files": list(entry.files),
                "status": entry.status.value,
                "verdict": entry.verdict,
            },
        )
        log.info("report_written", period=entry.period, files=list(entry.files))
        return entry

    def look(self) -> None:
        """Write what is due; a failure is logged and journaled, and the next look tries again."""
        now = self._clock()
        try:
            self.run_due(now)
        except Exception as error:
            # The thread must live on, whatever a report stumbles over; the next look tries again.
            log.exception("report_failed")
            self._tell_failure(now, error)

    def _tell_failure(self, now_seconds: float, error: Exception) -> None:
        period = self.due(now_seconds)
        if period is None or self._failed_until == period[1]:
            return
        self._failed_until = period[1]
        try:
            self._journal.append(
                EventKind.PART_FAILED,
                time_seconds=now_seconds,
                summary=f"The scheduled report could not be written: {type(error).__name__}: {error}",
                data={"part": "report"},
            )
        except Exception:
            # The journal may be what is broken; the log has said it.
            log.exception("journal_failed", part="report")

    def _last_fire(self, now_seconds: float) -> float | None:
        """Return when the schedule last fired at or before a time.

        A trigger only looks forward, so this looks from ever further back until it finds one.
        """
        now = datetime.fromtimestamp(now_seconds, self._zone)
        back = timedelta(hours=1)
        while back <= _LONGEST_LOOK_BACK:
            found = self._trigger.get_next_fire_time(None, now - back)
            if found is not None and found <= now:
                return self._newest_from(found, now)
            back *= 2
        return None

    def _newest_from(self, found: datetime, now: datetime) -> float:
        while True:
            later = self._trigger.get_next_fire_time(found, found + timedelta(microseconds=1))
            if later is None or later > now:
                return found.timestamp()
            found = later
