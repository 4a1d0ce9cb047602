"""Degradation: five declared levels, each of which gives up something to keep the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from inference.errors import OverloadedError, UnavailableError
from inference.requests import GenerationRequest

_REFUSAL_RETRY_AFTER_SECONDS = 10.0


class Level(IntEnum):
    """What is given up; each level includes those below it."""

    FULL = 0
    """Nothing."""
    CORE_ONLY = 1
    """Requests marked ``X-Galen-Priority: low`` are refused."""
    SHORT_ANSWERS = 2
    """Answers are cut to ``degraded_max_tokens``."""
    SMALL_MODEL = 3
    """The fallback model answers."""
    REFUSE = 4
    """Every request is refused with the reason."""


class Admitted(Protocol):
    """What admission looks at, whichever kind of request it is."""

    @property
    def canary(self) -> bool:
        """Whether it is a probe, not user load."""
        ...

    @property
    def low_priority(self) -> bool:
        """Whether it is the first to go."""
        ...


@dataclass(frozen=True, slots=True)
class Degradation:
    """The level in force, why, and since when (seconds since the epoch)."""

    level: Level = Level.FULL
    reason: str = ""
    since_seconds: float = 0.0

    def check(self, request: Admitted) -> None:
        """Refuse what the level gives up.

        Raises:
            UnavailableError: level 4.
            OverloadedError: a low-priority request at level 1 or above.
        """
        if request.canary:
            return
        if self.level >= Level.REFUSE:
            raise UnavailableError(
                f"requests are refused: {self.reason or 'degradation level 4'}",
                reason="degraded",
                retry_after_seconds=_REFUSAL_RETRY_AFTER_SECONDS,
            )
        if self.level >= Level.CORE_ONLY and request.low_priority:
            raise OverloadedError(
                f"low-priority requests are refused: {self.reason or 'degraded'}",
                reason="low_priority",
                retry_after_seconds=_REFUSAL_RETRY_AFTER_SECONDS,
            )

    def max_tokens(self, request: GenerationRequest, degraded_max_tokens: int) -> int:
        """Return how long the answer may be."""
        if self.level >= Level.SHORT_ANSWERS and not request.canary:
            return min(request.max_tokens, degraded_max_tokens)
        return request.max_tokens

    def model_for(self, request: GenerationRequest, models: Sequence[str]) -> str:
        """Return the model that answers; the last one has no fallback."""
        if self.level >= Level.SMALL_MODEL and not request.canary:
            return fallback_of(request.model, models)
        return request.model


def fallback_of(model: str, models: Sequence[str]) -> str:
    """Return the next model of the chain, or the same where there is none."""
    following = models.index(model) + 1
    return models[following] if following < len(models) else model
