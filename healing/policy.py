"""The policy of healing, read from ``policy.toml``: what each remedy does, how far, and its proof."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from collectors.signals import catalogue
from healing.actions import Mode
from healing.errors import PolicyError
from healing.settings import ActionOverride

EVIDENCE = "evidence"
"""The check that is built in: the symptoms of the incident are back inside their normal bands."""

PAGE_HUMAN = "page_human"
"""The last rung of every ladder."""

BUNDLED = "policy.toml"

Seconds = Annotated[float, Field(ge=0, le=86_400)]
Scalar = bool | int | float | str


class Risk(StrEnum):
    """How much harm an action can do when it is wrong."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class RollbackWhen(StrEnum):
    """When an action that could not be proven is taken back."""

    NEVER = "never"
    WORSE = "worse"
    FAILED = "failed"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckRule(_Frozen):
    """One thing that must hold for an action to be proven."""

    signal: str
    description: str = Field(min_length=1)
    at_least: float | None = None
    at_most: float | None = None
    within_normal: bool = False

    @model_validator(mode="after")
    def _one_criterion(self) -> CheckRule:
        if self.signal not in catalogue():
            raise ValueError(f"signal {self.signal!r} is not in the signal catalogue")
        given = [self.at_least is not None, self.at_most is not None, self.within_normal]
        if sum(given) != 1:
            raise ValueError("give exactly one of at_least, at_most and within_normal = true")
        return self


class Verification(_Frozen):
    """How an action is proven; see ``policy.toml`` for what the times mean."""

    required: tuple[str, ...] = Field(min_length=1)
    optional: tuple[str, ...] = ()
    only_signals: frozenset[str] = frozenset()
    ignore_signals: frozenset[str] = frozenset()
    relief_share: float = Field(default=1.0, gt=0, le=1)
    settle_seconds: Seconds
    hold_seconds: Seconds
    deadline_seconds: Annotated[float, Field(gt=0, le=86_400)]

    @model_validator(mode="after")
    def _reachable(self) -> Verification:
        if self.deadline_seconds <= self.settle_seconds + self.hold_seconds:
            raise ValueError("deadline_seconds must be more than settle_seconds + hold_seconds")
        for field in ("only_signals", "ignore_signals"):
            if unknown := getattr(self, field) - catalogue().keys():
                raise ValueError(f"{field}: {min(unknown)!r} is not in the signal catalogue")
        return self


class LaggingSignals(_Frozen):
    """Signals over a sliding window, which holds requests from before an action for a while after."""

    signals: frozenset[str]
    window_seconds: Seconds
    traffic_signal: str = "llm_requests_per_second"
    sparse_below_per_second: float = Field(ge=0)
    """Under so little traffic the window is the wider one."""
    sparse_window_seconds: Seconds

    @model_validator(mode="after")
    def _known_signals(self) -> LaggingSignals:
        if unknown := {*self.signals, self.traffic_signal} - catalogue().keys():
            raise ValueError(f"{min(unknown)!r} is not in the signal catalogue")
        return self


class Condition(_Frozen):
    """A signal of the entity that is acted on has one of some values now."""

    signal: str
    one_of: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_signal(self) -> Condition:
        if self.signal not in catalogue():
            raise ValueError(f"signal {self.signal!r} is not in the signal catalogue")
        return self


class When(StrEnum):
    """Which value of a signal a parameter follows from."""

    BEFORE = "before"
    """The median before the incident."""
    NOW = "now"


class MeasuredParameter(_Frozen):
    """A parameter worked out from a measurement: a signal's value times ``times``."""

    signal: str
    when: When
    times: float = Field(gt=0, le=100)
    at_least: float = 0.0

    @model_validator(mode="after")
    def _known_signal(self) -> MeasuredParameter:
        if self.signal not in catalogue():
            raise ValueError(f"signal {self.signal!r} is not in the signal catalogue")
        return self


