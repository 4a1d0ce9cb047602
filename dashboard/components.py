"""Pieces that pages share: the bar, messages, tiles, lists, live panels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import streamlit as st
import structlog

from analysis.findings import Incident
from analysis.journal import Event, EventKind
from dashboard import charts, context, markup, status, words
from dashboard.context import Context
from dashboard.data import DataError, StateDirectory
from dashboard.palette import Tone, tone_of
from dashboard.sampling import Line
from dashboard.settings import HEALING_MODE_VARIABLE
from dashboard.status import Badge
from healing.actions import Action, ActionState

log = structlog.get_logger(__name__)


@contextmanager
def guarded(panel: str) -> Iterator[None]:
    """Let a panel whose data cannot be read say so, and leave the rest of the page standing."""
    try:
        yield
    except DataError as error:
        log.warning("panel_unreadable", panel=panel, error=str(error))
        markup.show("note", tone=Tone.WARNING, sentence=str(error), detail=error.fix, big=False)


def live(panel: Callable[[], None], *, every_seconds: float) -> None:
    """Show a panel that refreshes by itself. Such panels stand side by side, never one in another."""

    def guarded_panel() -> None:
        with guarded(panel.__name__):
            panel()

    guarded_panel.__qualname__ = f"live.{panel.__module__}.{panel.__qualname__}"
    st.fragment(guarded_panel, run_every=every_seconds)()


def heading(title: str, aside: str = "") -> None:
    """Write the small title of a panel."""
    markup.show("heading", title=title, aside=aside)


def empty(sentence: str, detail: str) -> None:
    """Say that there is nothing here, and what to do if there should be."""
    markup.show("note", tone=Tone.UNKNOWN, sentence=sentence, detail=detail, big=False)


def state_of(current: Context) -> StateDirectory:
    """Return the state directory of a context."""
    return StateDirectory(current.state_dir)


# The bar


def age_badge(current: Context, newest_seconds: float | None) -> Badge:
    """Return the age of the newest data."""
    if newest_seconds is None:
        return Badge("no data yet", Tone.UNKNOWN)
    age = max(0.0, current.now_seconds - newest_seconds)
    if current.is_stale(newest_seconds):
        return Badge(f"data is {words.duration(age)} old", Tone.CRITICAL)
    return Badge(f"data {age:.0f} s old", Tone.OK)


def mode_badge(mode: str | None, *, stopped: bool) -> Badge:
    """Return how far healing may go by itself."""
    if stopped:
        return Badge("healing stopped", Tone.CRITICAL)
    if mode is None:
        return Badge("healing mode unknown", Tone.UNKNOWN)
    return Badge(f"healing: {mode}", Tone.WARNING if mode == "off" else Tone.INFO)


def healing_mode(state: StateDirectory) -> str | None:
    """Return the mode that runs, else the one that is configured, else None."""
    return state.running_mode() or os.environ.get(HEALING_MODE_VARIABLE) or None


def bar() -> None:
    """Show what is true of every page: environment, age of the data, collectors, healing."""
    current = context.current()
    state = state_of(current)
    latest = state.latest()
    seen = status.collectors(latest, current.is_stale)
    stopped = state.stop_reason() is not None
    markup.show(
        "bar",
        title=current.settings.title,
        badges=[
            age_badge(current, latest.newest_seconds),
            seen.badge,
            mode_badge(healing_mode(state), stopped=stopped),
        ],
        simulated=latest.simulated,
        time=words.moment(current.now_seconds, current.zone),
        down=seen.down,
    )


def stale_notice() -> None:
    """Say it loudly when the newest data is old."""
    current = context.current()
    newest = state_of(current).latest().newest_seconds
    if newest is not None and current.is_stale(newest):
        markup.show(
            "note",
            tone=Tone.CRITICAL,
            sentence=f"No new data since {words.moment(newest, current.zone)}.",
            detail="Everything below is history, not the present. Check that `galen watch` runs.",
            big=False,
            loud=True,
        )


# Tiles


@dataclass(frozen=True, slots=True)
class Tile:
    """One number with its name and its recent past."""

    label: str
    value: str
    unit: str = ""
    under: str = ""
    tone: Tone | None = None
    spark: Sequence[str] | None = None
    """Areas of a sparkline, None for a number without a past."""


def tiles(shown: Sequence[Tile]) -> None:
    """Show tiles in a row that wraps."""
    markup.show("tiles", tiles=shown)


def reading_tile(
    label: str,
    value: float | None,
    unit: str,
    current: Context,
    line: Line | None = None,
    *,
    under: str = "",
) -> Tile:
    """Return the tile of one reading; one that is absent or too old is grey."""
    number, name = words.amount(value, unit)
    return Tile(
        label=label,
        value=number,
        unit=name,
        under=under if value is not None else "no current reading",
        tone=None if value is not None else Tone.UNKNOWN,
        spark=charts.sparkline(line, current.start_seconds, current.now_seconds),
    )


# Events, incidents and actions

_EVENT_TONES = {
    EventKind.FAULT_INJECTED: Tone.SIMULATED,
    EventKind.FAULT_CLEARED: Tone.SIMULATED,
    EventKind.INCIDENT_OPENED: Tone.CRITICAL,
    EventKind.INCIDENT_UPDATED: Tone.WARNING,
    EventKind.INCIDENT_RESOLVED: Tone.OK,
    EventKind.ACTION_PROPOSED: Tone.WARNING,
    EventKind.ACTION_BLOCKED: Tone.WARNING,
    EventKind.ACTION_FAILED: Tone.CRITICAL,
    EventKind.ACTION_ROLLED_BACK: Tone.WARNING,
    EventKind.ACTION_CONFIRMED: Tone.OK,
    EventKind.ACTION_STARTED: Tone.INFO,
    EventKind.ACTION_EXECUTED: Tone.INFO,
    EventKind.ACTION_APPROVED: Tone.INFO,
    EventKind.ESCALATED: Tone.CRITICAL,
    EventKind.NOTIFICATION_FAILED: Tone.WARNING,
    EventKind.PART_FAILED: Tone.CRITICAL,
    EventKind.CONFIG_RELOADED: Tone.INFO,
    EventKind.CONFIG_REJECTED: Tone.WARNING,
    EventKind.CONFIG_ROLLED_BACK: Tone.WARNING,
}


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event, in words."""

    when: str
    distance: str
    tone: Tone
    summary: str
    actor: str
    kind: str


