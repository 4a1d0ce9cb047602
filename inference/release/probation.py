"""The probation of a version that has just been taken into service.

Its errors and times are compared with those of the version before. Only what a version can be blamed
for is observed: outputs that the engine refused, and the time that the engine took per token or per
call, among requests of the same kind and with as many others beside them; waiting in the queue is
the load's doing.

The data are looked at as they come in, which finds a bad version early, but would find a good one
guilty sooner or later: n looks at a level of 1% are n chances to be wrong. So the k-th look has the
level alpha / (k (k + 1)), which adds up to alpha over any number of looks, and looks become rarer as
the requests grow (spending the error by looks, after Lan and DeMets, "Discrete sequential boundaries
for clinical trials", 1983, with a bound that needs no joint distribution).

Limits: requests computed together are not independent, so the times' p-value flatters; the margin is
what protects against that. A version that is slower for some prompts only is found if they are half
of a stratum. Where the old version answered too little, times are not judged, and errors are judged
against 5%.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from inference.release.hypotheses import (
    comparable,
    more_errors,
    more_than_share,
    ratio_of_medians,
    slower,
)

# Enough for every test to have its say; more only makes a comparison with the distant past.
RECORD_LENGTH = 1000
# Looks come when the requests have grown by half.
_GROWTH = 1.5
# Where the rank-sum's normal approximation begins to hold.
_LEAST_TIMES = 10
# With too little of the old version to compare with, this share of errors is still no scandal.
_TOLERATED_ERROR_SHARE = 0.05
# A probation without enough traffic ends after this many times its length.
_PATIENCE = 10.0
# One crash may be a poison request's doing.
_ENGINE_FAILURES = 2


class RollbackReason(StrEnum):
    """The label ``reason`` of ``model_rollbacks_total``."""

    ERRORS = "errors"
    LATENCY = "latency"
    CANARY = "canary"
    ENGINE = "engine"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Observation:
    """One request, as far as a version can be blamed for it."""

    failed: bool
    stratum: Hashable = None
    """What makes its time comparable with another's."""
    seconds: float | None = None
    """Time of the engine per token or call; None where it says nothing."""


@dataclass(frozen=True, slots=True)
class ProbationRules:
    """How a version is judged."""

    seconds: float
    """Shortest probation."""
    minimum_requests: int
    latency_ratio: float
    """How much slower a version may be."""
    false_alarm_share: float
    """Good versions that are rolled back, at most; half of it for errors, half for times."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a probation: passed, or the reason to go back."""

    reason: RollbackReason | None
    message: str

    @property
    def passed(self) -> bool:
        """Whether the version stays."""
        return self.reason is None


class Record:
    """The newest observations of a version, at most `RECORD_LENGTH`."""

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._observations = deque(observations, RECORD_LENGTH)

    def add(self, observation: Observation) -> None:
        """Take an observation."""
        self._observations.append(observation)

    def __len__(self) -> int:
        return len(self._observations)

    @property
    def errors(self) -> int:
        """Observations of a failure."""
        return sum(item.failed for item in self._observations)

    def times(self) -> Mapping[Hashable, list[float]]:
        """Return the times by stratum."""
        strata: dict[Hashable, list[float]] = defaultdict(list)
        for item in self._observations:
            if item.seconds is not None:
                strata[item.stratum].append(item.seconds)
        return strata


class Probation:
    """One version under watch."""

    def __init__(
        self, version: int, previous: int, baseline: Record, rules: ProbationRules, now: float
    ) -> None:
        self.version = version
        self.previous = previous
        self.since = now
        self.rules = rules
        self.record = Record()
        self.requests = 0
        self._baseline = baseline
        self._looks = 0
        self._next_look = rules.minimum_requests
        self._canary_problem = ""
        self._engine_failures = 0
        self._engine_problem = ""

    def observe(self, observation: Observation) -> None:
        """Take a request of the new version."""
        self.record.add(observation)
        self.requests += 1

    def observe_canary(self, asked_at: float, problem: str) -> None:
        """Take what the canary believes; what it asked before this version served says nothing."""
        self._canary_problem = problem if asked_at > self.since else ""

    def observe_engine(self, failures: int, given_up: str = "") -> None:
        """Take how often the worker was lost without a plan, and why it is not started any more."""
        self._engine_failures = failures
        self._engine_problem = given_up

    def judge(self, now: float) -> Verdict | None:
        """Return the verdict, or None while there is none; cheap unless a look is due."""
        verdict = self._judge_engine()
        if verdict is not None:
            return verdict
        over = now - self.since >= self.rules.seconds and self.requests >= self._minimum
        if self.requests >= self._next_look or over:
            self._next_look = math.ceil(_GROWTH * self.requests)
            verdict = self._look()
        if verdict is None and over:
            return Verdict(None, f"{self.requests} requests answered no worse than before")
        if verdict is None and now - self.since >= _PATIENCE * self.rules.seconds:
            return Verdict(None, f"{self.requests} requests are too few to compare; canary is fine")
        return verdict

    @property
    def _minimum(self) -> int:
        return self.rules.minimum_requests

    def _judge_engine(self) -> Verdict | None:
        if self._canary_problem:
            return Verdict(RollbackReason.CANARY, f"the canary fails: {self._canary_problem}")
        if self._engine_problem:
            return Verdict(RollbackReason.ENGINE, self._engine_problem)
        if self._engine_failures >= _ENGINE_FAILURES:
            count = self._engine_failures
            return Verdict(RollbackReason.ENGINE, f"the worker was lost {count} times")
        return None

    def _look(self) -> Verdict | None:
        """Spend one look on both tests."""
        self._looks += 1
        level = self.rules.false_alarm_share / 2 / (self._looks * (self._looks + 1))
        return self._look_at_errors(level) or self._look_at_times(level)

    def _look_at_errors(self, level: float) -> Verdict | None:
        new, old = self.record, self._baseline
        if len(old) >= self._minimum:
            p = more_errors(new.errors, len(new), old.errors, len(old))
            before = f"{old.errors} of {len(old)} before"
        else:
            p = more_than_share(new.errors, len(new), _TOLERATED_ERROR_SHARE)
            before = f"{_TOLERATED_ERROR_SHARE:.0%} are tolerated"
        if p > level:
            return None
        message = f"{new.errors} of {len(new)} requests failed, {before} (p = {p:.2g})"
        return Verdict(RollbackReason.ERRORS, message)

    def _look_at_times(self, level: float) -> Verdict | None:
        new, old = self.record.times(), self._baseline.times()
        if min(comparable(new, old)) < _LEAST_TIMES:
            return None
        p = slower(new, old, self.rules.latency_ratio)
        if p > level:
            return None
        ratio = ratio_of_medians(new, old)
        message = f"the engine takes {ratio:.2f} times as long as before (p = {p:.2g})"
        return Verdict(RollbackReason.LATENCY, message)
