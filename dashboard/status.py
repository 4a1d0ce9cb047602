"""What the stores say about the present, gathered for the eye: nothing here detects or diagnoses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.findings import Incident, Severity
from collectors.gpu import xid
from collectors.gpu.states import GpuState
from collectors.gpu.throttle import ThrottleReason
from dashboard import words
from dashboard.data import Latest
from dashboard.palette import Tone, badness, tone_of
from healing.actions import Action

Stale = Callable[[float | None], bool]


@dataclass(frozen=True, slots=True)
class Badge:
    """A short text with a meaning."""

    text: str
    tone: Tone = Tone.UNKNOWN


@dataclass(frozen=True, slots=True)
class Collectors:
    """How many collectors read their source."""

    up: int
    total: int
    down: tuple[str, ...]

    @property
    def badge(self) -> Badge:
        """Return the count as a badge."""
        if not self.total:
            return Badge("no collectors seen", Tone.UNKNOWN)
        tone = Tone.OK if self.up == self.total else Tone.WARNING if self.up else Tone.CRITICAL
        return Badge(f"collectors {self.up}/{self.total} up", tone)


def collectors(latest: Latest, is_stale: Stale) -> Collectors:
    """Count the collectors whose last call succeeded; one that fell silent is not up."""
    names = latest.entities("collector")
    down = []
    for name in names:
        reading = latest.get(name, "scrape_success")
        if reading is None or is_stale(reading.time_seconds) or reading.value < 0.5:
            down.append(words.short_entity(name))
    return Collectors(up=len(names) - len(down), total=len(names), down=tuple(down))


def value_of(latest: Latest, entity: str, signal: str, is_stale: Stale) -> float | None:
    """Return a reading that speaks of now, None where it is absent or too old."""
    reading = latest.get(entity, signal)
    return None if reading is None or is_stale(reading.time_seconds) else reading.value


def services(latest: Latest) -> list[str]:
    """Return the services, and whatever else reports the signals of one, by name."""
    named = set(latest.entities("service"))
    serving = {key.entity for key in latest.readings if key.signal.startswith("llm_")}
    return sorted(named | serving)


# Idle, application clocks, sync boost and display clocks are how a healthy device behaves.
_THROTTLE = (
    (ThrottleReason.SW_POWER_CAP, "power cap", Tone.INFO),
    (ThrottleReason.HW_SLOWDOWN, "HW slowdown", Tone.WARNING),
    (ThrottleReason.SW_THERMAL, "SW thermal", Tone.WARNING),
    (ThrottleReason.HW_THERMAL, "HW thermal", Tone.CRITICAL),
    (ThrottleReason.HW_POWER_BRAKE, "power brake", Tone.WARNING),
)
# Others than the device itself tell these, so that they go on when it has fallen silent.
_NOT_FROM_THE_DEVICE = frozenset(
    {"gpu_state", "gpu_xid", "gpu_xid_events_total", "gpu_recommended_action"}
)
_FAILED_STATES = {
    GpuState.RESET_REQUIRED: (Tone.CRITICAL, "needs a reset"),
    GpuState.LOST: (Tone.CRITICAL, "lost"),
    GpuState.GONE: (Tone.CRITICAL, "gone"),
    GpuState.UNREADABLE: (Tone.CRITICAL, "unreadable"),
    GpuState.HUNG: (Tone.CRITICAL, "hung"),
    GpuState.UNREAD: (Tone.UNKNOWN, "unknown"),
    GpuState.RELEASED: (Tone.UNKNOWN, "released for a reset"),
}
_THROTTLE_FLAGS = (
    ("gpu_throttle_power", "power cap", Tone.INFO),
    ("gpu_throttle_thermal", "thermal throttle", Tone.WARNING),
    ("gpu_throttle_power_brake", "power brake", Tone.WARNING),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, ready to show."""

    entity: str
    tone: Tone
    state: str
    badges: tuple[Badge, ...]
    values: dict[str, float | None]
    simulated: bool
    age_seconds: float | None

    @property
    def margin_celsius(self) -> float:
        """Return the distance to the slowdown temperature, infinite where it is not known."""
        margin = self.values.get("gpu_temperature_margin_celsius")
        return float("inf") if margin is None else margin