class Remedy(_Frozen):
    """One action of the policy."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    executor: Literal["service", "gpu", "none"]
    operation: str = ""
    """What the executor is asked for; the name of the action where nothing else is said."""
    description: str = Field(min_length=1)
    plan: str = Field(min_length=1)
    done: str = Field(min_length=1)
    parameters: Mapping[str, Scalar | MeasuredParameter] = {}
    steps: tuple[Mapping[str, Scalar | MeasuredParameter], ...] = ()
    risk: Risk
    reversible: bool
    mode: Mode
    minimum_confidence: float = Field(ge=0, le=1)
    cooldown_seconds: Seconds
    attempts: int = Field(ge=1, le=10)
    timeout_seconds: Annotated[float, Field(gt=0, le=600)]
    rollback: RollbackWhen
    explains: frozenset[str] = frozenset()
    """Causes that this action itself looks like while it stands."""
    undo_after_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    only_when: tuple[Condition, ...] = ()
    """It is considered only where one of these holds; what is not measured does not hold."""
    verification: Verification | None = None

    @model_validator(mode="before")
    @classmethod
    def _operation_is_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and not given.get("operation"):
            return {**given, "operation": given.get("name", "")}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Remedy:
        if self.temporary and not self.reversible:
            raise ValueError("undo_after_seconds needs reversible = true")
        if self.rollback is not RollbackWhen.NEVER and not self.reversible:
            raise ValueError(f"rollback = {self.rollback.value!r} needs reversible = true")
        if self.verification is None and self.name != PAGE_HUMAN:
            raise ValueError("verification is missing: an action without proof is not taken")
        if self.steps and len(self.steps) != self.attempts:
            raise ValueError(f"attempts must be {len(self.steps)}, one for each of the steps")
        if self.steps and self.verification and self._step_seconds < self.cooldown_seconds:
            raise ValueError(
                "cooldown_seconds must not exceed the verification's deadline_seconds, "
                "or the next step could never follow"
            )
        return self

    @model_validator(mode="after")
    def _words_fit(self) -> Remedy:
        known = {"entity", *self.parameters}.union(*self.steps)
        for field, words in (("plan", self.plan), ("done", self.done)):
            template = Template(words)
            if not template.is_valid():
                raise ValueError(f"{field}: a lone '$'; write '$$' for a dollar sign")
            if unknown := set(template.get_identifiers()) - known:
                raise ValueError(f"{field}: ${min(unknown)} is neither $entity nor a parameter")
        return self

    @property
    def temporary(self) -> bool:
        """Whether it is taken back when the incident has stayed clear."""
        return self.undo_after_seconds is not None

    @property
    def touches(self) -> bool:
        """Whether it changes anything outside Galen."""
        return self.executor != "none"

    @property
    def _step_seconds(self) -> float:
        return self.verification.deadline_seconds if self.verification else 0.0

    def parameters_of(self, attempt: int) -> Mapping[str, Scalar | MeasuredParameter]:
        """Return the parameters of an attempt, counted from 1: the common ones and its step's."""
        step = self.steps[min(attempt, len(self.steps)) - 1] if self.steps else {}
        return {**self.parameters, **step}


class Policy(_Frozen):
    """Every remedy and every check, by name."""

    lagging: LaggingSignals
    checks: Mapping[str, CheckRule]
    actions: Mapping[str, Remedy]

    @model_validator(mode="after")
    def _complete(self) -> Policy:
        if EVIDENCE in self.checks:
            raise ValueError(f"checks.{EVIDENCE} is built in and cannot be given")
        if PAGE_HUMAN not in self.actions or self.actions[PAGE_HUMAN].touches:
            raise ValueError(f"actions.{PAGE_HUMAN} with executor = 'none' is missing")
        for name, remedy in self.actions.items():
            wanted = remedy.verification
            names = (*wanted.required, *wanted.optional) if wanted else ()
            if unknown := set(names) - self.checks.keys() - {EVIDENCE}:
                raise ValueError(
                    f"actions.{name}.verification: no check is called {min(unknown)!r}"
                )
        return self

    def with_overrides(self, overrides: Mapping[str, ActionOverride]) -> Policy:
        """Return the policy with a user's changes.

        Raises:
            PolicyError: for an action that the policy does not have, or values that do not fit.
        """
        actions = dict(self.actions)
        for name, override in overrides.items():
            where = f"healing.actions.{name}"
            if name not in actions:
                raise PolicyError(
                    f"{where}: the policy has no such action",
                    fix=f"Actions: {', '.join(sorted(actions))}.",
                )
            changes = override.model_dump(exclude_none=True)
            remedy = actions[name]
            if remedy.steps and changes.get("attempts", remedy.attempts) != remedy.attempts:
                # Fewer attempts leave the last steps out; more than there are steps cannot be.
                changes["steps"] = remedy.steps[: changes["attempts"]]
            try:
                actions[name] = Remedy.model_validate({**remedy.model_dump(), **changes})
            except ValidationError as error:
                raise PolicyError("\n".join(_explain(error, where))) from error
        return Policy(lagging=self.lagging, checks=self.checks, actions=actions)


def parse_policy(text: str, source: str = BUNDLED) -> Policy:
    """Read a policy from TOML.

    Raises:
        PolicyError: naming the source, the action and the field, one line a fault.
    """
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source}: not valid TOML: {error}", fix="Mend that line.") from error
    actions = given.get("actions")
    if isinstance(actions, dict):
        named = {
            name: {"name": name, **row} if isinstance(row, dict) else row
            for name, row in actions.items()
        }
        given = {**given, "actions": named}
    try:
        return Policy.model_validate(given)
    except ValidationError as error:
        raise PolicyError(
            "\n".join(_explain(error, source)), fix="Compare with the bundled policy.toml."
        ) from error


def load_policy(path: Path | None = None) -> Policy:
    """Read the bundled policy, or one of the user's own.

    Raises:
        PolicyError: when the file cannot be read or has a fault.
    """
    if path is None:
        return parse_policy(resources.files("healing").joinpath(BUNDLED).read_text("utf-8"))
    try:
        return parse_policy(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"{path}: cannot be read: {error}", fix="Check healing.policy_file."
        ) from error


def _explain(error: ValidationError, source: str) -> list[str]:
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        value = fault.get("input")
        shown = f" (got {value!r})" if isinstance(value, bool | int | float | str) else ""
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{source}: {place}: {message}{shown}" if place else f"{source}: {message}")
    return lines
