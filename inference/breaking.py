"""Circuit breakers of models: made from the settings, logged, and asked in one way by every kind."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from inference.breaker import BreakerOptions, BreakerState, CircuitBreaker, Permit
from inference.errors import UnavailableError
from inference.rates import retry_after
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)


def make_breaker(
    model: str, settings: InferenceSettings, clock: Callable[[], float]
) -> CircuitBreaker | None:
    """Return a model's breaker; None where the settings switch them off."""
    if not settings.circuit_breaker:
        return None

    def log(before: BreakerState, after: BreakerState, reason: str) -> None:
        _log.warning(
            "circuit_breaker_changed",
            model=model,
            before=before.value,
            after=after.value,
            reason=reason,
        )

    options = BreakerOptions(
        settings.breaker_window_seconds,
        settings.breaker_least_requests,
        settings.breaker_failure_share,
        settings.breaker_open_seconds,
    )
    return CircuitBreaker(options, clock, log)


def ask_breaker(breaker: CircuitBreaker | None, model: str, *, canary: bool) -> Permit:
    """Return the breaker's permit; canaries pass in any case, and may be its probe.

    Raises:
        UnavailableError: the breaker is open, or its one probe is under way.
    """
    if breaker is None:
        return Permit.PASS
    permit = breaker.ask()
    if permit is not Permit.REFUSED:
        return permit
    if canary:
        return Permit.PASS
    raise UnavailableError(
        f"{model} failed too often and is given a pause",
        reason="circuit_open",
        retry_after_seconds=retry_after(breaker.retry_after_seconds),
    )
