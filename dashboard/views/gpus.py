"""GPUs: a tile each, worst first, and the last quarter of an hour of the chosen one."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from analysis.findings import IncidentState
from collectors.entities import top_of
from collectors.signals import unit_of
from dashboard import charts, components, context, markup, status, words
from dashboard.charts import Trace
from dashboard.context import Context
from dashboard.palette import Tone
from dashboard.sampling import Line
from dashboard.status import Gpu

_WINDOW_SECONDS = 900.0

_PANELS = (
    ("Utilisation", ("gpu_utilization_percent", "gpu_sm_active_percent"), 100.0),
    ("Temperature", ("gpu_temperature_celsius", "gpu_temperature_margin_celsius"), None),
    ("Power", ("gpu_power_usage_watts", "gpu_power_limit_watts"), None),
    ("Memory", ("gpu_memory_used_bytes", "gpu_memory_total_bytes"), None),
    ("SM clock", ("gpu_sm_clock_mhz", "gpu_sm_clock_max_mhz"), None),
    ("Thermal and power throttling", ("gpu_throttle_thermal", "gpu_throttle_power"), 1.0),
)
_NAMES = {
    "gpu_utilization_percent": "busy",
    "gpu_sm_active_percent": "SM active",
    "gpu_temperature_celsius": "temperature",
    "gpu_temperature_margin_celsius": "margin to slowdown",
    "gpu_power_usage_watts": "drawn",
    "gpu_power_limit_watts": "cap",
    "gpu_memory_used_bytes": "used",
    "gpu_memory_total_bytes": "total",
    "gpu_sm_clock_mhz": "clock",
    "gpu_sm_clock_max_mhz": "maximum",
    "gpu_throttle_thermal": "thermal",
    "gpu_throttle_power": "power cap",
}
_LIMITS = {"gpu_power_limit_watts", "gpu_memory_total_bytes", "gpu_sm_clock_max_mhz"}


@dataclass(frozen=True, slots=True)
class Gauge:
    """One row of a tile: a bar with its text."""

    label: str
    share: float
    tone: Tone
    text: str


def _gauge(
    label: str, value: float | None, limit: float | None, text: str, tone: Tone = Tone.INFO
) -> Gauge:
    if value is None:
        return Gauge(label, 0.0, Tone.UNKNOWN, words.ABSENT)
    share = 0.0 if not limit else min(1.0, max(0.0, value / limit))
    return Gauge(label, share, tone, text)


def _over(value: float | None, limit: float | None, unit: str) -> str:
    """Return ``210 / 300 W``; the limit is left out where it is not known."""
    if limit is None:
        return words.quantity(value, unit)
    number, name = words.amount(value, unit)
    if unit == "bytes" and value is not None:
        return f"{value / 2**30:.1f} / {limit / 2**30:.0f} GiB"
    return f"{number} / {words.amount(limit, unit)[0]} {name}"


def gauges(gpu: Gpu) -> list[Gauge]:
    """Return the rows of a GPU's tile."""
    get = gpu.values.get
    busy, temperature = get("gpu_utilization_percent"), get("gpu_temperature_celsius")
    margin, drawn, cap = (
        get("gpu_temperature_margin_celsius"),
        get("gpu_power_usage_watts"),
        get("gpu_power_limit_watts"),
    )
    used, total = get("gpu_memory_used_bytes"), get("gpu_memory_total_bytes")
    clock, fastest = get("gpu_sm_clock_mhz"), get("gpu_sm_clock_max_mhz")
    slowdown = None if temperature is None or margin is None else temperature + margin
    # The device itself says how far it is from slowing down.
    over = Tone.CRITICAL if margin is not None and margin <= 0 else Tone.INFO
    heat = words.quantity(temperature, "celsius")
    if margin is not None:
        heat += f", {margin:.0f} K left" if margin >= 0 else f", {-margin:.0f} K over"
    return [
        _gauge("utilisation", busy, 100.0, words.quantity(busy, "percent")),
        _gauge("memory", used, total, _over(used, total, "bytes")),
        _gauge("temperature", temperature, slowdown, heat, over),
        _gauge("power", drawn, cap, _over(drawn, cap, "watts")),
        _gauge("SM clock", clock, fastest, _over(clock, fastest, "megahertz")),
    ]


