"""Settings of diagnosis, on line and off line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DiagnosisSettings(BaseModel):
    """How evidence is weighed. The weights themselves are data, in ``causes.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weak_score: float = Field(
        0.8, ge=0, le=5, description="Anomaly score at which a deviation begins to count as seen."
    )
    strong_score: float = Field(
        1.6, gt=0, le=50, description="Anomaly score from which a deviation counts fully as seen."
    )
    active_strength: float = Field(
        0.75, ge=0, le=1, description="How surely a deviation that was raised counts as seen."
    )
    item_cap_nats: float = Field(
        4.0, gt=0, le=20, description="The most that one observation may add or take, in nats."
    )
    group_decay: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Weight of each further observation of a group of signals that move together.",
    )
    absent_counter_cap_nats: float = Field(
        1.5,
        ge=0,
        le=20,
        description="The most that a cause may gain from counter-signals that are not there.",
    )
    missing_required_nats: float = Field(
        3.0, ge=0, le=20, description="Penalty for each required observation that is not there."
    )
    unverifiable_nats: float = Field(
        1.0,
        ge=0,
        le=20,
        description="Penalty for each required observation that nothing measures now.",
    )
    onset_tolerance_seconds: float = Field(
        3.0,
        ge=0,
        le=600,
        description="How much later than the first symptom a cause's own change may be seen; about "
        "three scrape periods.",
    )
    onset_decay_seconds: float = Field(
        30.0, gt=0, le=3600, description="How fast internal changes that come later lose weight."
    )
    onset_floor: float = Field(
        0.5, ge=0, le=1, description="The least share of its weight that a late change keeps."
    )
    temperature: float = Field(
        1.3,
        gt=0.1,
        le=10,
        description="Divides the log-odds before the softmax: observations are not independent, so "
        "that plain odds are too sure of themselves.",
    )
    min_confidence: float = Field(
        0.35, ge=0, le=1, description="Below this the verdict is unknown, whatever leads."
    )
    max_hypotheses: int = Field(6, ge=5, le=30, description="How many hypotheses are kept.")
    listed_weight_nats: float = Field(
        0.1, ge=0, le=5, description="Reasons that weigh less than this are not listed."
    )
    service_hosts: dict[str, str] = Field(
        default_factory=dict,
        description="Which host a service runs on, as entity names: {'service/llm': 'host/box1'}. "
        "Not needed where there is one host only; overrides what labels say.",
    )
    runs_on: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="More places that services, replicas or pods run on, added to what labels say: "
        "{'service/llm/replica/a' = ['host/box1/gpu/0', 'host/box1/gpu/1']}.",
    )


class MemorySettings(BaseModel):
    """How long diagnosis remembers what has passed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_seconds: float = Field(
        30.0, ge=0, le=3600, description="How long an event, such as a crash, counts as evidence."
    )
    state_seconds: float = Field(
        6.0, ge=0, le=3600, description="How long a deviation counts after it has ended."
    )


class OfflineSettings(BaseModel):
    """How a file of metrics is explained, without a live detection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_normal_rows: int = Field(
        10, ge=3, le=100000, description="Rows before the onset that a baseline needs."
    )
    local_factor: int = Field(
        3,
        ge=1,
        le=100,
        description="Normal rows, in lengths of the abnormal window, that are compared with it.",
    )
    peak_share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="Share of the abnormal rows that must deviate; a fault may be shorter than the "
        "window that it was cut into.",
    )
    fault_joint_p: float = Field(
        1e-3,
        gt=0,
        lt=0.5,
        description="Joint tail probability of the symptom and of its best explanation in their own "
        "pasts, above which there is no fault. 0.001 is a false-alarm rate of 0.8% where the two are "
        "independent: P(p1 p2 <= c) = c (1 - ln c).",
    )
    tail_index: float = Field(
        3.0,
        gt=0,
        le=10,
        description="Index of the power law that continues an empirical tail beyond the largest "
        "value seen; 3 is heavy, as latencies are.",
    )
    max_hypotheses: int = Field(10, ge=5, le=100, description="How many hypotheses are kept.")
    min_catalogue_signals: int = Field(
        3,
        ge=1,
        le=100,
        description="Canonical signals that a file needs to be explained with the cause catalogue.",
    )


class ContextSettings(BaseModel):
    """How the time before the first symptom is compared with now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before_seconds: float = Field(
        120.0, ge=5, le=86400, description="Length of the time before that is compared with."
    )
    gap_seconds: float = Field(
        4.0,
        ge=0,
        le=3600,
        description="Time before the first symptom that is left out: a cause may have begun in it.",
    )
    recent_values: int = Field(
        3, ge=1, le=1000, description="Newest values whose median stands for now."
    )
    sigmas: float = Field(
        3.5, ge=1, le=20, description="Change in robust standard deviations that scores 1."
    )
    least_share: float = Field(
        0.25, ge=0, le=10, description="Change as a share of the level that scores 1 at least."
    )
