"""Tells in the terminal what the journal records: what was noticed, concluded, done and proven."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.text import Text

from analysis.journal import Event, EventKind, Journal

_LOOK: dict[EventKind, tuple[str, str]] = {
    EventKind.FAULT_INJECTED: ("fault", "magenta"),
    EventKind.FAULT_CLEARED: ("fault", "magenta"),
    EventKind.INCIDENT_OPENED: ("noticed", "bold red"),
    EventKind.INCIDENT_UPDATED: ("concluded", "yellow"),
    EventKind.INCIDENT_RESOLVED: ("resolved", "bold green"),
    EventKind.ACTION_PROPOSED: ("proposed", "yellow"),
    EventKind.ACTION_APPROVED: ("approved", "cyan"),
    EventKind.ACTION_REJECTED: ("rejected", "cyan"),
    EventKind.ACTION_EXPIRED: ("expired", "dim"),
    EventKind.ACTION_BLOCKED: ("held back", "yellow"),
    EventKind.ACTION_DRY_RUN: ("would do", "cyan"),
    EventKind.ACTION_STARTED: ("acting", "bold cyan"),
    EventKind.ACTION_EXECUTED: ("done", "cyan"),
    EventKind.ACTION_FAILED: ("failed", "red"),
    EventKind.ACTION_CONFIRMED: ("proven", "bold green"),
    EventKind.ACTION_ROLLED_BACK: ("rolled back", "yellow"),
    EventKind.ACTION_UNDONE: ("undone", "green"),
    EventKind.ESCALATED: ("to a person", "bold yellow"),
    EventKind.NOTIFICATION_SENT: ("told", "blue"),
    EventKind.NOTIFICATION_FAILED: ("not told", "red"),
    EventKind.REPORT_WRITTEN: ("report", "blue"),
    EventKind.PART_FAILED: ("galen", "red"),
    EventKind.CONFIG_RELOADED: ("settings", "green"),
    EventKind.CONFIG_REJECTED: ("settings", "red"),
    EventKind.CONFIG_ROLLED_BACK: ("settings", "red"),
}


class Narrator:
    """Follows the journal from where it stands now."""

    def __init__(self, journal: Journal, console: Console) -> None:
        self._journal = journal
        self._console = console
        self._seq = journal.last_seq()

    def catch_up(self) -> None:
        """Print what has happened since the last call."""
        for event in self._journal.events(after_seq=self._seq):
            self._seq = event.seq
            if event.kind in _LOOK:
                self._print(event)

    def say(self, words: str) -> None:
        """Print a line of the demonstration's own."""
        self._console.print(Text.assemble((_clock_time(None), "dim"), "  ", (words, "italic")))

    def _print(self, event: Event) -> None:
        label, style = _LOOK[event.kind]
        # Text, never markup: summaries hold names that came from outside.
        line = Text.assemble(
            (_clock_time(event.time_seconds), "dim"), "  ", (f"{label:<12}", style), event.summary
        )
        self._console.print(line, soft_wrap=True)


def _clock_time(seconds: float | None) -> str:
    moment = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)  # noqa: DTZ005, DTZ006 - a person's own clock
    return moment.strftime("%H:%M:%S")
