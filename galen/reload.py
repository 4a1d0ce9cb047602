"""Takes up a changed configuration while the watch loop runs, and gives it back when it is bad.

A change is asked for by SIGHUP, or seen in the file. What cannot be read changes nothing. What is
valid goes on trial (:mod:`analysis.detection.trial`). Every outcome is in the log, in the journal and
in Galen's own metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import BaseModel

from analysis.detection.settings import DetectionSettings
from analysis.detection.trial import TrialTerms, TrialVerdict
from analysis.journal import EventKind, Journal
from galen.config import Settings
from galen.errors import ConfigError
from reporting.settings import ReportingSettings

log = structlog.get_logger(__name__)

LIVE_TABLES = ("analysis.detection", "reporting", "reload")
"""Tables whose changes hold without a restart; of all others a change is told and waits for one."""

Stamp = tuple[int, int, int]


class ReloadRequest:
    """Set by a signal handler, taken by the loop: a plain flag, since a handler must take no lock."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask for a reload at the next tick."""
        self._asked = True

    def take(self) -> bool:
        """Return whether somebody asked since the last call."""
        asked, self._asked = self._asked, False
        return asked


class ConfigFile:
    """Tells when a file has changed and has come to rest.

    Args:
        path: the file; one that is not there yet is looked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken = self._seen = self._stamp()
        self._look_seconds = 0.0

    def changed(self, now_seconds: float, poll_seconds: float) -> bool:
        """Return true once for each change: when two looks have found the same new file.

        Args:
            now_seconds: the present time.
            poll_seconds: time between two looks; 0 never looks.
        """
        if not poll_seconds or now_seconds < self._look_seconds:
            return False
        self._look_seconds = now_seconds + poll_seconds
        before, self._seen = self._seen, self._stamp()
        if self._seen == self._taken or self._seen != before:
            return False
        self._taken = self._seen
        return True

    def mark(self) -> None:
        """Take the file as it is now for read."""
        self._taken = self._seen = self._stamp()

    def _stamp(self) -> Stamp | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where the configuration comes from while the loop runs."""

    file: ConfigFile
    load: Callable[[], Settings]
    """Reads and validates it anew; raises ConfigError."""
    request: ReloadRequest


class Detection(Protocol):
    """What a reload needs of detection."""

    def replace(self, settings: DetectionSettings, terms: TrialTerms) -> None:
        """Go on with other settings, on trial."""

    def take_verdict(self) -> TrialVerdict | None:
        """Return how a trial ended since the last call, if one did."""


@dataclass(frozen=True, slots=True)
class ReloadParts:
    """What a reload changes and tells."""

    detection: Detection
    replace_reporting: Callable[[ReportingSettings], None]
    """Puts alerts and reports on other settings; where it raises, those of before hold."""
    journal: Journal
    tell: Callable[[bool, float], None]
    """Told after each attempt whether it succeeded, and when."""


