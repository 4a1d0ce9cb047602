"""One incident, top down: what, why, the evidence, what was done, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
import structlog

from analysis.findings import Evidence, Hypothesis, Incident, Verdict
from analysis.journal import Event, EventKind
from collectors.contract import SeriesKey
from dashboard import approval, charts, components, markup, words
from dashboard.charts import Band, Mark, Trace
from dashboard.context import Context
from dashboard.data import DataError, StateDirectory
from dashboard.palette import Tone, tone_of
from dashboard.sampling import Line
from healing.actions import Action

log = structlog.get_logger(__name__)

_BEFORE_SECONDS = 600.0
_AFTER_SECONDS = 300.0
_LONGEST_SECONDS = 6 * 3600.0
_MOST_CHARTS = 9

_VERDICTS = {
    Verdict.FAULT: "fault",
    Verdict.NO_FAULT: "no fault: a change in load or an external cause",
    Verdict.UNKNOWN: "not yet known",
}
_FEEDBACK = {"right": "Yes", "partly": "Partly", "wrong": "No"}


def show(incident: Incident, current: Context) -> None:
    """Lay out one incident."""
    state = components.state_of(current)
    actions = state.actions(incident_id=incident.id)
    events = state.incident_events(incident.id)
    _head(incident, current)
    left, right = st.columns([1.9, 1])
    with left:
        components.heading(
            "Hypotheses", f"{len(incident.hypotheses)} ranked" if incident.hypotheses else ""
        )
        _hypotheses(incident)
        _feedback(incident, events, state, current)
    with right:
        components.heading("Actions", str(len(actions)) if actions else "")
        _actions(actions, current)
    components.heading("Evidence over time", "shaded: the normal range; line: onset, actions")
    _evidence_charts(incident, actions, current)
    _timeline(incident, events, current)


def _head(incident: Incident, current: Context) -> None:
    leading = incident.leading
    end = incident.resolved_seconds or current.now_seconds
    facts = [
        ("root cause", leading.title if leading else "not known"),
        ("confidence", f"{leading.confidence:.0%}" if leading else words.ABSENT),
        ("verdict", _VERDICTS[incident.verdict]),
        ("began", words.moment(incident.onset_seconds, current.zone)),
        ("noticed after", words.duration(incident.opened_seconds - incident.onset_seconds)),
        (
            "open for" if incident.resolved_seconds is None else "lasted",
            words.duration(end - incident.onset_seconds),
        ),
        ("signals", str(len({(a.entity, a.signal) for a in incident.anomalies}))),
    ]
    markup.show(
        "incident_head",
        tone=tone_of(incident.severity) if incident.resolved_seconds is None else Tone.UNKNOWN,
        badge=components.incident_badge(incident),
        simulated=incident.simulated,
        entity=incident.entity,
        id=incident.id,
        title=incident.title,
        summary=_summary(incident),
        facts=facts,
    )


def _summary(incident: Incident) -> str:
    touched = sorted({words.short_entity(anomaly.entity) for anomaly in incident.anomalies})
    signals = len({(a.entity, a.signal) for a in incident.anomalies})
    spread = f"{words.plural(signals, 'signal')} of {', '.join(touched[:4])} left normal."
    leading = incident.leading
    if leading is None:
        return f"{spread if touched else ''} No cause has been found yet.".strip()
    strongest = max(leading.evidence, key=lambda item: item.weight, default=None)
    because = f" Strongest evidence: {strongest.statement}." if strongest else ""
    return f"{spread if touched else ''}{because}".strip()


# Hypotheses


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """One line of evidence, in words."""

    statement: str
    series: str
    share: float
    weight: str
    baseline: str
    observed: str
    normal: str
    onset: str
    simulated: bool


def evidence_rows(
    items: Sequence[Evidence], *, heaviest: float, onset_seconds: float
) -> list[EvidenceRow]:
    """Put evidence into words; ``heaviest`` is the weight whose bar is full."""
    return [
        EvidenceRow(
            statement=item.statement,
            series=f"{item.entity} · {item.signal}",
            share=min(1.0, abs(item.weight) / heaviest) if heaviest else 0.0,
            weight=f"{item.weight:+.2f} nats",
            baseline=words.quantity(item.baseline, item.unit),
            observed=words.quantity(item.observed, item.unit),
            normal=normal_range(item),
            onset=words.ABSENT
            if item.onset_seconds is None
            else words.offset(item.onset_seconds - onset_seconds),
            simulated=item.simulated,
        )
        for item in sorted(items, key=lambda item: -abs(item.weight))
    ]


def normal_range(item: Evidence) -> str:
    """Return the normal range of a piece of evidence: ``210 to 290 ms``, ``≤ 290 ms``."""
    low, high = item.low, item.high
    if low is None and high is None:
        return words.ABSENT
    if low is None:
        return f"≤ {words.quantity(high, item.unit)}"
    if high is None:
        return f"≥ {words.quantity(low, item.unit)}"
    (low_number, low_unit), (high_number, high_unit) = (
        words.amount(low, item.unit),
        words.amount(high, item.unit),
    )
    if low_unit == high_unit:
        return f"{low_number} to {high_number} {high_unit}".strip()
    return f"{low_number} {low_unit} to {high_number} {high_unit}"


def _hypotheses(incident: Incident) -> None:
    if not incident.hypotheses:
        components.empty(
            "No hypothesis yet.",
            "Diagnosis needs a few more seconds of data, or the symptoms fit no known cause.",
        )
    for hypothesis in incident.hypotheses:
        if hypothesis.rank == 1:
            _hypothesis(hypothesis, incident, panel=True)
            continue
        title = (
            f"{hypothesis.rank}. {hypothesis.title} on {words.short_entity(hypothesis.entity)} "
            f"({hypothesis.confidence:.0%})"
        )
        with st.expander(markup.plain(title)):
            _hypothesis(hypothesis, incident, panel=False)


def _hypothesis(hypothesis: Hypothesis, incident: Incident, *, panel: bool) -> None:
    everything = (*hypothesis.evidence, *hypothesis.against)
    heaviest = max((abs(item.weight) for item in everything), default=0.0)
    onset = incident.onset_seconds
    markup.show(
        "hypothesis",
        panel=panel,
        rank=hypothesis.rank,
        title=hypothesis.title,
        where=words.short_entity(hypothesis.entity),
        confidence=hypothesis.confidence,
        supporting=evidence_rows(hypothesis.evidence, heaviest=heaviest, onset_seconds=onset),
        opposing=evidence_rows(hypothesis.against, heaviest=heaviest, onset_seconds=onset),
        remedies=", then ".join(words.phrase(name) for name in hypothesis.remedies),
        next_check=hypothesis.next_check,
    )


# Actions and feedback


def _actions(actions: Sequence[Action], current: Context) -> None:
    if not actions:
        components.empty(
            "Nothing was done or proposed.",
            "Healing acts when a cause is known well enough and its mode allows it.",
        )
    for action in actions:
        approval.action_card(action, current, key="incident")


def _feedback(
    incident: Incident, events: Sequence[Event], state: StateDirectory, current: Context
) -> None:
    given = [event for event in events if event.kind is EventKind.FEEDBACK_GIVEN]
    with st.container(border=True, key="panel-feedback"):
        components.heading("Was this right?", "answers calibrate the diagnosis")
        for event in given:
            markup.muted(f"{event.actor}: {event.summary}")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            actor = approval.actor_input("feedback", width=180)
            note = st.text_input(
                "What it really was (optional)", key="feedback-note", max_chars=300
            )
            pressed = [
                answer
                for answer, label in _FEEDBACK.items()
                if st.button(label, key=f"feedback-{answer}")
            ]
        if pressed:
            problem = give_feedback(
                state, incident, pressed[0], actor=actor, note=note, now_seconds=current.now_seconds
            )
            if problem:
                st.error(markup.plain(problem))
            else:
                st.rerun()


def give_feedback(
    state: StateDirectory,
    incident: Incident,
    answer: str,
    *,
    actor: str,
    note: str,
    now_seconds: float,
) -> str:
    """Write an answer to the journal and return what went wrong, an empty string if nothing did."""
    name, remark = " ".join(actor.split()), " ".join(note.split())
    if not name:
        return "Enter your name first: the journal records who answered."
    leading = incident.leading
    cause = leading.title if leading else "no cause"
    try:
        state.append(
            EventKind.FEEDBACK_GIVEN,
            time_seconds=now_seconds,
            incident_id=incident.id,
            actor=name,
            summary=f"{cause}: {answer}" + (f", {remark}" if remark else ""),
            data={"answer": answer, "cause": leading.cause if leading else None, "note": remark},
        )
    except DataError as error:
        log.warning("feedback_not_written", incident_id=incident.id, error=str(error))
        return f"Nothing was written: {error}"
    return ""


# Charts and timeline


def window_of(incident: Incident, current: Context) -> tuple[float, float]:
    """Return the stretch of time that shows an incident with what came before it."""
    onsets = [incident.onset_seconds, *(anomaly.onset_seconds for anomaly in incident.anomalies)]
    start = min(onsets) - _BEFORE_SECONDS
    end = current.now_seconds
    if incident.resolved_seconds is not None:
        end = min(end, incident.resolved_seconds + _AFTER_SECONDS)
    return start, min(end, start + _LONGEST_SECONDS)


def _evidence_charts(incident: Incident, actions: Sequence[Action], current: Context) -> None:
    shown: dict[SeriesKey, Evidence] = {}
    for hypothesis in incident.hypotheses:
        for item in (*hypothesis.evidence, *hypothesis.against):
            shown.setdefault(SeriesKey(item.entity, item.signal), item)
    if not shown:
        components.empty("There is no evidence to draw.", "It appears with the first hypothesis.")
        return
    start, end = window_of(incident, current)
    keys = list(shown)[:_MOST_CHARTS]
    lines = components.state_of(current).lines(
        {key.entity for key in keys}, {key.signal for key in keys}, start, end
    )
    columns = st.columns(3)
    for index, key in enumerate(keys):
        with columns[index % 3]:
            _evidence_chart(
                shown[key], lines.get(key), incident, actions, charts.Span(start, end, current.zone)
            )


def _evidence_chart(
    item: Evidence,
    line: Line | None,
    incident: Incident,
    actions: Sequence[Action],
    span: charts.Span,
) -> None:
    onset = item.onset_seconds
    marks = [] if onset is None else [Mark(onset, "onset", Tone.WARNING)]
    end = span.end_seconds if incident.resolved_seconds is None else incident.resolved_seconds
    figure = charts.panel(
        f"{words.signal_name(item.signal)} · {words.short_entity(item.entity)}",
        [] if line is None else [Trace(item.signal, line)],
        span,
        unit=item.unit,
        band=None if item.low is None and item.high is None else Band(item.low, item.high),
        regions=[charts.Region(incident.onset_seconds, end, tone_of(incident.severity))],
        marks=[*marks, *components.action_marks(actions)],
        floor=None,
    )
    st.plotly_chart(
        figure, theme=None, config=charts.FROZEN, key=f"evidence-{item.entity}-{item.signal}"
    )


def _timeline(incident: Incident, events: Sequence[Event], current: Context) -> None:
    markup.show(
        "events",
        title="Timeline",
        rows=components.event_rows(events, current, origin_seconds=incident.onset_seconds),
        origin=True,
        nothing="The journal holds no event of this incident.",
    )
