"""The service: models, admission, degradation, health and faults behind one object.

It belongs to one event loop. The HTTP layer translates protocols into `GenerationRequest` and back;
nothing here knows about HTTP beyond the status that an error carries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from inference.admin_token import admin_token_of
from inference.admission_metrics import AdmissionCollector
from inference.audit import FILE as AUDIT_FILE
from inference.audit import AuditFile, AuditLog
from inference.canary import Canary, CanaryOutcome
from inference.connections import ConnectionCounts
from inference.consistency import PeerCollector, PeerWatch
from inference.degradation import Degradable, Degradation, Level
from inference.dispatch_contract import Suspect
from inference.engine_host import EngineHost, EngineState
from inference.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServiceError,
)
from inference.fallback import Route
from inference.gate import Gate
from inference.health import HealthReport, judge
from inference.health_history import HealthHistory, HistoryCollector, Observation
from inference.metrics import CanaryCollector, EngineCollector, RequestMetrics
from inference.model import ModelKind
from inference.poison.guard import PoisonCollector, PoisonGuard
from inference.poison.sandbox import Numbered
from inference.pressure import PressureMeter
from inference.questions import Questions
from inference.release.catalogue import Catalogue
from inference.release.manager import ReleaseCollector, Releases
from inference.release.observing import of_deadline, of_message
from inference.repository import ModelRepository, bundled_repository
from inference.requests import GenerationRequest, Ticket, TicketState
from inference.routing import Routing
from inference.settings import InferenceSettings
from inference.tensor.front import TensorFront
from inference.tensor.requests import TensorTicket
from inference.tracing import TraceCollector, tracing_of
from inference.variants import VariantKeeper
from inference.worker.supervisor import SupervisorThread
from inference.worker.wire import Finished, Message

_log = structlog.get_logger(__name__)

VERSION = "0.1.0"
_DRAIN_POLL_SECONDS = 0.02
# How long what runs beside requests may take to end; the service ends all the same.
_CANCEL_SECONDS = 5.0
# Audit lines and spans of the last requests are written at the end; a disk or a collector that is
# gone does not hold us up.
_FLUSH_SECONDS = 2.0


class Countable(Protocol):
    """A request of any kind, as far as it is counted."""

    @property
    def model(self) -> str:
        """The model that was asked for."""

    @property
    def canary(self) -> bool:
        """Whether it is a probe, not user load."""


class InferenceService:
    """Everything between the protocols and the workers.

    Raises:
        NotFoundError: the repository lacks a model that should be served.
        OSError: the state directory cannot be written.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.wall_clock = wall_clock
        self.started_at = clock()
        self.repository = ModelRepository(
            settings.repository or bundled_repository(), settings.state_dir
        )
        for model in settings.models:
            self.repository.active(model)  # a missing model is an error of configuration: fail now
        self.admin_token = admin_token_of(settings)
        self.metrics = RequestMetrics()
        self.tracing = tracing_of(settings, clock, VERSION)
        self.audit = AuditLog(
            AuditFile(
                settings.state_dir / AUDIT_FILE,
                max_bytes=settings.audit_max_bytes,
                files=settings.audit_files,
            )
        )
        self.metrics.registry.register(self.audit)
        self.connections = ConnectionCounts()
        self.metrics.registry.register(self.connections)
        self.body_bytes_in_flight = 0
        """Of requests that have no answer yet."""
        if self.tracing is not None:
            self.metrics.registry.register(TraceCollector(self.tracing.export))
        self.gate = Gate(settings, clock, wall_clock)
        self._meter = PressureMeter()
        self.count_arrival = self._meter.arrived
        """Counts a user's request for the signals that move the degradation level."""
        self.poison = PoisonGuard(
            settings,
            lambda case: self.hosts[case.model].sandbox(case.version),
            lambda model: self.hosts[model].up,
            wall_clock,
        )
        self.metrics.registry.register(PoisonCollector(self.poison))
        self.questions = Questions(self)
        self.hosts = {model: self._make_host(model) for model in settings.models}
        self.canaries = {
            model: Canary(host, settings, self.questions.ask, clock)
            for model, host in self.hosts.items()
        }
        self.releases = Releases(self.repository, settings, self.hosts, self.canaries, clock)
        self.metrics.registry.register(ReleaseCollector(self.releases, self.hosts))
        self.catalogue = Catalogue(self, self.releases, self.repository, settings, clock)
        self.metrics.registry.register(CanaryCollector(self.canaries, clock))
        self.metrics.registry.register(
            EngineCollector(self.hosts, self.health, lambda: self.degradation.level, clock)
        )
        self.metrics.registry.register(AdmissionCollector(self.hosts, self.gate))
        self.routing = Routing(settings, self.gate, self._meter, self.hosts, self.canaries)
        self.history = HealthHistory(self._observe, clock, wall_clock)
        self.metrics.registry.register(HistoryCollector(self.history))
        self.peers = PeerWatch(
            settings.peers,
            self.questions.answer,
            self.questions.for_peers,
            settings.peer_timeout_seconds,
            settings.failure_threshold,
            clock,
        )
        self.metrics.registry.register(PeerCollector(self.peers))
        self.tensors = TensorFront(self)
        self.leaving = False
        """Set at the first signal: not ready any more, while accepted requests are answered."""
        self.tasks: list[asyncio.Task[None]] = []
        self._canary_tasks: dict[str, asyncio.Task[None]] = {}
        self._supervisor = SupervisorThread(
            [host.supervisor for host in self.hosts.values()], settings.supervisor_interval_seconds
        )

    def _make_host(self, model: str) -> EngineHost:
        return EngineHost(
            model,
            self.settings,
            self.repository,
            clock=self.clock,
            on_end=partial(self._on_end, model),
            wake_supervisor=self._wake,
            on_down=self._on_down,
            on_loaded=self._on_loaded,
            on_work=self._on_work,
        )

    # --- life

    async def start(self) -> None:
        """Start workers and canaries; returns before the models are loaded."""
        loop = asyncio.get_running_loop()
        for host in self.hosts.values():
            host.bind(loop)
        self._supervisor.start()
        self.audit.start()
        for model, canary in self.canaries.items():
            self._canary_tasks[model] = loop.create_task(canary.run())
        self.tasks = [loop.create_task(self.releases.run())]
        self.tasks.append(loop.create_task(self.poison.investigator.run()))
        variants = VariantKeeper(
            self.hosts, self.settings.degraded_variant, lambda: self.degradation.level
        )
        self.tasks.append(loop.create_task(variants.run()))
        if self.settings.automatic_degradation:
            self.tasks.append(loop.create_task(self.routing.adapt()))
        watch = self.history.run(self.settings.health_interval_seconds)
        peers = self.peers.run(self.settings.peer_interval_seconds)
        self.tasks += [loop.create_task(watch), loop.create_task(peers)]
        _log.info("service_started", models=list(self.hosts), repository=str(self.repository.root))

    async def stop(self) -> None:
        """Finish accepted requests as far as time allows, then end the workers."""
        self.gate.draining = True
        deadline = self.clock() + self.settings.drain_seconds
        while not self.idle and self.clock() < deadline:  # noqa: ASYNC110 - a few times, once
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        tasks = [*self.tasks, *self._canary_tasks.values()]
        for task in tasks:
            task.cancel()
        _, lasting = await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
        if lasting:
            names = sorted(str(task.get_coro()) for task in lasting)
            _log.error("tasks_do_not_end", tasks=names)
        for host in self.hosts.values():
            host.stop()
        self._supervisor.finish()
        limit = 2 * self.settings.terminate_grace_seconds + 1.0
        await asyncio.to_thread(self._supervisor.join, limit)
        await asyncio.to_thread(self.audit.close, _FLUSH_SECONDS)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.export.close, _FLUSH_SECONDS)
        _log.info("service_stopped")

    @property
    def idle(self) -> bool:
        """Whether no user request waits or runs."""
        return all(host.dispatcher.idle for host in self.hosts.values())

    @property
    def supervised(self) -> bool:
        """Whether the supervisor's thread lives; without it nothing would heal."""
        return self._supervisor.is_alive()

    def _wake(self) -> None:
        self._supervisor.wake()

    # --- models that come and go

    def adopt(self, model: str) -> EngineHost:
        """Make a model's host, canary and supervisor; its worker is not started yet."""
        host = self._make_host(model)
        loop = asyncio.get_running_loop()
        host.bind(loop)
        canary = Canary(host, self.settings, self.questions.ask, self.clock)
        self.hosts[model], self.canaries[model] = host, canary
        self._supervisor.add(host.supervisor)
        self._canary_tasks[model] = loop.create_task(canary.run())
        return host

    def release(self, model: str) -> None:
        """Let go of a model whose worker has ended."""
        self._canary_tasks.pop(model).cancel()
        self.canaries.pop(model)
        self._supervisor.remove(self.hosts.pop(model).supervisor)

    async def proves(self, model: str) -> str:
        """Ask a golden example; return what was wrong, or nothing."""
        canary = self.canaries[model]
        right = await canary.check() is CanaryOutcome.RIGHT
        return "" if right else canary.result.reason

    # --- requests

    def host(self, model: str) -> EngineHost:
        """Return a model's host.

        Raises:
            NotFoundError: the model is not served.
        """
        try:
            return self.hosts[model]
        except KeyError:
            known = ", ".join(self.hosts)
            raise NotFoundError(
                f"no model {model!r}; this service has {known}",
                reason="model_not_found",
                param="model",
            ) from None

    @property
    def default_model(self) -> str:
        """The model that answers when a request names none."""
        return self.settings.models[0]

    def submit(self, request: GenerationRequest) -> tuple[Ticket, Route]:
        """Admit a request; return its ticket and who will answer.

        Raises:
            ServiceError: it is refused; a refusal costs no engine time.
        """
        self.host(request.model)
        try:
            self.check_admission(request)
            route = self.route(request.model, canary=request.canary)
            host = self.hosts[route.model]
            if not request.golden:
                self.poison.check(request, route.model, host.version)
            host.check_available(request.deadline - self.clock(), golden=request.golden)
            limit = self.settings.degraded_max_tokens
            max_tokens = self.degradation.max_tokens(request, limit)
            ticket = host.generation.submit(request, max_tokens)
        except ServiceError as error:
            self.count_refusal(request, error)
            raise
        if route.reason:
            self.metrics.fell_back(request.model, route.model, route.reason.value)
        return ticket, route

    def check_admission(self, request: Degradable) -> None:
        """Count an arrival, and apply what holds for all models.

        Raises:
            ServiceError: it is refused.
        """
        if not request.canary:
            self._meter.arrived()
        self.gate.check(request)

    def route(self, model: str, *, canary: bool) -> Route:
        """Return who answers for a model now; canaries ask the model that they name."""
        return Route(model) if canary else self.routing.route(model)

    def count_refusal(self, request: Countable, error: ServiceError) -> None:
        """Count a user's request that admission refused, or put out again."""
        if not request.canary and not isinstance(error, InvalidRequestError):
            self.metrics.rejected(request.model, error.reason)
            self._meter.refused(error.reason)

    def cancel(self, ticket: Ticket | TensorTicket, model: str) -> None:
        """Give up a request whose client has left; one that is done stays done."""
        if isinstance(ticket, TensorTicket):
            self.tensors.cancel(ticket, model)
            return
        if ticket.state is TicketState.DONE:
            return
        self.hosts[model].generation.cancel(ticket)
        if not ticket.request.canary:
            self.metrics.cancelled(ticket.request.model)

    @property
    def degradation(self) -> Degradation:
        """The level in force."""
        return self.gate.degradation

    @property
    def draining(self) -> bool:
        """Whether new requests are refused while the accepted ones finish."""
        return self.gate.draining

    def level_of(self, request: GenerationRequest | TensorTicket, model: str) -> int:
        """Return the degradation that an answer shows: the level, or 3 if a fallback answers."""
        if model != request.model:
            return max(self.degradation.level, Level.SMALL_MODEL)
        return self.degradation.level

    def _on_end(self, model: str, ticket: Ticket, event: Finished | ServiceError) -> None:
        request = ticket.request
        if request.canary:
            return
        late = isinstance(event, DeadlineExceededError)
        if late and ticket.state is TicketState.RUNNING:
            self._on_late(model, ticket)
        if isinstance(event, Finished):
            self.metrics.decoded(ticket, event)
            allowed = request.deadline - ticket.enqueued_at
            self._meter.waited((ticket.dispatched_at - ticket.enqueued_at) / allowed)
        elif isinstance(event, OverloadedError):
            self.count_refusal(request, event)
        elif late and ticket.state is TicketState.QUEUED:
            self._meter.expired()

    def _on_late(self, model: str, ticket: Ticket) -> None:
        """Tell of a deadline that passed on the engine."""
        had = self.clock() - ticket.dispatched_at
        seen = of_deadline(had, ticket.request.deadline - ticket.enqueued_at)
        if seen is not None:
            self.releases.observe(model, seen)

    def _on_down(
        self,
        model: str,
        version: int,
        effect: str,
        suspects: Sequence[tuple[Suspect, Numbered]],
    ) -> None:
        self.poison.went_down(model, version, effect, suspects)

    def _on_loaded(self, model: str, version: int, *, fresh: bool) -> None:
        self.poison.quarantine.version_changed(model, version)
        self.canaries[model].loaded(fresh=fresh)
        self.releases.loaded(model, version)

    def _on_work(self, model: str, message: Message, beside: int) -> None:
        seen = of_message(message, beside)
        if seen is not None:
            self.releases.observe(model, seen)

    def _observe(self) -> dict[tuple[str, str], Observation]:
        """Return what every layer of every model is now, for the history."""
        seen = {}
        for model, host in self.hosts.items():
            for name, layer in self.health_of(model).layers.items():
                seen[model, name] = Observation(layer.word, layer.reason)
            # A change between idle and busy is work, not health.
            state = host.state()
            calm = state in {EngineState.IDLE, EngineState.BUSY}
            reason = host.supervisor.status.reason
            seen[model, "state"] = Observation("serving" if calm else state.value, reason)
        reason = self.not_ready_reason()
        seen["", "ready"] = Observation("failing" if reason else "ok", reason)
        return seen

    # --- health

    def variant_note(self, model: str) -> str:
        """Return the variant that a model runs as; empty is the model itself."""
        host = self.hosts.get(model)
        return "" if host is None or host.ready is None else host.ready.variant

    def device_note(self, model: str) -> str:
        """Return what an answer says about the device: nothing, unless it is not the wanted one."""
        host = self.hosts.get(model)
        if host is None or host.ready is None or not host.device_fallback:
            return ""
        return f"{host.ready.device} (wanted {host.ready.wanted_device})"

    @property
    def serving_model(self) -> str:
        """The model that answers requests for the default model now."""
        if self.degradation.level < Level.SMALL_MODEL:
            return self.default_model
        return self.route(self.default_model, canary=False).model

    def health(self) -> HealthReport:
        """Judge the five layers of the serving model."""
        return self.health_of(self.serving_model)

    def health_of(self, model: str) -> HealthReport:
        """Judge the five layers of a model."""
        return judge(self.hosts[model], self.canaries[model], self.settings, self.clock())

    def not_ready_reason(self) -> str:
        """Return why no traffic should come, or nothing."""
        if self.draining or self.leaving:
            return "draining"
        if self.degradation.level >= Level.REFUSE:
            return f"degradation level 4: {self.degradation.reason}"
        report = self.health()
        bad = [
            f"{name}: {layer.reason}"
            for name, layer in report.layers.items()
            if not layer.ok and not layer.tolerated
        ]
        if self.peers.outvoted:
            bad.append(self.peers.outvoted)
        return "; ".join(bad)

    @property
    def started(self) -> bool:
        """Whether the default model once answered a golden prompt."""
        return self.canaries[self.default_model].passed_once

    # --- administration

    def set_degradation(self, level: Level, reason: str) -> None:
        """Change the administrator's degradation level."""
        self.gate.set_degradation(level, reason)

    def set_limits(self, changes: dict[str, Any]) -> None:
        """Change limits; None sets a limit back to the configured one, or lifts the rate limit."""
        for host in self.hosts.values():
            dispatcher = host.dispatcher
            if "max_queue" in changes:
                dispatcher.queue.max_queue = changes["max_queue"] or self._max_queue(host)
            if "max_slots" in changes:
                dispatcher.max_slots = changes["max_slots"] or self._slots(host)
                dispatcher.pump()
        if "requests_per_second" in changes:
            self.gate.rate.set_rate(changes["requests_per_second"])
        _log.info("limits_changed", **changes)

    def _slots(self, host: EngineHost) -> int:
        tensor = host.kind is ModelKind.TENSOR
        return self.settings.tensor_max_batch_rows if tensor else self.settings.slots

    def _max_queue(self, host: EngineHost) -> int:
        tensor = host.kind is ModelKind.TENSOR
        return self.settings.tensor_max_queue if tensor else self.settings.max_queue

    def drain(self, *, enabled: bool) -> None:
        """Refuse new requests, or accept them again."""
        self.gate.draining = enabled
        _log.info("drain_changed", drain=enabled)
