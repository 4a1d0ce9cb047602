"""The canary: golden examples through the real queue, judged by the value of the whole answer.

What comes back is told apart. A wrong value speaks against the engine at once. A failure has to
repeat itself before it does. Being refused or late while the engine makes progress is load, not
damage, and says nothing; only the age of the last proof then speaks. Asking costs capacity, which is
measured and kept below a share.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from inference.engine_host import EngineHost
from inference.errors import DeadlineExceededError, OverloadedError, ServiceError
from inference.model import GoldenPrompt, GoldenTensors
from inference.settings import InferenceSettings
from inference.waiting import wait_at_most

_log = structlog.get_logger(__name__)

Golden = GoldenPrompt | GoldenTensors
Ask = Callable[[str, Golden], Awaitable[str]]
"""Puts a golden example to a model; says what was wrong with the answer, or nothing."""

# A doubtful outcome is looked into soon, so that thresholds do not cost time to detect.
_DOUBT_SECONDS = 0.5
_DOWN_POLL_SECONDS = 0.05
_COST_WINDOW_SECONDS = 60.0
_COST_SMOOTHING = 0.3


class CanaryOutcome(StrEnum):
    """What one golden example said; the label ``outcome`` of ``canary_checks_total``."""

    RIGHT = "right"
    WRONG = "wrong"
    FAILED = "failed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """What is believed now, and what the newest example said."""

    ok: bool | None
    """None while nothing is known."""
    reason: str = ""
    proven_at: float = 0.0
    """When an answer was last right."""
    asked_at: float = 0.0
    seconds: float = 0.0
    """How long the newest answer took, waiting included."""


class Belief:
    """Hysteresis over outcomes: how many it takes to change what is believed."""

    def __init__(self, failure_threshold: int, success_threshold: int) -> None:
        self._failure_threshold = failure_threshold
        self._success_threshold = success_threshold
        self.ok: bool | None = None
        self._in_a_row = 0
        self._last: bool | None = None

    def take(self, outcome: CanaryOutcome) -> bool | None:
        """Take an outcome and return what is believed after it."""
        if outcome is CanaryOutcome.BUSY:
            return self.ok
        good = outcome is CanaryOutcome.RIGHT
        self._in_a_row = self._in_a_row + 1 if good is self._last else 1
        self._last = good
        threshold = self._success_threshold if good else self._failure_threshold
        # A wrong value needs no second one, and the first right one after a start is enough.
        at_once = outcome is CanaryOutcome.WRONG or (good and self.ok is None)
        if at_once or self._in_a_row >= threshold:
            self.ok = good
        return self.ok


class Cost:
    """The share of the engine's capacity that golden examples take, and the interval it allows."""

    def __init__(self, limit_share: float) -> None:
        self._limit_share = limit_share
        self._recent: deque[tuple[float, float]] = deque()
        self._one: float | None = None

    def observe(self, now: float, seconds: float) -> None:
        """Take the slot time of one example, as a part of all slots."""
        self._one = (
            seconds if self._one is None else self._one + _COST_SMOOTHING * (seconds - self._one)
        )
        self._recent.append((now, seconds))

    def interval_seconds(self, wanted: float) -> float:
        """Return the wanted interval, or a longer one that keeps the share."""
        return max(wanted, (self._one or 0.0) / self._limit_share)

    def share(self, now: float) -> float:
        """Return the share over the last minute."""
        while self._recent and self._recent[0][0] < now - _COST_WINDOW_SECONDS:
            self._recent.popleft()
        return sum(seconds for _, seconds in self._recent) / _COST_WINDOW_SECONDS


class Canary:
    """Asks one model its golden examples, in turn, for ever."""

    def __init__(
        self,
        host: EngineHost,
        settings: InferenceSettings,
        ask: Ask,
        clock: Callable[[], float],
    ) -> None:
        self._host = host
        self._settings = settings
        self._ask = ask
        self._clock = clock
        self._turns = itertools.count()
        self._belief = self._new_belief()
        self._wake = asyncio.Event()
        self.cost = Cost(settings.canary_capacity_share)
        self.result = CanaryResult(None)
        self.outcomes = dict.fromkeys(CanaryOutcome, 0)
        self.passed_once = False

    async def run(self) -> None:
        """Ask at the interval until cancelled; at once when the engine comes up."""
        while True:
            if self._host.up:
                self._wake.clear()
                outcome = await self.check()
                await self._pause(self._pause_seconds(outcome))
            else:
                self._believe_nothing()
                await self._pause(_DOWN_POLL_SECONDS)

    def loaded(self, *, fresh: bool) -> None:
        """Ask at once, for a version was loaded; ``fresh`` if by a new worker.

        A version that was swapped in has been proven before the swap; what is believed stays.
        """
        if fresh:
            self._believe_nothing()
        self._wake.set()

    def _believe_nothing(self) -> None:
        self._belief = self._new_belief()
        self.result = CanaryResult(None)

    async def _pause(self, seconds: float) -> None:
        await wait_at_most(self._wake, seconds)

    async def check(self) -> CanaryOutcome:
        """Ask one golden example and judge the answer."""
        metadata = self._host.metadata()
        if metadata is None or not metadata.golden:
            return self._judge(
                self._clock(), CanaryOutcome.WRONG, "the model has no golden prompts"
            )
        golden = metadata.golden[next(self._turns) % len(metadata.golden)]
        started, spent = self._clock(), self._host.dispatcher.golden_seconds
        try:
            reason = await self._ask(self._host.model, golden)
        except (OverloadedError, DeadlineExceededError) as error:
            moves = self._host.step_age_seconds() <= self._settings.stall_seconds
            outcome = CanaryOutcome.BUSY if moves else CanaryOutcome.FAILED
            return self._judge(started, outcome, f"{error.reason}: {error.message}")
        except ServiceError as error:
            return self._judge(started, CanaryOutcome.FAILED, f"{error.reason}: {error.message}")
        finally:
            slots = max(1, self._host.dispatcher.max_slots)
            took = self._host.dispatcher.golden_seconds - spent
            self.cost.observe(self._clock(), took / slots)
        outcome = CanaryOutcome.WRONG if reason else CanaryOutcome.RIGHT
        return self._judge(started, outcome, reason)

    @property
    def interval_seconds(self) -> float:
        """Time between two examples while all is well."""
        return self.cost.interval_seconds(self._settings.canary_interval_seconds)

    @property
    def age_limit_seconds(self) -> float:
        """How old the last proof may be."""
        return 2 * self.interval_seconds + self._settings.canary_deadline_seconds

    def _pause_seconds(self, outcome: CanaryOutcome) -> float:
        if outcome is CanaryOutcome.RIGHT and self.result.ok:
            return self.interval_seconds
        return min(_DOUBT_SECONDS, self._settings.canary_interval_seconds)

    def _judge(self, started: float, outcome: CanaryOutcome, reason: str) -> CanaryOutcome:
        self.outcomes[outcome] += 1
        before, now = self.result, self._clock()
        right = outcome is CanaryOutcome.RIGHT
        ok = self._belief.take(outcome)
        proven_at = now if right else before.proven_at
        self.result = CanaryResult(ok, reason, proven_at, now, now - started)
        self.passed_once = self.passed_once or right
        if before.ok is not ok or not right:
            _log.info(
                "canary_checked", model=self._host.model, outcome=outcome.value, ok=ok,
                reason=reason, seconds=round(now - started, 4),
            )  # fmt: skip
        return outcome

    def _new_belief(self) -> Belief:
        return Belief(self._settings.failure_threshold, self._settings.success_threshold)
