"""Keeps reports as files, one set for each period, with an index for whoever lists them.

Files are written beside their place and moved into it, so that a reader never sees half a report. A
period that is there already is left as it is.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from reporting.reports.model import Report, Status
from reporting.reports.render import render
from reporting.settings import Format

log = structlog.get_logger(__name__)

INDEX = "archive.index"
"""JSON; its name does not end so, because everything that does is a report."""
_FILE_NAME = re.compile(r"^\d{8}T\d{6}Z--\d{8}T\d{6}Z\.(html|md|json)$")


class ArchivedReport(BaseModel):
    """One entry of the index."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    period: str
    since_seconds: float
    until_seconds: float
    generated_seconds: float
    status: Status
    verdict: str
    incidents: int
    simulated: bool
    files: tuple[str, ...]
    """File names in the archive's directory."""


_entries = TypeAdapter(tuple[ArchivedReport, ...])


def period_name(since_seconds: float, until_seconds: float) -> str:
    """Name a period after its bounds in UTC.

    >>> period_name(0.0, 86400.0)
    '19700101T000000Z--19700102T000000Z'
    """
    bounds = (datetime.fromtimestamp(seconds, UTC) for seconds in (since_seconds, until_seconds))
    return "--".join(bound.strftime("%Y%m%dT%H%M%SZ") for bound in bounds)


class ReportArchive:
    """A directory of reports. One process writes; any number read.

    Args:
        directory: made on the first write.
        formats: the forms to keep.
        keep_seconds: reports whose window ended longer ago than this, counted from the newest
            report's end, are deleted on a write.
    """

    def __init__(self, directory: Path, *, formats: Sequence[Format], keep_seconds: float) -> None:
        self.directory = directory
        self._formats = tuple(formats)
        self._keep_seconds = keep_seconds

    def entries(self) -> tuple[ArchivedReport, ...]:
        """Return the reports that are there, the newest first."""
        try:
            text = (self.directory / INDEX).read_text("utf-8")
            listed = _entries.validate_json(text)
        except FileNotFoundError:
            listed = self._found()
        except (ValidationError, UnicodeDecodeError) as error:
            log.warning("report_index_damaged", directory=str(self.directory), error=str(error))
            listed = self._found()
        return tuple(entry for entry in listed if self._is_there(entry))

    def get(self, since_seconds: float, until_seconds: float) -> ArchivedReport | None:
        """Return the entry of a period, or None."""
        name = period_name(since_seconds, until_seconds)
        return next((entry for entry in self.entries() if entry.period == name), None)

    def write(self, report: Report) -> ArchivedReport:
        """Keep a report, unless its period is there; return the entry of its period.

        Raises:
            OSError: when the directory cannot be written.
        """
        window = report.window
        there = self.get(window.since_seconds, window.until_seconds)
        if there is not None:
            return there
        self.directory.mkdir(parents=True, exist_ok=True)
        period = period_name(window.since_seconds, window.until_seconds)
        for form in self._formats:
            self._replace(f"{period}.{form.value}", render(report, form))
        files = tuple(f"{period}.{form.value}" for form in self._formats)
        entry = _entry(report, period, files)
        self._save_index([entry, *self.entries()])
        return entry

    def _save_index(self, entries: Sequence[ArchivedReport]) -> None:
        ordered = sorted(
            {entry.period: entry for entry in reversed(entries)}.values(),
            key=lambda entry: (-entry.until_seconds, -entry.since_seconds),
        )
        oldest = ordered[0].until_seconds - self._keep_seconds
        kept = [entry for entry in ordered if entry.until_seconds >= oldest]
        self._replace(INDEX, _entries.dump_json(tuple(kept), indent=2).decode())
        for entry in ordered:
            if entry not in kept:
                self._delete(entry)

    def _delete(self, entry: ArchivedReport) -> None:
        for name in entry.files:
            # The index is a file that others can write: only names of reports are deleted.
            if _FILE_NAME.match(name):
                with suppress(FileNotFoundError):
                    (self.directory / name).unlink()
        log.info("report_deleted", period=entry.period)

    def _replace(self, name: str, text: str) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(self.directory / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _is_there(self, entry: ArchivedReport) -> bool:
        names_are_sound = all(_FILE_NAME.match(name) for name in entry.files)
        return names_are_sound and all((self.directory / name).is_file() for name in entry.files)

    def _found(self) -> tuple[ArchivedReport, ...]:
        """Rebuild the index from the reports in JSON."""
        entries: list[ArchivedReport] = []
        for path in sorted(self.directory.glob("*--*.json")):
            if not _FILE_NAME.match(path.name):
                continue
            try:
                report = Report.model_validate_json(path.read_text("utf-8"))
            except (OSError, UnicodeDecodeError, ValidationError) as error:
                log.warning("report_unreadable", path=str(path), error=str(error)[:500])
                continue
            forms = (f"{path.stem}.{form.value}" for form in Format)
            files = tuple(name for name in forms if (self.directory / name).is_file())
            entries.append(_entry(report, path.stem, files))
        return tuple(sorted(entries, key=lambda entry: -entry.until_seconds))


def _entry(report: Report, period: str, files: tuple[str, ...]) -> ArchivedReport:
    return ArchivedReport(
        period=period,
        since_seconds=report.window.since_seconds,
        until_seconds=report.window.until_seconds,
        generated_seconds=report.generated_seconds,
        status=report.status,
        verdict=report.verdict,
        incidents=len(report.incidents) + report.incidents_left_out,
        simulated=report.simulated,
        files=files,
    )
