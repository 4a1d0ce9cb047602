"""Overview: how things are in one sentence, and where to look."""

from __future__ import annotations

import streamlit as st

from analysis.findings import Incident, IncidentState
from collectors.signals import unit_of
from dashboard import approval, charts, components, context, markup, ribbon, site, status, words
from dashboard.components import Tile
from dashboard.context import Context
from dashboard.data import Latest, StateDirectory
from dashboard.palette import Tone
from healing.actions import Action, ActionState

_SIGNALS = (
    "llm_requests_per_second",
    "llm_request_latency_seconds",
    "llm_error_ratio",
    "llm_tokens_per_second",
    "llm_queue_depth",
    "service_degradation_level",
)
_LABELS = ("Requests", "p95 latency", "Errors", "Tokens out", "Queue", "Degradation")
_EVENTS = 60


def _waiting(state: StateDirectory) -> list[Action]:
    return list(state.actions(states=[ActionState.PROPOSED]))


def verdict_panel() -> None:
    """Say how things are and show the numbers behind it."""
    current = context.current()
    state = components.state_of(current)
    latest = state.latest()
    open_incidents = state.incidents(state=IncidentState.OPEN)
    waiting = _waiting(state)
    gpus = status.gpus(latest, open_incidents, current.is_stale, current.now_seconds)
    said = status.verdict(
        newest_seconds=latest.newest_seconds,
        now_seconds=current.now_seconds,
        is_stale=current.is_stale,
        incidents=open_incidents,
        waiting=waiting,
        collectors=status.collectors(latest, current.is_stale),
        gpus=gpus,
        stopped=state.stop_reason() is not None,
    )
    markup.show("note", tone=said.tone, sentence=said.sentence, detail=said.detail, big=True)
    shown = _service_tiles(current, state, latest)
    shown.append(_gpu_tile(gpus))
    shown.append(
        Tile(
            "Approvals waiting",
            str(len(waiting)),
            under=words.phrase(waiting[0].action) if waiting else "nothing to answer",
            tone=Tone.WARNING if waiting else None,
        )
    )
    components.tiles(shown)


def _service_tiles(current: Context, state: StateDirectory, latest: Latest) -> list[Tile]:
    names = status.services(latest)
    if not names:
        return [Tile("Service", words.ABSENT, under="no service seen", tone=Tone.UNKNOWN)]
    service = names[0]
    lines = state.lines([service], _SIGNALS, current.start_seconds, current.now_seconds)
    lines_of = {key.signal: line for key, line in lines.items()}
    shown = []
    for label, signal in zip(_LABELS, _SIGNALS, strict=True):
        value = status.value_of(latest, service, signal, current.is_stale)
        under = (
            status.degradation_words(value)
            if signal == "service_degradation_level"
            else words.short_entity(service)
        )
        shown.append(
            components.reading_tile(
                label, value, unit_of(signal), current, lines_of.get(signal), under=under
            )
        )
    return shown


def _gpu_tile(gpus: list[status.Gpu]) -> Tile:
    if not gpus:
        return Tile("GPUs healthy", words.ABSENT, under="no GPU seen", tone=Tone.UNKNOWN)
    healthy = sum(gpu.tone is Tone.OK for gpu in gpus)
    worst = gpus[0]
    return Tile(
        "GPUs healthy",
        f"{healthy}",
        unit=f"of {len(gpus)}",
        under=f"{words.short_entity(worst.entity)}: {worst.state}",
        tone=None if healthy == len(gpus) else worst.tone,
    )


def ribbon_panel() -> None:
    """Show where and when incidents were."""
    current = context.current()
    state = components.state_of(current)
    incidents = state.incidents(since_seconds=current.start_seconds)
    rows = ribbon.witnesses(state.latest(), incidents)
    if not rows:
        components.empty(
            "No service, host or GPU has been seen.",
            "Start `galen watch` with a collector, or `galen up --demo` to see one at work.",
        )
        return
    keys = [key for key in rows.values() if key is not None]
    lines = state.lines(
        {key.entity for key in keys},
        {key.signal for key in keys},
        current.start_seconds,
        current.now_seconds,
    )
    laid = ribbon.ribbon(rows, lines, incidents, current.start_seconds, current.now_seconds)
    span = charts.Span(current.start_seconds, current.now_seconds, current.zone)
    with st.container(border=True, key="panel-ribbon"):
        markup.show("legend", title=f"Incidents by entity, last {current.range_name}")
        st.plotly_chart(
            charts.ribbon_figure(laid, span), theme=None, config=charts.LIVE, key="ribbon"
        )


def incidents_panel() -> None:
    """List what is open, with links."""
    current = context.current()
    incidents = components.state_of(current).incidents(state=IncidentState.OPEN)
    with st.container(border=True, key="panel-open"):
        components.heading("Open incidents", str(len(incidents)) if incidents else "")
        if not incidents:
            markup.muted("None. Resolved ones are on the page Incidents.")
        for incident in incidents[:8]:
            _incident_line(incident, current)


def _incident_line(incident: Incident, current: Context) -> None:
    st.page_link(
        site.page_path("incidents"),
        label=markup.plain(incident.title),
        query_params={"incident": incident.id},
    )
    open_for = words.duration(current.now_seconds - incident.onset_seconds)
    markup.show(
        "incident_row",
        columns="auto 1fr",
        cells=[
            {"badge": components.incident_badge(incident)},
            {
                "text": f"{words.short_entity(incident.entity)} · {open_for} · "
                f"{status.cause_words(incident)}"
            },
        ],
    )


def events_panel() -> None:
    """Tell what happened lately."""
    current = context.current()
    events = components.state_of(current).recent_events(limit=_EVENTS)
    markup.show(
        "events",
        title="What happened lately",
        rows=components.event_rows(events, current),
        origin=False,
        nothing="Nothing yet: the journal fills as soon as `galen watch` runs.",
    )


def main() -> None:
    """Lay out the page."""
    current = context.current()
    every = current.settings.refresh_seconds
    components.live(verdict_panel, every_seconds=every)
    left, right = st.columns([1.75, 1])
    with left:
        components.live(ribbon_panel, every_seconds=max(current.refresh_seconds, 5.0))
        components.live(events_panel, every_seconds=every)
    with right:
        components.live(incidents_panel, every_seconds=every)
        _approvals()


def _approvals() -> None:
    """Show what waits for an answer; it does not refresh, so that no button moves under a finger."""
    current = context.current()
    with components.guarded("approvals"):
        waiting = _waiting(components.state_of(current))
        if waiting:
            components.heading("Waiting for approval")
        for action in waiting[:5]:
            approval.action_card(action, current, key="overview")


main()
