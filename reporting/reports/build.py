"""Builds a report from the journal, the ledger and the series store, and from nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence

from analysis.findings import Incident, IncidentState, Severity
from analysis.journal import Event, EventKind, Journal
from collectors.store.contract import SeriesReader
from reporting.alerts.messages import duration
from reporting.reports import figures, statistics
from reporting.reports.incidents import (
    MAX_INCIDENTS,
    ActionLog,
    IncidentRows,
    action_row,
    anomalous_signals,
    as_of,
    clean,
    impact_starts,
    worst_first,
)
from reporting.reports.model import (
    ActionRow,
    Change,
    Comparison,
    DataGap,
    IncidentRow,
    Region,
    Report,
    ServiceFigures,
    Status,
    Window,
)
from reporting.reports.series import SeriesSource

_PAGE = 1000
_MAX_PAGES = 200
_MAX_CHANGES = 40
_MAX_ACTIONS = 1000
# Below this share of its minutes a window without incidents is called unknown, not quiet.
_ENOUGH_OBSERVED = 0.5
_NEARLY_ALL_OBSERVED = 0.95

_CHANGE_KINDS = frozenset(
    {
        EventKind.STARTED,
        EventKind.STOPPED,
        EventKind.FAULT_INJECTED,
        EventKind.FAULT_CLEARED,
        EventKind.LEVEL_SHIFTED,
        EventKind.ACTION_EXECUTED,
        EventKind.ACTION_ROLLED_BACK,
        EventKind.ACTION_UNDONE,
        EventKind.PART_FAILED,
        EventKind.CONFIG_RELOADED,
        EventKind.CONFIG_REJECTED,
        EventKind.CONFIG_ROLLED_BACK,
    }
)
_CHANGE_SIGNALS = {
    "model_version_change": "the model's version changed",
    "config_change": "the configuration changed",
}
_READ_KINDS = _CHANGE_KINDS | {
    EventKind.ESCALATED,
    EventKind.FEEDBACK_GIVEN,
    EventKind.NOTIFICATION_SENT,
    EventKind.NOTIFICATION_FAILED,
}


def build_report(
    journal: Journal,
    ledger: ActionLog,
    store: SeriesReader,
    *,
    since_seconds: float,
    until_seconds: float,
    timezone: str = "UTC",
    clock: Callable[[], float] = time.time,
) -> Report:
    """Say what happened in a window. The same stores and window give the same report.

    Args:
        journal: of incidents and events.
        ledger: of actions.
        store: of series; one that cannot be read leaves its figures out and says so.
        since_seconds: the window's start, in seconds since the epoch.
        until_seconds: the window's end, which it does not contain.
        timezone: IANA name, for the times that people read.
        clock: for the time at which the report was made.

    Raises:
        ValueError: when the window is empty.
    """
    if since_seconds >= until_seconds:
        raise ValueError(
            f"the window is empty: since {since_seconds:g} is not before until {until_seconds:g}"
        )
    return _Builder(journal, ledger, store, since_seconds, until_seconds).build(timezone, clock())


class _Builder:
    """What the parts of one report have in common."""

    def __init__(
        self, journal: Journal, ledger: ActionLog, store: SeriesReader, since: float, until: float
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._source = SeriesSource(store)
        self._known = self._source.list()
        self._since = since
        self._until = until
        self._events = list(_events(journal, since, until, _READ_KINDS))
        self._incidents = _incidents(journal, since, until)

    def build(self, timezone: str, generated_seconds: float) -> Report:
        gaps, observed = figures.gaps(self._source, self._known, self._since, self._until)
        window = Window(
            since_seconds=self._since,
            until_seconds=self._until,
            timezone=timezone,
            minutes=figures.window_minutes(self._since, self._until),
            observed_minutes=observed,
        )
        rows = self._rows()
        actions = self._actions()
        span = (self._since, self._until)
        regions = tuple(_regions(rows, window))
        services = figures.services(self._source, self._known, *span, regions)
        gpus = figures.gpus(self._source, self._known, *span, regions)
        changes = self._changes()
        status, verdict = _verdict(rows, actions, window, gaps)
        simulated = (part.simulated for parts in (rows, services, gpus) for part in parts)
        return Report(
            generated_seconds=generated_seconds,
            window=window,
            status=status,
            verdict=verdict,
            simulated=any(simulated),
            comparisons=tuple(self._comparisons(rows, services, window)),
            changes=tuple(changes[:_MAX_CHANGES]),
            changes_left_out=max(0, len(changes) - _MAX_CHANGES),
            incidents=tuple(rows),
            incidents_left_out=len(self._incidents) - len(rows),
            durations=statistics.durations(_opened_in(rows, window)),
            actions=actions,
            precision=statistics.precision([row.id for row in rows], self._events),
            signals=tuple(anomalous_signals(self._incidents)),
            services=tuple(services),
            gpus=tuple(gpus),
            gaps=tuple(gaps),
            channels=statistics.channels(self._events),
            notes=self._source.notes,
            rules=figures.RULES,
        )

    def _rows(self) -> list[IncidentRow]:
        shown = worst_first(self._incidents)[:MAX_INCIDENTS]
        rows = IncidentRows(self._journal, self._ledger, self._source, self._known, self._until)
        return rows.build(shown, impact_starts(self._incidents, self._events))

    def _actions(self) -> tuple[ActionRow, ...]:
        found = self._ledger.actions(
            since_seconds=self._since, until_seconds=self._until, limit=_MAX_ACTIONS
        )
        return tuple(action_row(action) for action in reversed(found))

    def _changes(self) -> list[Change]:
        """Return what changed the system, the newest first."""
        found = [
            Change(
                time_seconds=event.time_seconds, kind=event.kind.value, summary=clean(event.summary)
            )
            for event in self._events
            if event.kind in _CHANGE_KINDS
        ]
        for info in self._known:
            words = _CHANGE_SIGNALS.get(info.key.signal)
            if words is None:
                continue
            series = self._source.read(*info.key, self._since, self._until)
            found += [
                Change(
                    time_seconds=float(moment),
                    kind=info.key.signal,
                    summary=clean(f"{info.key.entity}: {words}"),
                )
                for moment in series.times[series.values > 0]
            ]
        return sorted(found, key=lambda change: (-change.time_seconds, change.kind, change.summary))

    def _comparisons(
        self, rows: Sequence[IncidentRow], services: Sequence[ServiceFigures], window: Window
    ) -> Iterator[Comparison]:
        """Compare with the window of equal length before."""
        start, end = self._since - window.seconds, self._since
        earlier = _incidents(self._journal, start, end)
        blind = not earlier and not any(info.first_seconds < end for info in self._known)
        before = [each for each in earlier if each.opened_seconds >= start]
        opened = _opened_in(rows, window)
        for name, this, that in (
            ("incidents opened", len(opened), len(before)),
            ("critical incidents opened", _serious(opened), _serious(before)),
        ):
            past = None if blind else float(that)
            yield Comparison(name=name, unit="", now=float(this), before=past, better="down")
        for figures_now in services:
            earlier_figures = figures.service(self._source, figures_now.entity, start, end)
            yield from _compared(figures_now, earlier_figures)


def _events(
    journal: Journal, since: float, until: float, kinds: Collection[EventKind]
) -> Iterator[Event]:
    after = 0
    for _ in range(_MAX_PAGES):
        page = journal.events(
            after_seq=after, since_seconds=since, until_seconds=until, kinds=kinds, limit=_PAGE
        )
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].seq


def _incidents(journal: Journal, since: float, until: float) -> list[Incident]:
    found = journal.incidents(since_seconds=since, until_seconds=until, limit=10_000)
    return [as_of(incident, until) for incident in found]


def _opened_in(rows: Sequence[IncidentRow], window: Window) -> list[IncidentRow]:
    return [row for row in rows if row.opened_seconds >= window.since_seconds]


def _regions(rows: Sequence[IncidentRow], window: Window) -> Iterator[Region]:
    for row in rows:
        end = window.until_seconds if row.resolved_seconds is None else row.resolved_seconds
        yield Region(
            start_seconds=max(row.onset_seconds, window.since_seconds),
            end_seconds=min(end, window.until_seconds),
            kind="incident",
        )


def _compared(now: ServiceFigures, past: ServiceFigures) -> Iterator[Comparison]:
    for name, unit, this, that, better in (
        ("availability", "ratio", now.availability_low, past.availability_low, "up"),
        (
            "p95 latency, typical",
            "seconds",
            now.p95_typical_seconds,
            past.p95_typical_seconds,
            "down",
        ),
        ("requests", "", now.requests, past.requests, "neither"),
    ):
        yield Comparison.model_validate(
            {
                "name": f"{now.entity}: {name}",
                "unit": unit,
                "now": this,
                "before": that,
                "better": better,
            }
        )


def _serious(incidents: Sequence[IncidentRow] | Sequence[Incident]) -> int:
    return sum(each.severity is Severity.CRITICAL for each in incidents)


def _verdict(
    rows: Sequence[IncidentRow],
    actions: Sequence[ActionRow],
    window: Window,
    gaps: Sequence[DataGap],
) -> tuple[Status, str]:
    """Return the sentence that stands first."""
    still_open = [row for row in rows if row.state is IncidentState.OPEN]
    awaiting = sum(action.group == "awaiting" for action in actions)
    share = window.observed_minutes / window.minutes
    unseen = "" if share >= _NEARLY_ALL_OBSERVED else f" {_unseen(window)}"
    if still_open:
        worst = still_open[0]
        what = f"{worst.title} on {worst.entity}"
        if len(still_open) == 1:
            text = f"1 incident is still open: {what} ({worst.severity.value})."
        else:
            text = (
                f"{len(still_open)} incidents are still open, the worst: {what} "
                f"({worst.severity.value})."
            )
        return Status.ATTENTION, text + _waiting(awaiting) + unseen
    if awaiting:
        return Status.ATTENTION, f"No incident is open.{_waiting(awaiting)}{unseen}"
    if rows:
        return Status.HEALED, _healed_words(rows) + unseen
    if share < _ENOUGH_OBSERVED or not gaps:
        return Status.UNKNOWN, f"Nothing was found, but too little was seen.{unseen}"
    return Status.QUIET, f"Nothing abnormal was found in {duration(window.seconds)}.{unseen}"


def _healed_words(rows: Sequence[IncidentRow]) -> str:
    healed = sum(row.healed for row in rows)
    total = _count(len(rows), "incident", "incidents")
    if healed == len(rows):
        return (
            f"{total}, healed by Galen and proven so."
            if len(rows) == 1
            else (f"{total}, all of them healed by Galen and proven so.")
        )
    if healed:
        rest = len(rows) - healed
        return f"{total}, all over: Galen healed {healed} and proved it, {rest} ended without that."
    return f"{total}, all over; none needed an action of Galen's that was proven to help."


def _waiting(awaiting: int) -> str:
    if not awaiting:
        return ""
    return f" {_count(awaiting, 'action waits', 'actions wait')} for approval."


def _unseen(window: Window) -> str:
    return (
        f"Only {window.observed_minutes} of {window.minutes} minutes have data; "
        "nothing is known of the others."
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
