"""Service: latency, errors, throughput and queue, with incidents and actions drawn over them."""

from __future__ import annotations

import streamlit as st

from collectors.signals import unit_of
from dashboard import charts, components, context, markup, status, words
from dashboard.charts import Trace
from dashboard.context import Context
from dashboard.data import Latest
from dashboard.palette import Tone
from dashboard.status import Badge

_PANELS = (
    (
        "Latency",
        (
            ("llm_request_latency_p50_seconds", "p50"),
            ("llm_request_latency_seconds", "p95"),
            ("llm_request_latency_p99_seconds", "p99"),
        ),
    ),
    ("Time to first token", (("llm_time_to_first_token_seconds", "p95"),)),
    ("Requests", (("llm_requests_per_second", "arriving"),)),
    (
        "Errors and refusals",
        (
            ("llm_error_ratio", "errors"),
            ("llm_rejected_ratio", "rejected"),
            ("llm_cancelled_ratio", "cancelled"),
        ),
    ),
    ("Tokens out", (("llm_tokens_per_second", "tokens"),)),
    (
        "Queue",
        (
            ("llm_queue_depth", "waiting"),
            ("llm_active_requests", "active"),
            ("llm_slots", "slots"),
        ),
    ),
    ("Time since the last engine step", (("engine_step_age_seconds", "step age"),)),
    ("Engine memory", (("engine_resident_memory_bytes", "resident"),)),
    ("Degradation level", (("service_degradation_level", "level"),)),
)
_CEILINGS = {"service_degradation_level": 4.0, "llm_error_ratio": 0.05}


def _service() -> str | None:
    chosen = st.session_state.get("service")
    return chosen if isinstance(chosen, str) else None


def health_panel() -> None:
    """Show the layers of health, the engine's state and the level of degradation."""
    current = context.current()
    service = _service()
    if service is None:
        return
    latest = components.state_of(current).latest()
    markup.show(
        "badges",
        groups=[
            {
                "label": "health",
                "badges": status.health_badges(latest, service, current.is_stale),
            },
            {"label": "engine", "badges": [_engine_badge(latest, service, current)]},
            {"label": "degradation", "badges": [_level_badge(latest, service, current)]},
        ],
    )


def _engine_badge(latest: Latest, service: str, current: Context) -> Badge:
    value = status.value_of(latest, service, "engine_state", current.is_stale)
    if value is None or not 0 <= value < len(status.ENGINE_STATES):
        return Badge("unknown", Tone.UNKNOWN)
    name = status.ENGINE_STATES[int(value)]
    tones = {"stalled": Tone.CRITICAL, "failed": Tone.CRITICAL, "idle": Tone.OK, "busy": Tone.OK}
    return Badge(name, tones.get(name, Tone.WARNING))


def _level_badge(latest: Latest, service: str, current: Context) -> Badge:
    value = status.value_of(latest, service, "service_degradation_level", current.is_stale)
    if value is None:
        return Badge("unknown", Tone.UNKNOWN)
    tone = Tone.OK if value < 1 else Tone.WARNING if value < status.HIGHEST_LEVEL else Tone.CRITICAL
    return Badge(f"level {value:.0f}, {status.degradation_words(value)}", tone)


def charts_panel(*, frozen: bool = False) -> None:
    """Draw the service's signals over the chosen range."""
    current = context.current()
    service = _service()
    if service is None:
        return
    state = components.state_of(current)
    signals = [signal for _, rows in _PANELS for signal, _ in rows]
    lines = state.lines([service], signals, current.start_seconds, current.now_seconds)
    lines_of = {key.signal: line for key, line in lines.items()}
    incidents = state.incidents(since_seconds=current.start_seconds)
    actions = state.actions(since_seconds=current.start_seconds)
    span = charts.Span(current.start_seconds, current.now_seconds, current.zone)
    columns = st.columns(3)
    for index, (title, rows) in enumerate(_PANELS):
        first = rows[0][0]
        figure = charts.panel(
            title,
            [Trace(name, lines_of[signal]) for signal, name in rows if signal in lines_of],
            span,
            unit=unit_of(first),
            regions=components.regions(incidents, current),
            marks=components.action_marks(actions),
            ceiling=_CEILINGS.get(first),
            height=196,
        )
        with columns[index % 3]:
            st.plotly_chart(
                figure,
                theme=None,
                config=charts.FROZEN if frozen else charts.LIVE,
                key=f"service-{first}",
            )


def _frozen_panel() -> None:
    with components.guarded("charts"):
        charts_panel(frozen=True)


def main() -> None:
    """Lay out the page."""
    current = context.current()
    with components.guarded("service"):
        names = status.services(components.state_of(current).latest())
        if not names:
            components.empty(
                "No inference service has been seen.",
                "Name one under [collectors] in the configuration and start `galen watch`; "
                "`galen up` starts the bundled one.",
            )
            return
        _controls(names)
    components.live(health_panel, every_seconds=current.settings.refresh_seconds)
    if st.session_state.get("live", True):
        components.live(charts_panel, every_seconds=current.refresh_seconds)
    else:
        _frozen_panel()


def _controls(names: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.selectbox(
            "Service", names, key="service", bind="query-params", width=260,
            format_func=words.short_entity, label_visibility="collapsed",
        )  # fmt: skip
        st.toggle(
            "Live", value=True, key="live", bind="query-params",
            help="Off: the charts stand still and can be zoomed and hovered.",
        )  # fmt: skip
        if not st.session_state.get("live", True):
            st.button("Refresh", icon=":material/refresh:")


main()
