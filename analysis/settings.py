"""Settings of analysis: the ``[analysis]`` table."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from analysis.detection.fleet.settings import FleetSettings
from analysis.detection.settings import DetectionSettings
from analysis.diagnosis.settings import ContextSettings, DiagnosisSettings, MemorySettings


class IncidentSettings(BaseModel):
    """When an incident opens, changes and ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stable_ticks: int = Field(
        2, ge=1, le=100, description="Ticks in a row that a cause must lead before it is told."
    )
    confident: float = Field(
        0.9, ge=0.5, le=1, description="Confidence from which one tick is enough."
    )
    decide_after_seconds: float = Field(
        3.0,
        ge=0,
        le=600,
        description="Time after the first anomaly from which a wavering diagnosis is told as it is.",
    )
    unknown_after_seconds: float = Field(
        8.0,
        ge=0,
        le=3600,
        description="How long a symptom must last before it is told without a known cause.",
    )
    pending_hold_seconds: float = Field(
        5.0,
        ge=0,
        le=600,
        description="How long a fault that passed before it was told is still looked at.",
    )
    change_ticks: int = Field(
        3, ge=1, le=100, description="Ticks in a row that another cause must lead to replace one."
    )
    change_confidence: float = Field(
        0.6, ge=0, le=1, description="Confidence that another cause needs to replace one."
    )
    refresh_seconds: float = Field(
        2.0, ge=0, le=600, description="Least time between two silent updates of an open incident."
    )
    resolve_after_seconds: float = Field(
        8.0, ge=0, le=3600, description="How long all symptoms must be gone before it is over."
    )
    join_seconds: float = Field(
        120.0,
        ge=0,
        le=3600,
        description="How far apart the first anomalies of a service on several hosts and of one of "
        "these hosts may be to become one incident.",
    )
    abandon_after_seconds: float = Field(
        3600.0,
        ge=60,
        le=604800,
        description="How long nothing may be measured of an incident's entity before it is closed as "
        "not seen any more, such as after the service was taken away.",
    )
    reopen_within_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="The same cause on the same entity within this time after the end continues the "
        "old incident: it was not over.",
    )
    max_anomalies: int = Field(
        50, ge=5, le=1000, description="Anomalies that an incident keeps; the strongest stay."
    )


class AnalysisSettings(BaseModel):
    """Detection, diagnosis and incidents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detection: DetectionSettings = Field(
        default_factory=DetectionSettings, description="How normal is learned, and what is not."
    )
    scheduler: str | None = Field(
        None,
        pattern=r"^(local|[a-z]+://[^@\s]+)$",
        max_length=1024,
        description="Dask scheduler that `galen detect` and `galen backtest` of a Prometheus use, such "
        "as tcp://scheduler:8786; local is a process a core; null is this process.",
    )
    fleet: FleetSettings = Field(
        default_factory=FleetSettings, description="How a fleet is divided among workers."
    )
    diagnosis: DiagnosisSettings = Field(
        default_factory=DiagnosisSettings, description="How evidence is weighed."
    )
    memory: MemorySettings = Field(
        default_factory=MemorySettings, description="How long what has passed counts."
    )
    context: ContextSettings = Field(
        default_factory=ContextSettings, description="How before is compared with now."
    )
    incidents: IncidentSettings = Field(
        default_factory=IncidentSettings, description="When an incident opens, changes and ends."
    )
