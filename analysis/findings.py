"""What analysis finds: anomalies, evidence, hypotheses, incidents. Frozen, and the same in JSON."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Direction(StrEnum):
    """Which way a signal left its normal range."""

    UP = "up"
    DOWN = "down"
    ABSENT = "absent"
    EVENT = "event"
    FLAT = "flat"
    """It stands still, and never did before."""
    NORMAL = "normal"


class Severity(StrEnum):
    """How soon a person should look."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Verdict(StrEnum):
    """What a diagnosis says as a whole."""

    FAULT = "fault"
    NO_FAULT = "no_fault"
    UNKNOWN = "unknown"


class IncidentState(StrEnum):
    """Where an incident is in its life."""

    OPEN = "open"
    RESOLVED = "resolved"


class Finding(BaseModel):
    """Base of all findings: immutable, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SignalShare(Finding):
    """One of the signals that make up what is unusual of an entity."""

    signal: str
    share: float = Field(ge=0, le=1)
    """Its part of all that is unusual of the entity at this time."""
    direction: Direction
    expected: float | None = None
    low: float | None = None
    high: float | None = None
    onset_seconds: float | None = None


class Exhaustion(Finding):
    """When a series that grows steadily meets its physical limit, if it goes on like this."""

    limit: float
    """In the unit of the signal."""
    per_second: float
    """The robust slope: the median of all pairs' slopes."""
    seconds: float = Field(ge=0)
    """Time to the limit at that slope."""
    soonest_seconds: float = Field(ge=0)
    latest_seconds: float | None = None
    """Ends of the time's 95% interval, from that of the slope; None where it may never come."""


class LevelShift(Finding):
    """A series that moved to another level and stays there."""

    entity: str
    signal: str
    unit: str = ""
    at_seconds: float
    """When it moved."""
    before: float
    after: float


class Anomaly(Finding):
    """One series that is not normal at one time, after the alert policy has spoken."""

    entity: str
    signal: str
    unit: str = ""
    time_seconds: float
    onset_seconds: float
    """When the series left its normal range, as well as the cadence can tell."""
    score: float
    """Above 1 is an anomaly; how much above says how unusual."""
    direction: Direction
    observed: float | None
    expected: float | None = None
    low: float | None = None
    high: float | None = None
    detectors: tuple[str, ...] = ()
    simulated: bool = False
    p_value: float | None = None
    """How likely a normal value of this series deviates as far towards the bad side; None where that
    is not known, or where values are no measure, such as of events and absence."""
    top_signals: tuple[SignalShare, ...] = ()
    """What is most unusual of its entity, the largest share first; five at most."""
    exhaustion: Exhaustion | None = None
    """For what grows or shrinks steadily towards a limit that is known."""
    shift: LevelShift | None = None
    """Set once it is clear that the series stays where it is: a new level, and no passing event."""


class Evidence(Finding):
    """One reason for or against a hypothesis."""

    entity: str
    signal: str
    unit: str = ""
    direction: Direction
    baseline: float | None = None
    observed: float | None = None
    low: float | None = None
    high: float | None = None
    score: float | None = None
    onset_seconds: float | None = None
    weight: float
    """Its contribution to the log-odds of the hypothesis, in nats; negative is against."""
    statement: str
    """The same in words that a person on call can read."""
    simulated: bool = False


class Hypothesis(Finding):
    """One possible cause of an incident."""

    rank: int = Field(ge=1)
    cause: str
    title: str
    entity: str
    confidence: float = Field(ge=0, le=1)
    log_odds: float
    evidence: tuple[Evidence, ...] = ()
    against: tuple[Evidence, ...] = ()
    action: str | None = None
    """The first rung of the remedy ladder; None where there is nothing to do."""
    remedies: tuple[str, ...] = ()
    next_check: str = ""
    """What would tell this cause from its nearest rival."""


class Incident(Finding):
    """Anomalies that belong together, and what they mean."""

    id: str
    state: IncidentState
    severity: Severity
    verdict: Verdict
    title: str
    entity: str
    onset_seconds: float
    opened_seconds: float
    updated_seconds: float
    resolved_seconds: float | None = None
    anomalies: tuple[Anomaly, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    simulated: bool = False

    @property
    def leading(self) -> Hypothesis | None:
        """Return the hypothesis that ranks first."""
        return self.hypotheses[0] if self.hypotheses else None
