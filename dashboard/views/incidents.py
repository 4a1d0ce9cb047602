"""Incidents: what is open, and one incident from its summary down to its evidence.

The address carries the incident (``?incident=ID``), so that a link can be handed on. Nothing here
refreshes by itself: what one is reading stays, until one asks for more.
"""

from __future__ import annotations

import streamlit as st

from analysis.findings import Incident, IncidentState
from dashboard import components, context, investigation, markup, site, words
from dashboard.context import Context
from dashboard.palette import badness, tone_of

_LISTED = 100
_COLUMNS = "1fr 150px 110px 96px"
_SPLIT = (0.075, 0.37, 0.555)


def _list(current: Context) -> None:
    incidents = components.state_of(current).incidents(limit=_LISTED)
    if not incidents:
        components.empty(
            "No incident has been recorded.",
            "That is good news if `galen watch` has been running; the bar above says whether it is. "
            "`galen drill` injects a fault to see one.",
        )
        return
    still_open = [incident for incident in incidents if incident.state is IncidentState.OPEN]
    still_open.sort(key=lambda incident: badness(tone_of(incident.severity)))
    resolved = [incident for incident in incidents if incident.state is IncidentState.RESOLVED]
    for title, rows in (("Open", still_open), ("Resolved", resolved)):
        with st.container(border=True, key=f"panel-incidents-{title.lower()}"):
            components.heading(title, str(len(rows)))
            if not rows:
                markup.muted("None.")
            else:
                _columns(title)
            for incident in rows:
                _row(incident, current)


def _columns(title: str) -> None:
    with st.container(key=f"incident-columns-{title.lower()}"):
        first, left, right = st.columns(_SPLIT)
    for column, grid, names in (
        (first, "1fr", ("state",)),
        (left, "1fr", ("incident",)),
        (right, _COLUMNS, ("most likely cause", "on", "began", "lasted")),
    ):
        with column:
            markup.show(
                "incident_row", columns=grid, cells=[{"text": x, "style": "faint"} for x in names]
            )


def _row(incident: Incident, current: Context) -> None:
    first, left, right = st.columns(_SPLIT, vertical_alignment="center")
    with first:
        markup.show(
            "incident_row", columns="1fr", cells=[{"badge": components.incident_badge(incident)}]
        )
    with left:
        st.page_link(
            site.page_path("incidents"),
            label=markup.plain(incident.title),
            query_params={"incident": incident.id},
        )
    end = incident.resolved_seconds or current.now_seconds
    leading = incident.leading
    with right:
        markup.show(
            "incident_row",
            columns=_COLUMNS,
            cells=[
                {"text": leading.title if leading else "no cause known"},
                {"text": words.short_entity(incident.entity)},
                {
                    "text": words.clock_time(
                        incident.onset_seconds, current.zone, now_seconds=current.now_seconds
                    ),
                },
                {"text": words.duration(end - incident.onset_seconds)},
            ],
        )


def _detail(incident_id: str, current: Context) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(site.page_path("incidents"), label="← All incidents")
        st.button("Refresh", icon=":material/refresh:", type="tertiary")
        markup.muted(f"as of {words.moment(current.now_seconds, current.zone)}")
    incident = components.state_of(current).incident(incident_id)
    if incident is None:
        components.empty(
            f"There is no incident {incident_id!r} in this journal.",
            "The link may come from another environment, or the journal was started anew.",
        )
        return
    investigation.show(incident, current)


def main() -> None:
    """Show the incident that the address names, else the list."""
    current = context.current()
    chosen = st.query_params.get("incident")
    with components.guarded("incidents"):
        if chosen:
            _detail(chosen, current)
        else:
            _list(current)


main()
