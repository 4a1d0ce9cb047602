"""The report: one model for all forms. Frozen; times are seconds since the epoch.

A number that is not known is None and is shown as "n/a": never zero.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from analysis.findings import IncidentState, Severity, Verdict
from healing.actions import ActionState


class Part(BaseModel):
    """Base of the report's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Status(StrEnum):
    """What a reader should feel at first sight."""

    QUIET = "quiet"
    HEALED = "healed"
    """There were incidents, and all are over."""
    ATTENTION = "attention"
    """Something is open or waits for a person."""
    UNKNOWN = "unknown"
    """Too little data to say that all was well."""


class Window(Part):
    """The time that a report is about: ``since <= t < until``."""

    since_seconds: float
    until_seconds: float
    timezone: str
    minutes: int
    observed_minutes: int
    """Minutes in which at least one collector succeeded."""

    @property
    def seconds(self) -> float:
        """How long the window is."""
        return self.until_seconds - self.since_seconds


class Comparison(Part):
    """One figure beside that of the window of equal length before."""

    name: str
    unit: str
    now: float | None
    before: float | None
    better: Literal["down", "up", "neither"]


class Change(Part):
    """Something that changed the system, by whoever."""

    time_seconds: float
    kind: str
    summary: str


class Durations(Part):
    """How long something took, over incidents. The mean is left out: a single long one owns it."""

    name: str
    definition: str
    count: int
    median_seconds: float | None = None
    p90_seconds: float | None = None
    longest_seconds: float | None = None
    not_counted: int = 0
    """Incidents for which it is not known, or not over."""
    not_counted_because: str = ""


class Mark(Part):
    """A moment on a chart."""

    time_seconds: float
    label: str
    kind: Literal["onset", "action", "resolved"]


class Region(Part):
    """A stretch of time on a chart."""

    start_seconds: float
    end_seconds: float
    kind: Literal["incident", "action"]


class Chart(Part):
    """One series over one stretch of time, thinned so that its extremes stay."""

    entity: str
    signal: str
    unit: str
    start_seconds: float
    end_seconds: float
    times: tuple[float, ...]
    values: tuple[float, ...]
    gap_seconds: float
    """Points further apart than this are not joined: nothing is known between them."""
    low: float | None = None
    high: float | None = None
    """The expected band at the time of the incident."""
    marks: tuple[Mark, ...] = ()
    regions: tuple[Region, ...] = ()
    simulated: bool = False


class EvidenceRow(Part):
    """One reason for or against the leading cause."""

    entity: str
    signal: str
    statement: str
    weight: float
    """In nats of log-odds."""
    supports: bool
    simulated: bool = False


class Rival(Part):
    """Another cause that was considered."""

    rank: int
    title: str
    entity: str
    confidence: float


class ActionRow(Part):
    """One action of healing."""

    id: str
    incident_id: str
    action: str
    entity: str
    group: Literal["taken", "refused", "awaiting", "other"]
    state: ActionState
    mode: str
    confidence: float
    risk: str
    reversible: bool
    reason: str
    actor: str
    proof: tuple[str, ...] = ()
    created_seconds: float
    executed_seconds: float | None = None
    finished_seconds: float | None = None


class TimelineRow(Part):
    """One event in the life of an incident."""

    time_seconds: float
    kind: str
    summary: str
    actor: str


class IncidentRow(Part):
    """One incident as it stood at the end of the window."""

    id: str
    title: str
    entity: str
    severity: Severity
    state: IncidentState
    verdict: Verdict
    healed: bool
    """Over, and an action of Galen's was proven to have helped."""
    escalated: bool
    simulated: bool
    onset_seconds: float
    """When the first series left its normal range, as detection estimates it."""
    opened_seconds: float
    resolved_seconds: float | None
    impact_start_seconds: float | None
    """When the fault began, where that is known because it was injected."""
    detect_seconds: float | None
    repair_seconds: float | None
    cause: str | None
    cause_title: str | None
    cause_entity: str | None
    confidence: float | None
    evidence: tuple[EvidenceRow, ...] = ()
    rivals: tuple[Rival, ...] = ()
    next_check: str = ""
    actions: tuple[ActionRow, ...] = ()
    timeline: tuple[TimelineRow, ...] = ()
    charts: tuple[Chart, ...] = ()


class AnomalousSignal(Part):
    """A series that was anomalous, over all incidents of the window."""

    entity: str
    signal: str
    incidents: int
    highest_score: float
    simulated: bool


class Precision(Part):
    """Were the diagnoses right? Only people can say; nothing is assumed of those not judged."""

    incidents: int
    judged: int
    right: int
    partly: int = 0
    """Called partly right; not counted as right."""
    precision: float | None = None
    low: float | None = None
    high: float | None = None
    """Wilson's 95 % interval."""


class ServiceFigures(Part):
    """One service over the window. The report's ``rules`` say how each figure is made."""

    entity: str
    simulated: bool
    samples: int
    requests: float | None = None
    availability_low: float | None = None
    availability_high: float | None = None
    """Equal where no request can be both a 5xx and a refusal; see the report's ``rules``."""
    error_ratio: float | None = None
    rejected_ratio: float | None = None
    p95_typical_seconds: float | None = None
    p95_high_seconds: float | None = None
    output_tokens: float | None = None
    charts: tuple[Chart, ...] = ()


class GpuFigures(Part):
    """One GPU over the window."""

    entity: str
    simulated: bool
    samples: int
    utilization_mean_percent: float | None = None
    memory_used_highest_ratio: float | None = None
    temperature_highest_celsius: float | None = None
    power_mean_watts: float | None = None
    power_highest_watts: float | None = None
    energy_kwh: float | None = None
    thermal_throttle_share: float | None = None
    power_throttle_share: float | None = None
    available_share: float | None = None
    xids: tuple[int, ...] = ()
    ecc_uncorrectable: int | None = None
    charts: tuple[Chart, ...] = ()


class DataGap(Part):
    """How much of the window a collector did not see."""

    collector: str
    missing_minutes: int
    longest_minutes: int
    longest_start_seconds: float | None


class ChannelFigures(Part):
    """How the alerts of one channel went."""

    channel: str
    delivered: int
    failed: int
    median_wait_seconds: float | None = None


class Report(Part):
    """Everything that a report says."""

    schema_version: Literal["galen.report/1"] = "galen.report/1"
    generated_seconds: float
    window: Window
    status: Status
    verdict: str
    simulated: bool
    """Whether any of it comes from simulated devices."""
    notes: tuple[str, ...] = ()
    """What limits this report, such as a store that could not be read."""
    comparisons: tuple[Comparison, ...] = ()
    changes: tuple[Change, ...] = ()
    changes_left_out: int = 0
    incidents: tuple[IncidentRow, ...] = ()
    incidents_left_out: int = 0
    durations: tuple[Durations, ...] = ()
    actions: tuple[ActionRow, ...] = ()
    precision: Precision
    signals: tuple[AnomalousSignal, ...] = ()
    services: tuple[ServiceFigures, ...] = ()
    gpus: tuple[GpuFigures, ...] = ()
    gaps: tuple[DataGap, ...] = ()
    channels: tuple[ChannelFigures, ...] = ()
    rules: tuple[str, ...] = ()
    """How the figures are made, for whoever wants to check them."""
