"""Versions of served models: taken into service, watched, and taken back by hand or by themselves.

It belongs to the event loop. What a version does is told by the dispatchers (`observe`); when one
begins to serve, by the engine hosts (`loaded`), whatever the cause.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.canary import CanaryResult
from inference.engine_host import EngineHost, EngineState
from inference.errors import ConflictError, NotFoundError, ServiceError
from inference.model import ModelFormatError
from inference.release.probation import (
    Observation,
    Probation,
    ProbationRules,
    Record,
    RollbackReason,
    Verdict,
)
from inference.repository import ModelRepository
from inference.settings import InferenceSettings
from inference.worker.supervisor import RestartReason, SupervisorState

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.25


class HasResult(Protocol):
    """A canary, as far as releases are concerned."""

    result: CanaryResult


@dataclass(slots=True)
class _Serving:
    """The version that serves, what it did, and its probation while that lasts."""

    version: int
    record: Record
    probation: Probation | None = None
    failures_before: int = 0
    """Unplanned ends of the worker before this version."""


@dataclass(frozen=True, slots=True)
class ReleaseEnd:
    """How the newest probation of a model ended, for people."""

    version: int
    verdict: str
    reason: str
    message: str


class Releases:
    """See the module."""

    def __init__(
        self,
        repository: ModelRepository,
        settings: InferenceSettings,
        hosts: Mapping[str, EngineHost],
        canaries: Mapping[str, HasResult],
        clock: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._hosts = hosts
        self._canaries = canaries
        self._clock = clock
        self._rules = ProbationRules(
            settings.probation_seconds,
            settings.probation_minimum_requests,
            settings.probation_latency_ratio,
            settings.probation_false_alarm_share,
        )
        self._serving: dict[str, _Serving] = {}
        self._trusted: dict[str, int] = {}
        """Versions that come into service by a rollback: they were proven before."""
        self._ends: dict[str, ReleaseEnd] = {}
        self._going_back: dict[str, asyncio.Task[None]] = {}
        self.rollbacks: Counter[tuple[str, RollbackReason]] = Counter()

    # --- what it is told

    def observe(self, model: str, observation: Observation) -> None:
        """Take a user's request that a version answered or failed."""
        serving = self._serving.get(model)
        if serving is None:
            return
        if serving.probation is None:
            serving.record.add(observation)
        else:
            serving.probation.observe(observation)

    def loaded(self, model: str, version: int) -> None:
        """Take that a version serves from now on; a worker that came back changes nothing."""
        before = self._serving.get(model)
        trusted = self._trusted.get(model) == version
        if before is not None and before.version == version:
            return
        serving = _Serving(version, Record(), failures_before=self._failures(model))
        self._serving[model] = serving
        if before is not None and not trusted and self._rules.seconds > 0:
            serving.probation = Probation(
                version, before.version, before.record, self._rules, self._clock()
            )
            serving.record = serving.probation.record
            _log.info("probation_began", model=model, version=version, before=before.version)

    def forget(self, model: str) -> None:
        """Take that a model is unloaded."""
        self._serving.pop(model, None)
        task = self._going_back.pop(model, None)
        if task is not None:
            task.cancel()

    # --- the watch

    async def run(self) -> None:
        """Watch probations until cancelled."""
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                try:
                    self.check()
                except Exception:  # noqa: BLE001 - the watch must outlive one bad look; it is logged
                    _log.exception("probation_check_failed")
        finally:
            for task in self._going_back.values():
                task.cancel()

    def check(self) -> None:
        """Look once at every probation, and go back where it must be."""
        for model, serving in list(self._serving.items()):
            probation = serving.probation
            if probation is None or model in self._going_back:
                continue
            host = self._hosts[model]
            result = self._canaries[model].result
            probation.observe_canary(result.asked_at, result.reason if result.ok is False else "")
            status = host.supervisor.status
            given_up = status.reason if status.state is SupervisorState.FAILED else ""
            probation.observe_engine(self._failures(model) - serving.failures_before, given_up)
            verdict = probation.judge(self._clock())
            if verdict is not None:
                self._end(model, serving, probation, verdict)

    def _end(self, model: str, serving: _Serving, probation: Probation, verdict: Verdict) -> None:
        if verdict.passed:
            self._close(model, serving, verdict)
            return
        _log.warning(
            "probation_failed",
            model=model,
            version=probation.version,
            reason=verdict.reason,
            detail=verdict.message,
        )
        task = asyncio.ensure_future(self._go_back(model, serving, probation, verdict))
        self._going_back[model] = task
        task.add_done_callback(lambda _: self._going_back.pop(model, None))

    def _close(self, model: str, serving: _Serving, verdict: Verdict) -> None:
        """End a probation and say how."""
        serving.probation = None
        word = "passed" if verdict.passed else "rolled back"
        reason = verdict.reason.value if verdict.reason else ""
        self._ends[model] = ReleaseEnd(serving.version, word, reason, verdict.message)
        _log.info(
            "probation_ended",
            model=model,
            version=serving.version,
            verdict=word,
            detail=verdict.message,
        )

    async def _go_back(
        self, model: str, serving: _Serving, probation: Probation, verdict: Verdict
    ) -> None:
        reason = verdict.reason or RollbackReason.ERRORS
        try:
            await self._return_to(model, self._target(model, probation), reason, verdict.message)
        except ServiceError as error:
            # There is nothing better to serve: a bad version that answers is kept, and said to be bad.
            message = f"{verdict.message}; but going back failed: {error.message}"
            _log.error("rollback_failed", model=model, version=probation.version, detail=message)
            serving.probation = None
            self._ends[model] = ReleaseEnd(
                probation.version, "rollback failed", reason.value, message
            )
        else:
            self._close(model, serving, verdict)

    def _target(self, model: str, probation: Probation) -> int:
        """Return the version that served before, or another good one if it is gone."""
        usable = {v.version for v in self._repository.describe(model) if v.quarantined is None}
        if probation.previous in usable:
            return probation.previous
        return self._repository.previous_good(model)

    def _failures(self, model: str) -> int:
        """Return how often the worker was lost without a plan, or could not load."""
        status = self._hosts[model].supervisor.status
        lost = sum(n for why, n in status.restarts.items() if why is not RestartReason.PLANNED)
        return lost + status.load_failures

    # --- commands

    async def reload(self, model: str, version: int | None) -> int:
        """Load a version beside the running one, prove it, and swap; return the version.

        Without a version it is the newest that is not quarantined. A version that fails is
        quarantined and the old one keeps serving.

        Raises:
            NotFoundError: there is no such model or version.
            ConflictError: the version failed to load or to answer its golden prompts.
        """
        wanted = (
            self._repository.newest(model)
            if version is None
            else self._repository.require(model, version)
        )
        host = self._host(model)
        self._check_kind(host, wanted)
        loaded = await host.load_version(wanted)
        if loaded.reason:
            self._repository.quarantine(model, wanted, loaded.reason)
            _log.warning("reload_failed", model=model, version=wanted, reason=loaded.reason)
            raise ConflictError(
                f"version {wanted} was not taken into service: {loaded.reason}",
                reason="load_failed",
            )
        self._repository.activate(model, wanted)
        _log.info("reloaded", model=model, version=wanted)
        return wanted

    def _check_kind(self, host: EngineHost, version: int) -> None:
        """Refuse a version of another kind: everything in front of the worker is of the old one."""
        try:
            kind = self._repository.metadata(host.model, version).kind
        except ModelFormatError:
            return  # the worker says what is wrong with it, and it is quarantined
        if kind is not host.kind:
            raise ConflictError(
                f"version {version} is a {kind} model, but {host.model} serves as {host.kind}: "
                "unload the model first"
            )

    async def rollback(self, model: str) -> int:
        """Go back to the previous good version and quarantine the one in use.

        Raises:
            NotFoundError: the model is not served.
            ConflictError: there is nothing to go back to, or it failed to load.
        """
        self._host(model)
        previous = self._repository.previous_good(model)
        await self._return_to(model, previous, RollbackReason.MANUAL, "rolled back")
        return previous

    async def _return_to(
        self, model: str, previous: int, reason: RollbackReason, message: str
    ) -> None:
        """Swap to a version that served before, or start it if nothing can be swapped."""
        host = self._host(model)
        current = self._repository.active(model)
        self._trusted[model] = previous
        if host.up and host.state() is not EngineState.STALLED:
            await self.reload(model, previous)
        else:
            self._repository.activate(model, previous)
            host.restart(f"roll back from version {current} to {previous}")
        self._repository.quarantine(model, current, message)
        self.rollbacks[model, reason] += 1
        _log.warning(
            "rolled_back",
            model=model,
            version=previous,
            quarantined=current,
            reason=reason.value,
            detail=message,
        )

    def _host(self, model: str) -> EngineHost:
        try:
            return self._hosts[model]
        except KeyError:
            raise NotFoundError(
                f"no model {model!r}; this service has {', '.join(self._hosts)}",
                reason="model_not_found",
                param="model",
            ) from None

    # --- what it says

    def on_probation(self) -> dict[str, Probation]:
        """Return the versions under watch, by model."""
        return {m: s.probation for m, s in self._serving.items() if s.probation is not None}

    def describe(self, model: str) -> dict[str, Any]:
        """Return a model's probation and how the one before it ended, for people."""
        probation = self.on_probation().get(model)
        end = self._ends.get(model)
        return {
            "probation": probation
            and {
                "version": probation.version,
                "before": probation.previous,
                "age_seconds": round(self._clock() - probation.since, 3),
                "window_seconds": self._rules.seconds,
                "requests": probation.requests,
                "errors": probation.record.errors,
                "minimum_requests": self._rules.minimum_requests,
            },
            "last_probation": end and asdict(end),
        }


class ReleaseCollector(Collector):
    """Reads releases at the time of a scrape."""

    def __init__(self, releases: Releases, hosts: Mapping[str, EngineHost]) -> None:
        self._releases = releases
        self._hosts = hosts

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        rollbacks = CounterMetricFamily(
            "model_rollbacks",
            "Versions that were taken back and quarantined",
            labels=["model", "reason"],
        )
        watched = GaugeMetricFamily(
            "model_probation", "1 while a new version is watched", labels=["model"]
        )
        requests = GaugeMetricFamily(
            "model_probation_requests",
            "Requests that the version on probation has been judged by",
            labels=["model"],
        )
        probations = self._releases.on_probation()
        for model in list(self._hosts):
            for reason in RollbackReason:
                count = self._releases.rollbacks[model, reason]
                rollbacks.add_metric([model, reason.value], count)
            probation = probations.get(model)
            watched.add_metric([model], float(probation is not None))
            if probation is not None:
                requests.add_metric([model], probation.requests)
        yield rollbacks
        yield watched
        yield requests
