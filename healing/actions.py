"""What healing does, as a record: the shape that the ledger keeps and that people read."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Mode(StrEnum):
    """How far an action may go by itself."""

    OFF = "off"
    DRY_RUN = "dry-run"
    APPROVE = "approve"
    AUTO = "auto"


class ActionState(StrEnum):
    """Where an action is in its life."""

    BLOCKED = "blocked"
    """The guard said no; the reason says why."""
    DRY_RUN = "dry_run"
    """Would have been done."""
    PROPOSED = "proposed"
    """Waits for a person."""
    APPROVED = "approved"
    """A person said yes; it goes through the guard again before it runs."""
    REJECTED = "rejected"
    EXPIRED = "expired"
    """Nobody answered in time, or the incident ended before."""
    INTENT = "intent"
    """Written down, not yet done: after a crash this is what may or may not have happened."""
    EXECUTED = "executed"
    """Done, and being verified."""
    FAILED = "failed"
    """Could not be done, or did not help."""
    CONFIRMED = "confirmed"
    """Done and proven to have helped."""
    ROLLED_BACK = "rolled_back"
    """Made things worse or did not help, and was taken back."""
    UNDONE = "undone"
    """A temporary action that helped, and was taken back when it was no longer needed."""
    ESCALATED = "escalated"
    """Handed to a person."""


class Action(BaseModel):
    """One action of healing, from intent to verdict."""

    model_config = ConfigDict(frozen=True)

    id: str
    incident_id: str
    cause: str
    entity: str
    action: str
    """The name of the remedy, as in the policy."""
    rung: int = Field(ge=0)
    """Its place on the cause's remedy ladder."""
    mode: Mode
    state: ActionState
    confidence: float = Field(ge=0, le=1)
    parameters: Mapping[str, Any] = {}
    reason: str = ""
    """Why it is in this state, in words."""
    risk: str = "low"
    reversible: bool = True
    attempt: int = Field(default=1, ge=1)
    """Which try of this remedy in this incident."""
    temporary: bool = False
    """Whether it is taken back once the incident has stayed clear."""
    undo: Mapping[str, Any] = {}
    """What restores the state before it; written before it is done, empty where nothing can."""
    idempotency_key: str
    created_seconds: float
    updated_seconds: float
    started_seconds: float | None = None
    """When its intent was written; from then on it may have had an effect."""
    executed_seconds: float | None = None
    finished_seconds: float | None = None
    actor: str = "galen"
    """Who approved or rejected it; ``galen`` where nobody had to."""
    proof: tuple[str, ...] = ()
    """What verification measured, in words, newest last."""