def gpus(
    latest: Latest, open_incidents: Sequence[Incident], is_stale: Stale, now_seconds: float
) -> list[Gpu]:
    """Return every GPU, the one that most needs eyes first."""
    found = [
        _gpu(name, latest, open_incidents, is_stale, now_seconds) for name in latest.entities("gpu")
    ]
    return sorted(found, key=_urgency)


def _urgency(gpu: Gpu) -> tuple[int, int, float, str]:
    worst = min((badness(badge.tone) for badge in gpu.badges), default=badness(Tone.OK))
    return badness(gpu.tone), worst, gpu.margin_celsius, gpu.entity


def _gpu(
    name: str,
    latest: Latest,
    open_incidents: Sequence[Incident],
    is_stale: Stale,
    now_seconds: float,
) -> Gpu:
    values = {signal: value_of(latest, name, signal, is_stale) for signal in latest.signals(name)}
    readings = [latest.readings[key] for key in latest.readings if key.entity == name]
    newest = max(
        (
            reading.time_seconds
            for key, reading in latest.readings.items()
            if key.entity == name and key.signal not in _NOT_FROM_THE_DEVICE
        ),
        default=None,
    )
    badges = _gpu_badges(values)
    for incident in open_incidents:
        if concerns(incident, name):
            badges.append(Badge(f"incident: {incident.title}", tone_of(incident.severity)))
    failed = _FAILED_STATES.get(_state_of(values))
    if failed is None and is_stale(newest):
        failed = (Tone.UNKNOWN, "unknown")
    # Of a silent device the kernel log may still tell the fault.
    if failed is not None and not (failed[0] is Tone.UNKNOWN and values.get("gpu_xid")):
        tone, state = failed
    elif values.get("gpu_available") == 0:
        tone, state = Tone.CRITICAL, "lost"
    else:
        tone = min((badge.tone for badge in badges), key=badness, default=Tone.OK)
        # What is worth knowing and needs nobody, such as running at the power cap, is not ill health.
        tone = Tone.OK if tone in {Tone.INFO, Tone.UNKNOWN} else tone
        state = {Tone.OK: "healthy", Tone.WARNING: "degraded"}.get(tone, "faulty")
    return Gpu(
        entity=name,
        tone=tone,
        state=state,
        badges=tuple(sorted(badges, key=lambda badge: badness(badge.tone))),
        values=values,
        simulated=any(reading.simulated for reading in readings),
        age_seconds=None if newest is None else now_seconds - newest,
    )


def _state_of(values: dict[str, float | None]) -> GpuState:
    """Return what the collector says of the device; one that says nothing finds no fault."""
    try:
        return GpuState(int(values.get("gpu_state") or 0))
    except ValueError:  # a newer Galen's
        return GpuState.UNREADABLE


def _gpu_badges(values: dict[str, float | None]) -> list[Badge]:
    badges: list[Badge] = []
    if code := values.get("gpu_xid"):
        badges.append(_xid_badge(int(code)))
    if double := values.get("gpu_ecc_uncorrectable_total"):
        badges.append(Badge(f"ECC uncorrectable {double:.0f}", Tone.CRITICAL))
    if values.get("gpu_row_remap_pending"):
        badges.append(Badge("row remap pending", Tone.WARNING))
    reason = values.get("gpu_throttle_reason")
    if reason is not None:
        badges += [Badge(text, tone) for bit, text, tone in _THROTTLE if int(reason) & bit]
    else:
        badges += [
            Badge(text, tone) for signal, text, tone in _THROTTLE_FLAGS if values.get(signal)
        ]
    return badges


_XID_TONES = {
    xid.Severity.INFO: Tone.INFO,
    xid.Severity.WARNING: Tone.WARNING,
    xid.Severity.CRITICAL: Tone.CRITICAL,
    xid.Severity.FATAL: Tone.CRITICAL,
}


def _xid_badge(code: int) -> Badge:
    known = xid.xid_catalogue().get(code)
    if known is None:
        return Badge(f"XID {code}", Tone.WARNING)
    return Badge(f"XID {code}: {known.name}", _XID_TONES[known.severity])


