"""The cause catalogue: ``causes.toml`` and ``observations.toml``, validated when they are read."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from analysis.findings import Direction, Severity, Verdict
from collectors import signals

Entry = TypeVar("Entry", bound=BaseModel)

REMEDIES = frozenset(
    {
        "await_supervisor",
        "restart_engine",
        "reload_model",
        "rollback_model",
        "set_degradation_level",
        "limit_requests",
        "shed_load",
        "clear_cache",
        "drain_service",
        "lower_power_limit",
        "restore_power_limit",
        "reset_gpu",
        "reboot_host",
        "page_human",
    }
)
"""The names of healing's actions. They are a vocabulary here, so that a typing error shows at load."""


class CauseCatalogueError(ValueError):
    """The catalogue has a fault; the message names the file, the entry and the field."""


class Role(StrEnum):
    """What kind of change an observation is. A cause shows internal change, a victim only symptoms."""

    SYMPTOM = "symptom"
    INTERNAL = "internal"
    LOAD = "load"
    CONTEXT = "context"


class Level(BaseModel):
    """A condition on a value: ``"> 2"``, ``"< 0.5"``, ``"== 4"``, ``"& 96"`` or ``"in 1 2"``."""

    model_config = ConfigDict(frozen=True)

    operator: Literal[">", "<", "==", "&", "in"]
    values: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        operator, *words = given.split()
        if operator != "in" and len(words) != 1:
            raise ValueError(f"a level is an operator and a number, such as '> 2', got {given!r}")
        return {"operator": operator, "values": words}

    def holds(self, value: float) -> bool:
        """Say whether a value meets the condition."""
        first = self.values[0]
        match self.operator:
            case ">":
                return value > first
            case "<":
                return value < first
            case "&":
                return math.isfinite(value) and bool(int(value) & int(first))
            case _:
                return value in self.values


class Observation(BaseModel):
    """A yes-or-no question about one series; ``observations.toml`` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    signal: str
    direction: Direction
    level: Level | None = None
    also_deviates: bool = False
    background: float = Field(gt=0, lt=1)
    group: str
    role: Role
    outage: bool = False
    label: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.signal not in signals.catalogue():
            raise ValueError(f"signal: {self.signal!r} is not in collectors/signals.toml")
        if self.also_deviates and self.level is None:
            raise ValueError("also_deviates: has a meaning only beside a level")
        return self


class Cause(BaseModel):
    """One entry of the catalogue; ``causes.toml`` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str = Field(min_length=1)
    description: str = Field(min_length=1)
    entity_kind: Literal["service", "gpu", "host", "collector", "any"]
    verdict: Verdict = Verdict.FAULT
    prior: float = Field(gt=0, lt=1)
    severity: Severity
    min_duration_seconds: float = Field(0.0, ge=0, le=600)
    """How long the first anomaly must have lasted before this cause may open an incident."""
    expects: Mapping[str, float] = {}
    counters: Mapping[str, float] = {}
    requires: tuple[str, ...] = ()
    rival: str
    next_check: str = Field(min_length=1)
    remedies: tuple[str, ...]
    runbook: str = Field(min_length=1)

    @property
    def requirements(self) -> tuple[tuple[str, ...], ...]:
        """Return the required observations: one of each inner tuple has to be there."""
        return tuple(tuple(name.strip() for name in line.split("|")) for line in self.requires)

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = [name for name in self.remedies if name not in REMEDIES]
        if wrong:
            raise ValueError(f"remedies: {wrong} are not among {sorted(REMEDIES)}")
        return self


class CauseCatalogue(BaseModel):
    """All causes and all observations, checked against each other."""

    model_config = ConfigDict(frozen=True)

    causes: Mapping[str, Cause]
    observations: Mapping[str, Observation]

    def log_prior(self, cause: str) -> float:
        """Return the log of a cause's prior probability, after normalisation."""
        total = sum(each.prior for each in self.causes.values())
        return math.log(self.causes[cause].prior / total)

    def for_signal(self, signal: str) -> tuple[Observation, ...]:
        """Return the observations that look at a signal."""
        return tuple(each for each in self.observations.values() if each.signal == signal)


def parse_causes(causes_text: str, observations_text: str) -> CauseCatalogue:
    """Read a catalogue from the text of its two files.

    Raises:
        CauseCatalogueError: naming the file, the entry and the field.
    """
    observations = _read("observations.toml", observations_text, Observation)
    causes = _read("causes.toml", causes_text, Cause)
    for cause in causes.values():
        for fault in _cross_faults(cause, causes, observations):
            raise CauseCatalogueError(f"causes.toml [{cause.name}] {fault}")
    for needed in ("unknown", "no_fault"):
        if needed not in causes:
            raise CauseCatalogueError(f"causes.toml: the cause {needed!r} must be there to compete")
    return CauseCatalogue(causes=causes, observations=observations)


@cache
def catalogue() -> CauseCatalogue:
    """Return the bundled catalogue, read once."""
    folder = resources.files("analysis.diagnosis")
    return parse_causes(
        folder.joinpath("causes.toml").read_text("utf-8"),
        folder.joinpath("observations.toml").read_text("utf-8"),
    )


def _read(file: str, text: str, model: type[Entry]) -> dict[str, Entry]:
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CauseCatalogueError(f"{file}: not valid TOML: {error}") from error
    entries: dict[str, Entry] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise CauseCatalogueError(f"{file}: {name!r} stands outside a table")
        try:
            entries[name] = model.model_validate({"name": name, **table})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            fault = first["msg"].removeprefix("Value error, ")
            fault = f"{field}: {fault}" if field else fault
            raise CauseCatalogueError(f"{file} [{name}] {fault}") from error
    return entries


def _cross_faults(
    cause: Cause, causes: Mapping[str, Cause], observations: Mapping[str, Observation]
) -> list[str]:
    faults = [
        f"{table}.{name}: no such observation in observations.toml"
        for table, entries in (("expects", cause.expects), ("counters", cause.counters))
        for name in entries
        if name not in observations
    ]
    if faults:
        return faults
    for name, probability in cause.expects.items():
        background = observations[name].background
        if not background < probability < 1:
            faults.append(f"expects.{name}: {probability} must be between {background} and 1")
    for name, probability in cause.counters.items():
        background = observations[name].background
        if not 0 < probability < background:
            faults.append(f"counters.{name}: {probability} must be between 0 and {background}")
    both = set(cause.expects) & set(cause.counters)
    faults += [f"counters.{name}: also under expects" for name in sorted(both)]
    for line in cause.requirements:
        faults += [
            f"requires: {name!r} is not under expects" for name in line if name not in cause.expects
        ]
    if cause.rival not in causes:
        faults.append(f"rival: {cause.rival!r} is not a cause")
    return faults