class Reloader:
    """Keeps the settings of a running watch loop; :meth:`step` belongs between two ticks.

    Args:
        settings: those that the loop started with.
        source: where the configuration comes from.
        parts: what is changed and told.
    """

    def __init__(self, settings: Settings, source: ConfigSource, parts: ReloadParts) -> None:
        self._settings = settings
        self._before: Settings | None = None
        self._source = source
        self._had_file = source.file.path.exists()
        self._parts = parts

    @property
    def settings(self) -> Settings:
        """Those that hold now."""
        return self._settings

    def step(self, now_seconds: float) -> None:
        """Take up what was asked for or has changed, and look after a trial."""
        verdict = self._parts.detection.take_verdict()
        if verdict is not None:
            self._conclude(verdict, now_seconds)
        file = self._source.file
        asked = self._source.request.take()
        if asked:
            file.mark()
        if asked or file.changed(now_seconds, self._settings.reload.poll_seconds):
            self._reload(now_seconds)

    def _reload(self, now: float) -> None:
        try:
            wanted = self._read()
            applied, waiting = self._apply(wanted)
        except ConfigError as error:
            self._reject(now, str(error))
        # Settings that are valid each may still not work together; those of before hold.
        except Exception as error:
            log.exception("config_reload_broke")
            self._reject(now, f"{type(error).__name__}: {error}")
        else:
            self._accept(now, applied, waiting)

    def _read(self) -> Settings:
        path = self._source.file.path
        there = path.exists()
        if self._had_file and not there:
            raise ConfigError(f"{path}: the file is gone", fix="Put it back.")
        self._had_file = there
        return self._source.load()

    def _apply(self, wanted: Settings) -> tuple[list[str], list[str]]:
        """Change what can be changed; return the keys that hold now, and those that wait."""
        current = self._settings
        keys = list(changed_keys(current, wanted))
        live = [key for key in keys if key.startswith(tuple(f"{name}." for name in LIVE_TABLES))]
        if any(key.startswith("reporting.") for key in live):
            self._parts.replace_reporting(wanted.reporting)
        if any(key.startswith("analysis.detection.") for key in live):
            try:
                terms = TrialTerms(wanted.reload.trial_seconds, wanted.reload.most_new_anomalies)
                self._parts.detection.replace(wanted.analysis.detection, terms)
            except Exception:
                self._restore_reporting(wanted, current)
                raise
            # During a trial what was good before it stays what a rollback returns to.
            self._before = (self._before or current) if terms.seconds > 0 else None
        detection = {"detection": wanted.analysis.detection}
        analysis = current.analysis.model_copy(update=detection)
        self._settings = current.model_copy(
            update={
                "analysis": analysis,
                "reporting": wanted.reporting,
                "reload": wanted.reload,
            }
        )
        return live, [key for key in keys if key not in live]

    def _restore_reporting(self, wanted: Settings, good: Settings) -> None:
        if wanted.reporting != good.reporting:
            self._parts.replace_reporting(good.reporting)

    def _accept(self, now: float, applied: list[str], waiting: list[str]) -> None:
        log.info("config_reloaded", applied=applied, need_restart=waiting)
        if waiting:
            log.warning("config_needs_restart", keys=waiting)
        self._parts.tell(True, now)
        words = f"now in force: {', '.join(applied)}" if applied else "nothing changed in force"
        rest = f"; wait for a restart: {', '.join(waiting)}" if waiting else ""
        self._journal(
            EventKind.CONFIG_RELOADED,
            now,
            f"The configuration was read again; {words}{rest}",
            {"applied": applied, "need_restart": waiting},
        )

    def _reject(self, now: float, reason: str) -> None:
        log.error("config_reload_failed", reason=reason, holds="the configuration of before")
        self._parts.tell(False, now)
        self._journal(
            EventKind.CONFIG_REJECTED,
            now,
            f"The configuration was not taken up, that of before holds: {reason}",
            {"reason": reason},
        )

    def _conclude(self, verdict: TrialVerdict, now: float) -> None:
        before, self._before = self._before, None
        if verdict.kept:
            log.info("config_trial_passed", reason=verdict.reason)
            return
        log.error("config_rolled_back", reason=verdict.reason)
        self._parts.tell(False, now)
        if before is not None:
            tried, self._settings = self._settings, before
            self._restore_reporting(tried, before)
        self._journal(
            EventKind.CONFIG_ROLLED_BACK,
            now,
            f"The new configuration was rolled back, mend it before a restart: {verdict.reason}",
            {"reason": verdict.reason},
        )

    def _journal(self, kind: EventKind, now: float, summary: str, data: dict[str, object]) -> None:
        self._parts.journal.append(kind, time_seconds=now, summary=summary, data=data)


def changed_keys(before: BaseModel, after: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the keys whose values differ, without the values: some are secrets."""
    for name in type(before).model_fields:
        one, other = getattr(before, name), getattr(after, name)
        key = f"{path}{name}"
        if isinstance(one, BaseModel) and type(one) is type(other):
            yield from changed_keys(one, other, f"{key}.")
        elif one != other:
            yield key
