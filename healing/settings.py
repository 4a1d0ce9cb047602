"""Settings of healing: how far it may go, how fast, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from collectors.entities import entity
from healing.actions import Mode


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServiceTarget(_Frozen):
    """An inference service that healing may act on through its admin API."""

    name: str = Field(min_length=1, description="The service's name; its entity is service/<name>.")
    url: str = Field(
        pattern=r"^https?://", description="Base URL of the service, such as http://127.0.0.1:8000."
    )
    token: SecretStr | None = Field(None, description="Bearer token of the admin API.")
    token_file: Path | None = Field(
        None, description="File that holds the token; read before each call, so it may be renewed."
    )
    model: str | None = Field(
        None, description="Model that reload and rollback act on; without it the service's first."
    )

    @model_validator(mode="after")
    def _one_token(self) -> ServiceTarget:
        if self.token is not None and self.token_file is not None:
            raise ValueError("give token or token_file, not both")
        return self

    @property
    def entity(self) -> str:
        """The entity that this target is."""
        return entity("service", self.name)


class ActionOverride(_Frozen):
    """What a user changes about one action of the policy. What is left out stays as it is there."""

    mode: Mode | None = Field(None, description="off, dry-run, approve or auto.")
    minimum_confidence: float | None = Field(
        None, ge=0, le=1, description="Confidence in the cause below which it is only proposed."
    )
    cooldown_seconds: float | None = Field(
        None, ge=0, le=86_400, description="Least time between two of it on one entity."
    )
    attempts: int | None = Field(None, ge=1, le=10, description="How often in one incident.")


class HealingSettings(_Frozen):
    """How far healing may go by itself.

    The defaults follow what operators of GPU fleets learned: a person approves until told otherwise,
    attempts, entities and rate are bounded, and whatever is old is not acted upon.
    """

    mode: Mode = Field(
        Mode.APPROVE,
        description="The most that any action may do: off, dry-run, approve or auto. With auto each "
        "action goes as far as the policy lets it.",
    )
    actions: Mapping[str, ActionOverride] = Field(
        default_factory=dict, description="Changes to single actions of the policy, by name."
    )
    policy_file: Path | None = Field(
        None, description="A policy of your own in place of the bundled one."
    )
    services: tuple[ServiceTarget, ...] = Field(
        (), max_length=1000, description="Services that may be acted on."
    )
    kill_switch: bool = Field(False, description="Take no action at all.")
    kill_switch_file: Path = Field(
        Path("healing.stop"),
        description="While this file exists no action is taken. Relative to the state directory.",
    )
    minimum_confidence: float = Field(
        0.6, ge=0, le=1, description="Floor under every action's own minimum confidence."
    )
    stable_seconds: float = Field(
        2.0, ge=0, le=300, description="How long a cause must lead unchanged before it is acted on."
    )
    rest_seconds: float = Field(
        15.0, ge=0, le=3600,
        description="After a proven action, how long an incident may take to close before another "
        "cause of it is acted on.",
    )  # fmt: skip
    propose_after_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="How long confidence may stay low before a person is asked.",
    )
    unknown_after_seconds: float = Field(
        30.0, ge=0, le=3600,
        description="How long a cause must stay unknown before a person is called.",
    )  # fmt: skip
    patience_seconds: float = Field(
        120.0, ge=1, le=86_400,
        description="How long the guard may hold an action back before a person is told.",
    )  # fmt: skip
    approval_expiry_seconds: float = Field(
        900.0, ge=10, le=604_800, description="How long a proposal waits for an answer."
    )
    max_actions_per_hour: int = Field(
        30, ge=0, le=100_000, description="Actions per hour over everything."
    )
    repeat_limit: int = Field(
        10, ge=1, le=100_000,
        description="The same action on the same entity so often within repeat_window_seconds means "
        "that it does not cure: the next rung is taken instead.",
    )  # fmt: skip
    repeat_window_seconds: float = Field(
        86_400.0, ge=60, le=2_592_000, description="Window of repeat_limit."
    )
    max_entities: int = Field(
        2,
        ge=0,
        le=100_000,
        description="Most entities acted on within blast_radius_window_seconds.",
    )
    max_entity_share: float = Field(
        0.34, ge=0, le=1,
        description="The same as a share of the entities that can be acted on; one is always allowed.",
    )  # fmt: skip
    blast_radius_window_seconds: float = Field(
        300.0, ge=0, le=86_400, description="Window of the blast radius."
    )
    max_evidence_age_seconds: float = Field(
        5.0, ge=1, le=3600, description="Evidence older than this is not acted upon."
    )
    max_intent_age_seconds: float = Field(
        60.0, ge=1, le=3600,
        description="An action that a crash interrupted longer ago than this is given up; a younger "
        "one is verified. Neither is repeated blindly.",
    )  # fmt: skip
    max_temporary_seconds: float = Field(
        600.0, ge=30, le=86_400,
        description="A temporary action is tried without after this, even while its incident is open, "
        "provided that the symptoms are gone.",
    )  # fmt: skip
    relapse_window_seconds: float = Field(
        180.0, ge=1, le=86_400,
        description="A temporary action needed again so soon after it was taken back stays on twice "
        "as long the next time.",
    )  # fmt: skip
    max_undo_delay_seconds: float = Field(
        3600.0, ge=10, le=604_800, description="The longest that such doubling may delay."
    )