def event_rows(
    events: Sequence[Event], current: Context, *, origin_seconds: float | None = None
) -> list[EventRow]:
    """Put events into words; ``origin_seconds`` is what distances are counted from."""
    return [
        EventRow(
            when=words.clock_time(
                event.time_seconds, current.zone, now_seconds=current.now_seconds
            ),
            distance=""
            if origin_seconds is None
            else words.offset(event.time_seconds - origin_seconds),
            tone=_EVENT_TONES.get(event.kind, Tone.UNKNOWN),
            summary=event.summary,
            actor="" if event.actor == "galen" else event.actor,
            kind=event.kind.value.replace("_", " "),
        )
        for event in events
    ]


_ACTION_TONES = {
    ActionState.BLOCKED: Tone.WARNING,
    ActionState.DRY_RUN: Tone.UNKNOWN,
    ActionState.PROPOSED: Tone.WARNING,
    ActionState.APPROVED: Tone.INFO,
    ActionState.REJECTED: Tone.UNKNOWN,
    ActionState.EXPIRED: Tone.UNKNOWN,
    ActionState.INTENT: Tone.INFO,
    ActionState.EXECUTED: Tone.INFO,
    ActionState.FAILED: Tone.CRITICAL,
    ActionState.CONFIRMED: Tone.OK,
    ActionState.ROLLED_BACK: Tone.WARNING,
    ActionState.UNDONE: Tone.OK,
    ActionState.ESCALATED: Tone.CRITICAL,
}


def action_badge(action: Action) -> Badge:
    """Return an action's state as a badge."""
    return Badge(action.state.value.replace("_", " "), _ACTION_TONES[action.state])


def incident_badge(incident: Incident) -> Badge:
    """Return an incident's severity as a badge, grey once it is over."""
    if incident.resolved_seconds is not None:
        return Badge("resolved", Tone.UNKNOWN)
    return Badge(incident.severity.value, tone_of(incident.severity))


def regions(incidents: Sequence[Incident], current: Context) -> list[charts.Region]:
    """Return the stretches of time that incidents took."""
    return [
        charts.Region(
            incident.onset_seconds,
            current.now_seconds if incident.resolved_seconds is None else incident.resolved_seconds,
            tone_of(incident.severity),
        )
        for incident in incidents
    ]


def action_marks(actions: Sequence[Action]) -> list[charts.Mark]:
    """Return when actions took effect, for those that did."""
    return [
        charts.Mark(action.executed_seconds, words.phrase(action.action), Tone.OK)
        for action in actions
        if action.executed_seconds is not None
    ]
