"""The gate in front of all models: what is refused before anything is looked at in detail."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import structlog

from inference.degradation import Degradable, Degradation, Level
from inference.errors import RateLimitedError, UnavailableError
from inference.keys import Client, KeyRing
from inference.pressure import AutomaticLevel, Signals
from inference.rates import KeyedBuckets, TokenBucket, retry_after
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

# Remote addresses whose rate is remembered: some 200 bytes each.
_MOST_ADDRESSES = 4096


class Gate:
    """Draining, degradation, rates and API keys; belongs to the event loop.

    Raises:
        KeyFileError: the file of API keys cannot be used.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self.draining = False
        self.rate = TokenBucket(settings.requests_per_second, clock)
        self._canary_rate = TokenBucket(settings.canary_requests_per_second, clock)
        self.keys: KeyRing | None = None
        if settings.api_keys_file is not None:
            self.keys = KeyRing(settings.api_keys_file, clock)
        self._addresses: KeyedBuckets | None = None
        if settings.client_requests_per_second is not None:
            self._addresses = KeyedBuckets(
                settings.client_requests_per_second, _MOST_ADDRESSES, clock
            )
        self.admin = Degradation(since_seconds=wall_clock())
        self.automatic = Degradation(since_seconds=wall_clock())
        self._controller = AutomaticLevel(
            settings.degradation_raise_seconds, settings.degradation_lower_seconds
        )

    @property
    def anonymous(self) -> bool:
        """Whether it makes no difference who asks: there are no keys, and no rates by address."""
        return self.keys is None and self._addresses is None

    @property
    def calm(self) -> bool:
        """Whether `check` would let every request pass, and any number of them."""
        return not self.draining and self.rate.rate is None and self.degradation.level is Level.FULL

    @property
    def degradation(self) -> Degradation:
        """The level in force: the higher one of the administrator's and our own."""
        return self.admin if self.admin.level >= self.automatic.level else self.automatic

    def check(self, request: Degradable) -> None:
        """Apply what holds for all models.

        Raises:
            UnavailableError: the service drains, or refuses everything.
            OverloadedError: the level gives this request up, or it is one too many.
        """
        if request.canary:
            return
        if self.draining:
            raise UnavailableError(
                "the service is draining", reason="draining", retry_after_seconds=5.0
            )
        self.degradation.check(request)
        _take(self.rate, "requests")

    def check_canary_rate(self) -> None:
        """Limit the probes of others, which go ahead of users.

        Raises:
            RateLimitedError: there are too many.
        """
        _take(self._canary_rate, "canary requests")

    def authenticate(self, authorization: str) -> Client | None:
        """Return the holder of the API key; None where no keys are configured.

        Raises:
            UnauthorizedError: a key is needed and there is none, or it is unknown.
        """
        return None if self.keys is None else self.keys.authenticate(authorization)

    def check_client(self, client: Client | None, address: str) -> None:
        """Count a request of a client.

        Raises:
            RateLimitedError: it is one too many.
        """
        if client is not None:
            client.check_rate()
        elif self._addresses is not None:
            wait = self._addresses.take(address)
            if wait > 0.0:
                raise RateLimitedError(
                    "too many requests from this address",
                    reason="client_rate_limit",
                    retry_after_seconds=retry_after(wait),
                )

    def set_degradation(self, level: Level, reason: str) -> None:
        """Change the administrator's level."""
        self.admin = Degradation(level, reason, self._wall_clock())
        _log.info("degradation_changed", level=int(level), reason=reason, by="admin")

    def adapt(self, signals: Signals, *, has_fallback: bool) -> None:
        """Let the service's own signals move the automatic level."""
        self._controller.highest = Level.SMALL_MODEL if has_fallback else Level.SHORT_ANSWERS
        if not self._controller.update(self._clock(), signals):
            return
        level, reason = self._controller.level, self._controller.reason
        self.automatic = Degradation(level, reason, self._wall_clock())
        _log.warning("degradation_changed", level=int(level), reason=reason, by="automatic")


def host_memory_share() -> float:
    """Return the share of the machine's memory that nobody could still get."""
    memory = psutil.virtual_memory()
    return 1.0 - float(memory.available) / float(memory.total)


def _take(bucket: TokenBucket, what: str) -> None:
    wait = bucket.take()
    if wait > 0.0:
        raise RateLimitedError(
            f"more than {bucket.rate:g} {what} per second", retry_after_seconds=retry_after(wait)
        )