def concerns(incident: Incident, entity: str) -> bool:
    """Return whether an incident is about an entity, or blames it first."""
    leading = incident.leading
    return incident.entity == entity or (leading is not None and leading.entity == entity)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of everything in one sentence."""

    tone: Tone
    sentence: str
    detail: str


def verdict(
    *,
    newest_seconds: float | None,
    now_seconds: float,
    is_stale: Stale,
    incidents: Sequence[Incident],
    waiting: Sequence[Action],
    collectors: Collectors,
    gpus: Sequence[Gpu],
    stopped: bool,
) -> Verdict:
    """Say in one sentence how things are; what is not known is never called well."""
    detail = _detail(waiting, stopped)
    if newest_seconds is None:
        return Verdict(
            Tone.UNKNOWN,
            "Nothing is known yet: no data has arrived.",
            "Start `galen up` or `galen watch` with this state directory. " + detail,
        )
    age = now_seconds - newest_seconds
    if is_stale(newest_seconds):
        return Verdict(
            Tone.CRITICAL,
            f"The present state is unknown: the newest data is {words.duration(age)} old.",
            f"Check that `galen watch` runs. {_open_words(incidents)} {detail}".strip(),
        )
    if incidents:
        worst = min(incidents, key=lambda incident: badness(tone_of(incident.severity)))
        open_for = words.duration(now_seconds - worst.onset_seconds)
        others = len(incidents) - 1
        more = f", and {words.plural(others, 'more incident')}" if others else ""
        return Verdict(
            tone_of(worst.severity),
            f"{worst.title} ({words.short_entity(worst.entity)}, open for {open_for}){more}.",
            f"{cause_words(worst)} {detail}".strip(),
        )
    return _quiet(collectors, gpus, detail, stopped=stopped)


def _quiet(collectors: Collectors, gpus: Sequence[Gpu], detail: str, *, stopped: bool) -> Verdict:
    ill = [gpu for gpu in gpus if gpu.tone is not Tone.OK]
    if collectors.down or not collectors.total:
        who = ", ".join(collectors.down[:3]) or "no collector was seen"
        return Verdict(
            Tone.WARNING, f"No incident is open, but not everything is seen: {who}.", detail
        )
    if ill:
        which = ", ".join(f"{words.short_entity(gpu.entity)} {gpu.state}" for gpu in ill[:3])
        return Verdict(Tone.WARNING, f"No incident is open, but look at {which}.", detail)
    if stopped:
        return Verdict(Tone.WARNING, "No incident is open; healing is stopped.", detail)
    parts = [f"all {words.plural(collectors.total, 'collector')} report"]
    if gpus:
        parts.append(
            f"{words.plural(len(gpus), 'GPU')} {'is' if len(gpus) == 1 else 'are'} healthy"
        )
    return Verdict(Tone.OK, f"All is well: no incident is open, {' and '.join(parts)}.", detail)


def _detail(waiting: Sequence[Action], stopped: bool) -> str:
    parts = []
    if waiting:
        first = waiting[0]
        what = f"{words.phrase(first.action)} on {words.short_entity(first.entity)}"
        rest = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        parts.append(f"Waiting for approval: {what}{rest}.")
    if stopped:
        parts.append("The kill switch is thrown: healing does nothing.")
    return " ".join(parts)


def _open_words(incidents: Sequence[Incident]) -> str:
    return f"{words.plural(len(incidents), 'incident')} stood open." if incidents else ""


def cause_words(incident: Incident) -> str:
    """Return what an incident is put down to, with the confidence."""
    leading = incident.leading
    if leading is None:
        return "No cause is known yet."
    where = words.short_entity(leading.entity)
    return f"Most likely: {leading.title} on {where} ({leading.confidence:.0%} sure)."


SEVERITY_WORDS = {
    Severity.INFO: "info",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "critical",
}

HIGHEST_LEVEL = 4


def degradation_words(level: float | None) -> str:
    """Return what a level of degradation means: 0 is full service, 4 refuses all."""
    if level is None:
        return words.ABSENT
    if level <= 0:
        return "full service"
    return "refusing requests" if level >= HIGHEST_LEVEL else "reduced service"


ENGINE_STATES = ("idle", "busy", "starting", "draining", "stalled", "restarting", "failed")
"""The catalogue's numbering of ``engine_state``."""

HEALTH_LAYERS = ("device", "runtime", "engine", "context", "canary")


def health_badges(latest: Latest, service: str, is_stale: Stale) -> list[Badge]:
    """Return the five layers of a service's health; a layer that says nothing is unknown."""
    badges = []
    for layer in HEALTH_LAYERS:
        value = value_of(latest, service, f"health_{layer}_ok", is_stale)
        tone = Tone.UNKNOWN if value is None else Tone.OK if value >= 0.5 else Tone.CRITICAL
        badges.append(Badge(layer, tone))
    return badges
