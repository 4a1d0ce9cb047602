"""Degradation: five declared levels, each of which gives up something to keep the rest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from inference.errors import OverloadedError, UnavailableError
from inference.queueing import Priority
from inference.rates import retry_after
from inference.requests import GenerationRequest

_REFUSAL_RETRY_AFTER_SECONDS = 10.0


class Degradable(Protocol):
    """A request of any kind, as far as a level looks at it."""

    @property
    def canary(self) -> bool:
        """Whether it is a probe, not user load."""

    @property
    def priority(self) -> Priority:
        """How urgent it is."""


class Level(IntEnum):
    """What is given up; each level includes those below it."""

    FULL = 0
    """Nothing."""
    CORE_ONLY = 1
    """Requests marked ``X-Galen-Priority: low`` are refused."""
    SHORT_ANSWERS = 2
    """Answers are cut to ``degraded_max_tokens``, and models that declare it run as the variant
    ``degraded_variant``."""
    SMALL_MODEL = 3
    """The fallback model answers (`inference.fallback`)."""
    REFUSE = 4
    """Every request is refused with the reason."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """The level in force, why, and since when (seconds since the epoch)."""

    level: Level = Level.FULL
    reason: str = ""
    since_seconds: float = 0.0

    def check(self, request: Degradable) -> None:
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
                retry_after_seconds=retry_after(_REFUSAL_RETRY_AFTER_SECONDS),
            )
        if self.level >= Level.CORE_ONLY and request.priority is Priority.LOW:
            raise OverloadedError(
                f"low-priority requests are refused: {self.reason or 'degraded'}",
                reason="low_priority",
                retry_after_seconds=retry_after(_REFUSAL_RETRY_AFTER_SECONDS),
            )

    def max_tokens(self, request: GenerationRequest, degraded_max_tokens: int) -> int:
        """Return how long the answer may be."""
        if self.level >= Level.SHORT_ANSWERS and not request.canary:
            return min(request.max_tokens, degraded_max_tokens)
        return request.max_tokens
