"""Which model answers: the one that was asked for, or the first usable one of its declared chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from inference.degradation import Level
from inference.settings import InferenceSettings


class FallbackReason(StrEnum):
    """The header ``X-Galen-Fallback``: why another model answers than the one asked for."""

    NONE = ""
    DEGRADATION = "degradation"
    ENGINE_DOWN = "engine_down"
    CIRCUIT_OPEN = "circuit_open"


class Route(NamedTuple):
    """The model that answers, and why it is not the one asked for."""

    model: str
    reason: FallbackReason = FallbackReason.NONE


Check = Callable[[str], FallbackReason]
"""Says why a model cannot be asked now; `FallbackReason.NONE` if it can."""


def chain_of(
    model: str,
    settings: InferenceSettings,
    served: Sequence[str],
    alike: Callable[[str], bool],
) -> tuple[str, ...]:
    """Return the models that may answer for one, best first; by default the next one served.

    Args:
        model: Who was asked for.
        settings: With the declared chains.
        served: The models there are now, in order.
        alike: Says whether a model takes and gives the same things as this one.
    """
    if model in settings.fallbacks:
        declared = settings.fallbacks[model]
        return tuple(name for name in declared if name in served and alike(name))
    following = served.index(model) + 1
    return tuple(name for name in served[following:] if alike(name))[:1]


def choose(
    model: str,
    level: int,
    settings: InferenceSettings,
    chain: tuple[str, ...],
    check: Check,
) -> Route:
    """Choose who answers for a model at a degradation level.

    Where nobody of the chain can be asked the first choice stays, so that the refusal names it.
    """
    if level >= Level.SMALL_MODEL and chain:
        usable = (name for name in chain if not check(name))
        return Route(next(usable, chain[0]), FallbackReason.DEGRADATION)
    if not may_fall_back(model, settings):
        return Route(model)
    why = check(model)
    if why:
        for name in chain:
            if not check(name):
                return Route(name, why)
    return Route(model)


def may_fall_back(model: str, settings: InferenceSettings) -> bool:
    """Say whether another model may answer for one that cannot be asked."""
    return settings.automatic_fallback or model in settings.fallbacks
