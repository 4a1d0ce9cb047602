"""One served model: its supervisor, its dispatcher, its version, and what they say together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Protocol, cast

import structlog

from inference.dispatch import Dispatcher, TicketListener
from inference.dispatch_contract import EngineDispatcher, Suspect
from inference.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from inference.model import ModelFormatError, ModelKind, ModelMetadata
from inference.poison.sandbox import Numbered, Sandbox, SandboxLimits, numbered
from inference.rates import RETRY_AFTER_LIMIT_SECONDS, retry_after
from inference.repository import ModelRepository
from inference.settings import InferenceSettings
from inference.tensor.dispatch import TensorDispatcher
from inference.worker.frames import BatchDone
from inference.worker.heartbeat import Heartbeat, LoadPhase, WorkerState
from inference.worker.launch import LaunchedWorker, WorkerProcess
from inference.worker.link import WorkerLink
from inference.worker.supervisor import (
    RestartReason,
    Supervisor,
    SupervisorState,
    SupervisorStatus,
    Totals,
    step_age_seconds,
)
from inference.worker.wire import (
    ClearCache,
    DeviceChanged,
    Failed,
    Fault,
    Finished,
    InjectFault,
    Load,
    Loaded,
    Message,
    Ready,
    Start,
    Token,
)

_log = structlog.get_logger(__name__)

DownListener = Callable[[str, int, str, Sequence[tuple[Suspect, Numbered]]], None]
"""Told the model, its version, ``crash`` or ``hang``, and the requests that the worker worked on."""

WorkListener = Callable[[str, Message, int], None]
"""Told the model, what its worker says about work, and how many requests the worker has."""


class LoadedListener(Protocol):
    """Told when a version serves."""

    def __call__(self, model: str, version: int, *, fresh: bool) -> None:
        """``fresh`` means a new worker, not a version swapped in."""
        ...


# The lowest priority there is: trials must not slow the service down.
_SANDBOX_NICE = 19

# Used for Retry-After until the first load was measured.
_ASSUMED_LOAD_SECONDS = 2.0


class EngineState(StrEnum):
    """The label ``state`` of ``engine_state``."""

    IDLE = "idle"
    BUSY = "busy"
    STARTING = "starting"
    DRAINING = "draining"
    STALLED = "stalled"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNLOADED = "unloaded"


class EngineHost:
    """A model and the engine behind it. Methods belong to the event loop unless they say so."""

    def __init__(
        self,
        model: str,
        settings: InferenceSettings,
        repository: ModelRepository,
        *,
        clock: Callable[[], float],
        on_end: TicketListener,
        wake_supervisor: Callable[[], None],
        on_down: DownListener,
        on_loaded: LoadedListener,
        on_work: WorkListener,
    ) -> None:
        self.model = model
        self._settings = settings
        self._repository = repository
        self._clock = clock
        self._wake_supervisor = wake_supervisor
        self._on_down = on_down
        self._on_loaded = on_loaded
        self._on_work = on_work
        self.kind = self._find_kind()
        self.dispatcher: EngineDispatcher
        if self.kind is ModelKind.TENSOR:
            self.dispatcher = TensorDispatcher(model, settings, clock)
        else:
            self.dispatcher = Dispatcher(model, settings, clock, on_end)
        self.supervisor = Supervisor(model, settings, self._launch, self, clock)
        self.ready: Ready | None = None
        """What the running worker loaded; None while none is ready."""
        self.closed = ""
        """Why it takes no requests although nothing is wrong: it is being unloaded, or is."""
        self.load_seconds = 0.0
        self.reload_failures = 0
        self.persistent_faults: list[Fault] = []
        self._clear_when_ready = False
        self._connecting: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: WorkerLink | None = None
        self._worker: LaunchedWorker | None = None
        self._reload: asyncio.Future[Loaded] | None = None
        self._metadata: tuple[int, ModelMetadata] | None = None

    def _find_kind(self) -> ModelKind:
        """Return the kind of the version in use; one that cannot be read will not load either."""
        try:
            return self._repository.metadata(self.model, self._repository.active(self.model)).kind
        except ModelFormatError as error:
            _log.warning("model_metadata_unreadable", model=self.model, error=str(error))
            return ModelKind.DECODER

    @property
    def generation(self) -> Dispatcher:
        """The dispatcher of a language model.

        Raises:
            InvalidRequestError: it is another kind of model.
        """
        if isinstance(self.dispatcher, Dispatcher):
            return self.dispatcher
        raise InvalidRequestError(
            f"{self.model} computes on tensors; ask it by /v2/models/{self.model}/infer",
            param="model",
        )

    def alike(self, other: EngineHost) -> bool:
        """Say whether another model takes and gives the same things, so that it can stand in."""
        if self.kind is not other.kind:
            return False
        if self.kind is not ModelKind.TENSOR:
            return True
        own, theirs = self.tensors, other.tensors
        same = own.inputs == theirs.inputs and own.outputs == theirs.outputs
        return same and bool(own.inputs)

    @property
    def tensors(self) -> TensorDispatcher:
        """The dispatcher of a tensor model.

        Raises:
            InvalidRequestError: it is another kind of model.
        """
        if isinstance(self.dispatcher, TensorDispatcher):
            return self.dispatcher
        raise InvalidRequestError(f"{self.model} is a language model", param="model")

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop that everything here runs on."""
        self._loop = loop

    # --- what it says

    def metadata(self) -> ModelMetadata | None:
        """Return ``model.toml`` of the version in use, or None if it cannot be read."""
        version = self.version
        if self._metadata is None or self._metadata[0] != version:
            try:
                self._metadata = (version, self._repository.metadata(self.model, version))
            except ModelFormatError as error:
                _log.warning("model_metadata_unreadable", model=self.model, error=str(error))
                return None
        return self._metadata[1]

    @property
    def version(self) -> int:
        """The version that serves, or that will once it is loaded; the last one if none is left."""
        if self.ready:
            return self.ready.version
        try:
            return self._repository.active(self.model)
        except NotFoundError:
            return self._repository.choice(self.model) or 0

    def heartbeat(self) -> Heartbeat:
        """Return the worker's newest record; an empty one without a worker."""
        worker = self.supervisor.status.worker
        return worker.heartbeat() if worker is not None else Heartbeat()

    def totals(self) -> Totals:
        """Return the counters over all workers so far; they never go down."""
        status = self.supervisor.status
        if status.worker is None:
            return status.totals
        return status.totals.plus(status.worker.heartbeat(), status.usage.cpu_seconds)

    def step_age_seconds(self) -> float:
        """Return the time since the last finished step while work is pending; 0 when idle."""
        return step_age_seconds(self.heartbeat(), self.dispatcher.pending_since, self._clock())

    def state(self) -> EngineState:
        """Return what the engine does."""
        status = self.supervisor.status
        match status.state:
            case SupervisorState.FAILED | SupervisorState.STOPPED:
                unloaded = self.closed and status.state is SupervisorState.STOPPED
                return EngineState.UNLOADED if unloaded else EngineState.FAILED
            case SupervisorState.STARTING:
                first = not status.restarts and not status.load_failures
                return EngineState.STARTING if first else EngineState.RESTARTING
            case SupervisorState.TERMINATING | SupervisorState.BACKOFF:
                return EngineState.RESTARTING
        record = self.heartbeat()
        if self.step_age_seconds() > self._settings.stall_seconds:
            return EngineState.STALLED
        if record.state == WorkerState.DRAINING:
            return EngineState.DRAINING
        return EngineState.BUSY if record.batch_size else EngineState.IDLE

    def load_phase(self) -> LoadPhase:
        """Return where a load is that goes on now."""
        if self.supervisor.status.state is not SupervisorState.STARTING:
            return LoadPhase.NONE
        return LoadPhase(self.heartbeat().load_phase)

    @property
    def device_fallback(self) -> str:
        """Why the model is not on the device that was wanted; empty while it is."""
        ready = self.ready
        if ready is None or ready.device == ready.wanted_device:
            return ""
        reason = ready.device_reason or "the library gave no reason"
        return f"runs on {ready.device}, not on {ready.wanted_device}: {reason}"

    @property
    def up(self) -> bool:
        """Whether the worker lives and its model is loaded."""
        return self.ready is not None and self.supervisor.status.state is SupervisorState.RUNNING

    @property
    def works_now(self) -> bool:
        """Whether `check_available` would let any request pass, however little time it has."""
        return not self.closed and self._delay(self.supervisor.status)[0] <= 0.0

    def check_available(self, remaining_seconds: float = math.inf, *, golden: bool = False) -> None:
        """Refuse at once what no engine will answer in time; golden examples prove a model first.

        Raises:
            UnavailableError: the engine is down and not by plan, stands still or loads for longer
                than the request has, or the model was unloaded.
        """
        if self.closed and not golden:
            raise UnavailableError(
                f"{self.model} {self.closed}; POST /v2/repository/models/{self.model}/load",
                reason="model_unloaded",
            )
        status = self.supervisor.status
        if status.state in {SupervisorState.BACKOFF, SupervisorState.FAILED}:
            raise UnavailableError(
                f"the engine of {self.model} is down: {status.reason}",
                retry_after_seconds=self._expected_return_seconds(),
            )
        wait, reason, what = self._delay(status)
        if wait > remaining_seconds and not golden:
            raise UnavailableError(
                f"the engine of {self.model} {what} and will not answer in time",
                reason=reason,
                retry_after_seconds=retry_after(wait),
            )

    def _delay(self, status: SupervisorStatus) -> tuple[float, str, str]:
        """Return in how many seconds at the earliest the engine works again, and why not now."""
        now = self._clock()
        if self.up:
            pending = self.dispatcher.pending_since
            # Each answer renews it, so that hardly any request has to read the heartbeat.
            if pending is None or now - pending <= self._settings.stall_seconds:
                return 0.0, "", ""
            age = self.step_age_seconds()
            if age <= self._settings.stall_seconds:
                return 0.0, "", ""
            left = self._settings.progress_budget_seconds - age
            return (
                left + self._usual_load_seconds,
                "engine_stalled",
                f"stands still for {age:.1f} s",
            )
        if status.state is SupervisorState.STARTING and self.load_seconds:
            left = status.launched_at + self.load_seconds - now
            return left, "engine_starting", "loads its model"
        return 0.0, "", ""

    @property
    def _usual_load_seconds(self) -> float:
        return self.load_seconds or _ASSUMED_LOAD_SECONDS

    def _expected_return_seconds(self) -> float:
        status = self.supervisor.status
        if status.state is SupervisorState.FAILED:
            return RETRY_AFTER_LIMIT_SECONDS
        backoff = max(0.0, status.retry_at - self._clock())
        return retry_after(backoff + self._usual_load_seconds)

    # --- what it is told

    def restart(self, reason: str) -> None:
        """Restart the worker by plan; waiting requests stay.

        Raises:
            ConflictError: the model was unloaded.
        """
        if self.closed:
            raise ConflictError(f"{self.model} {self.closed}: load it, there is nothing to restart")
        self.start(reason)

    def start(self, reason: str) -> None:
        """Start the worker, or restart the one that there is."""
        self.dispatcher.pause()
        self.supervisor.restart(reason)
        self._wake_supervisor()

    def stop(self, reason: str = "the service stops") -> None:
        """End the worker for good."""
        self.dispatcher.pause()
        self.supervisor.stop(reason)
        self._wake_supervisor()

    def sandbox(self, version: int) -> Sandbox:
        """Return a worker outside the serving path, for requests that may do harm."""
        settings = self._settings
        start = self._start_message(version)
        metadata = self._repository.metadata(self.model, version)
        limits = SandboxLimits(
            load_seconds=settings.load_budget_seconds,
            progress_seconds=settings.progress_budget_seconds,
            memory_bytes=settings.memory_limit_bytes,
        )
        return Sandbox(
            lambda: LaunchedWorker(start, nice=_SANDBOX_NICE),
            [numbered(item) for item in self.dispatcher.control(metadata)],
            limits,
            self._clock,
        )

    def clear_cache(self) -> None:
        """Forget the prefix cache."""
        if self._link is not None:
            self._link.send(ClearCache())

    def inject(self, fault: Fault) -> None:
        """Hand a fault to the worker.

        Raises:
            ConflictError: there is no worker that could have it.
        """
        if self._link is None or self.ready is None:
            raise ConflictError(f"the engine of {self.model} is not up")
        self._link.send(InjectFault(fault.name, dict(fault.parameters)))

    def clear_faults(self) -> None:
        """Make the worker forget its faults, even in a hang."""
        self.persistent_faults.clear()
        worker = self.supervisor.status.worker
        if self.ready is None:
            self._clear_when_ready = True  # a worker that loads was handed them already
        elif isinstance(worker, LaunchedWorker):
            worker.clear_faults()

    async def load_version(self, version: int) -> Loaded:
        """Load a version beside the running one and swap when its golden prompts are right.

        Raises:
            ConflictError: no engine is up, or another load is under way.
            UnavailableError: the worker went away, or did not finish in time.
        """
        return await self._load_beside(version, "")

    async def use_variant(self, name: str) -> Loaded:
        """Swap to a variant of the version that serves, as to another version; empty is itself.

        Raises:
            ConflictError: no engine is up, or another load is under way.
            UnavailableError: the worker went away, or did not finish in time.
        """
        return await self._load_beside(self.version, name)

    async def _load_beside(self, version: int, variant: str) -> Loaded:
        if self._link is None or self.ready is None:
            raise ConflictError(f"the engine of {self.model} is not up")
        if self._reload is not None:
            raise ConflictError(f"{self.model} is loading another version already")
        self._reload = asyncio.get_running_loop().create_future()
        self.supervisor.holds_two = True
        folder = self._repository.folder(self.model, version)
        self._link.send(Load(version, str(folder), variant))
        try:
            async with asyncio.timeout(self._settings.load_budget_seconds):
                loaded = await self._reload
        except TimeoutError:
            raise UnavailableError(f"version {version} did not load in time") from None
        finally:
            self._reload = None
            self.supervisor.holds_two = False
        if loaded.reason:
            self.reload_failures += 1
        return loaded

    # --- from the supervisor's thread

    def _launch(self) -> WorkerProcess:
        try:
            version = self._repository.active(self.model)
        except NotFoundError as error:
            # Its folders are gone. To the supervisor it is a worker that cannot be started.
            raise FileNotFoundError(error.message) from error
        return LaunchedWorker(self._start_message(version))

    def _start_message(self, version: int) -> Start:
        settings = self._settings
        return Start(
            folder=str(self._repository.folder(self.model, version).resolve()),
            engine=settings.engine,
            threads=settings.engine_threads,
            cache_bytes=settings.prefix_cache_bytes,
            faults=[[fault.name, dict(fault.parameters)] for fault in self.persistent_faults],
            stream_interval_seconds=settings.stream_interval_seconds,
            prefill_tokens_per_step=settings.prefill_tokens_per_step,
            device=settings.device,
            allow_device_fallback=settings.allow_device_fallback,
        )

    def worker_launched(self, worker: WorkerProcess) -> None:
        """Connect to a new worker; called by the supervisor's thread."""
        if self._loop is not None and not self._loop.is_closed():
            launched = cast("LaunchedWorker", worker)
            self._loop.call_soon_threadsafe(self._begin_connect, launched)

    def worker_lost(self, reason: str, *, planned: bool) -> None:
        """Tell the loop why; called by the supervisor's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._forget, reason, planned)

    def pending_since(self) -> float | None:
        """Return since when the worker has work; called by the supervisor's thread."""
        return self.dispatcher.pending_since

    # --- the link

    def _begin_connect(self, worker: LaunchedWorker) -> None:
        self._connecting = asyncio.ensure_future(self._connect(worker))

    async def _connect(self, worker: LaunchedWorker) -> None:
        link = WorkerLink(self._receive, self._disconnected)
        self._link, self._worker = link, worker
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: link, sock=worker.connection)

    def _receive(self, message: Message) -> None:
        match message:
            case Token() | Finished() | Failed() | BatchDone():
                self._on_work(self.model, message, self.dispatcher.running)
                self.dispatcher.receive(message)
            case Ready():
                fresh, self.ready = self.ready is None, message
                if self.device_fallback:
                    _log.warning("device_fallback", model=self.model, reason=self.device_fallback)
                if message.unbatched_reason:
                    reason = message.unbatched_reason
                    _log.warning("decoder_not_batched", model=self.model, reason=reason)
                if self._clear_when_ready:
                    self._clear_when_ready = False
                    self.clear_faults()
                self.load_seconds = message.load_seconds
                self._repository.mark_good(self.model, message.version)
                self._on_loaded(self.model, message.version, fresh=fresh)
                if self._link is not None:
                    self.dispatcher.attach(self._link, message)
            case DeviceChanged(device, reason):
                _log.warning("device_changed", model=self.model, device=device, reason=reason)
                if self.ready is not None:
                    self.ready = replace(self.ready, device=device, device_reason=reason)
            case Loaded():
                if self._reload is not None and not self._reload.done():
                    self._reload.set_result(message)
            case _:
                _log.warning("worker_message_unexpected", kind=type(message).__name__)

    def _disconnected(self, link: WorkerLink) -> None:
        """The socket ended: the worker is dead or dying, whatever the supervisor knows yet."""
        if link is not self._link:
            return
        reason = "the worker ended"
        if self._worker is not None:
            record = self._worker.heartbeat()
            if record.state == WorkerState.DEVICE_LOST:
                reason = f"the device was lost: {record.detail}"
        self._drop_worker(reason, self.supervisor.status.ending)

    def _forget(self, reason: str, planned: bool) -> None:
        if self.ready is not None:
            planned_end = RestartReason.PLANNED if planned else self.supervisor.status.ending
            self._drop_worker(reason, planned_end)

    def _drop_worker(self, reason: str, ending: RestartReason | None) -> None:
        """Let go of a worker; ``ending`` is why it was ended, None if it died by itself."""
        version = self.version
        worked_on = self._worker.heartbeat().running_ids if self._worker is not None else ()
        self._link = self._worker = self.ready = None
        suspects = self.dispatcher.lose(
            reason,
            planned=ending is RestartReason.PLANNED,
            blamed=worked_on if ending in {None, RestartReason.HANG} else (),
            retry_after_seconds=self._expected_return_seconds(),
        )
        if suspects:
            effect = "crash" if ending is None else "hang"
            self._on_down(self.model, version, effect, suspects)
        if self._reload is not None and not self._reload.done():
            self._reload.set_exception(UnavailableError(f"the worker is gone: {reason}"))