def _find(current: Context) -> list[Gpu]:
    state = components.state_of(current)
    return status.gpus(
        state.latest(),
        state.incidents(state=IncidentState.OPEN),
        current.is_stale,
        current.now_seconds,
    )


def tiles_panel() -> None:
    """Show a tile for each GPU."""
    current = context.current()
    found = _find(current)
    if not found:
        components.empty(
            "No GPU has been seen.",
            "On a machine with an NVIDIA GPU `galen doctor` says what keeps NVML from answering; "
            "without one, `galen up --demo` runs a simulated GPU.",
        )
        return
    start = current.now_seconds - _WINDOW_SECONDS
    lines = components.state_of(current).lines(
        [gpu.entity for gpu in found], ["gpu_utilization_percent"], start, current.now_seconds
    )
    busy = {key.entity: line for key, line in lines.items()}
    cards = [
        {
            "gpu": gpu,
            "name": words.phrase(" ".join(gpu.entity.split("/")[-2:])),
            "host": words.short_entity(top_of(gpu.entity)),
            "gauges": gauges(gpu),
            "age": "" if gpu.age_seconds is None else words.ago(gpu.age_seconds),
            "spark": charts.sparkline(busy.get(gpu.entity), start, current.now_seconds),
            "quiet": "no XID, no ECC error, not throttled"
            if gpu.tone is Tone.OK
            else "no current reading",
        }
        for gpu in found
    ]
    markup.show("gpus", cards=cards)


def lines_panel() -> None:
    """Show the chosen GPU's last quarter of an hour."""
    current = context.current()
    entity = st.session_state.get("gpu")
    if not entity:
        return
    state = components.state_of(current)
    start = current.now_seconds - _WINDOW_SECONDS
    signals = [signal for _, names, _ in _PANELS for signal in names]
    lines = state.lines([entity], signals, start, current.now_seconds)
    lines_of = {key.signal: line for key, line in lines.items()}
    incidents = [
        incident
        for incident in state.incidents(since_seconds=start)
        if status.concerns(incident, entity)
    ]
    actions = [action for action in state.actions(since_seconds=start) if action.entity == entity]
    span = charts.Span(start, current.now_seconds, current.zone)
    columns = st.columns(3)
    for index, (title, names, ceiling) in enumerate(_PANELS):
        figure = charts.panel(
            title,
            _traces(names, lines_of),
            span,
            unit=unit_of(names[0]),
            regions=components.regions(incidents, current),
            marks=components.action_marks(actions),
            ceiling=ceiling,
        )
        with columns[index % 3]:
            st.plotly_chart(figure, theme=None, config=charts.LIVE, key=f"gpu-{names[0]}")


def _traces(names: tuple[str, ...], lines_of: dict[str, Line]) -> list[Trace]:
    return [
        Trace(_NAMES[signal], lines_of[signal], dashed=signal in _LIMITS)
        for signal in names
        if signal in lines_of
    ]


def main() -> None:
    """Lay out the page."""
    current = context.current()
    components.live(tiles_panel, every_seconds=current.settings.refresh_seconds)
    with components.guarded("gpus"):
        entities = [gpu.entity for gpu in _find(current)]
        if not entities:
            return
        with st.container(horizontal=True, vertical_alignment="center"):
            markup.muted("Last 15 minutes of")
            st.selectbox(
                "GPU", entities, key="gpu", bind="query-params", label_visibility="collapsed",
                format_func=words.short_entity, width=260,
            )  # fmt: skip
    components.live(lines_panel, every_seconds=max(5.0, current.settings.refresh_seconds))


main()
