"""The supervisor: keeps a worker alive, and says why when it cannot.

It lives in a thread of its own, so that a busy event loop cannot keep it from acting, and judges by
progress: a worker hangs when work is pending and its step counter stands still beyond a budget.
Being busy, loading or idle is never a hang. Restarts are limited by a budget; when that is spent the
engine stays down with the reason until somebody asks for a restart.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Protocol

import structlog

from inference.settings import InferenceSettings
from inference.worker.heartbeat import Heartbeat, WorkerState
from inference.worker.launch import Usage, WorkerProcess

_log = structlog.get_logger(__name__)


class RestartReason(StrEnum):
    """Why a worker was ended; the label ``reason`` of ``engine_restarts_total``."""

    CRASH = "crash"
    HANG = "hang"
    MEMORY = "memory"
    PLANNED = "planned"


class SupervisorState(StrEnum):
    """What the supervisor does with its worker."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    TERMINATING = "terminating"
    BACKOFF = "backoff"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters over all workers of a model so far; a worker's own begin at 0."""

    steps: int = 0
    busy_seconds: float = 0.0
    invalid_outputs: int = 0
    cache_hit_tokens: int = 0
    cache_query_tokens: int = 0
    cpu_seconds: float = 0.0

    def plus(self, record: Heartbeat, cpu_seconds: float) -> Totals:
        """Return these counters with one worker's added."""
        return Totals(
            self.steps + record.steps,
            self.busy_seconds + record.busy_seconds,
            self.invalid_outputs + record.invalid_outputs,
            self.cache_hit_tokens + record.cache_hit_tokens,
            self.cache_query_tokens + record.cache_query_tokens,
            self.cpu_seconds + cpu_seconds,
        )


@dataclass(frozen=True, slots=True)
class SupervisorStatus:
    """A snapshot for other threads."""

    state: SupervisorState = SupervisorState.STOPPED
    reason: str = ""
    """Why the worker is not running, for people."""
    worker: WorkerProcess | None = None
    restarts: dict[RestartReason, int] = field(default_factory=dict)
    load_failures: int = 0
    budget_left: int = 0
    retry_at: float = 0.0
    """When the next worker will be started, in BACKOFF."""
    usage: Usage = field(default_factory=Usage)
    ending: RestartReason | None = None
    """Why the worker is being ended, in TERMINATING."""
    launched_at: float = 0.0
    """When the newest worker was started."""
    device_lost: str = ""
    """What the last worker said when its device was lost; until another one is ready."""
    totals: Totals = field(default_factory=Totals)
    """Counters of the workers that are gone."""


class SupervisorListener(Protocol):
    """Told by the supervisor's thread; must not block."""

    def worker_launched(self, worker: WorkerProcess) -> None:
        """A process was started; its model is not loaded yet."""
        ...

    def worker_lost(self, reason: str, *, planned: bool) -> None:
        """The process is gone."""
        ...

    def pending_since(self) -> float | None:
        """Return since when work waits for the worker without a break, or None."""
        ...


def step_age_seconds(record: Heartbeat, pending_since: float | None, now: float) -> float:
    """Return the time since the last finished step while work is pending; 0 when idle."""
    if pending_since is None and record.batch_size > 0:
        pending_since = record.step_started_at
    if pending_since is None or not record.ready:
        return 0.0
    return max(0.0, now - max(pending_since, record.last_step_at, record.ready_at))


class Supervisor:
    """The state machine of one worker. `tick` does all work; other threads use `restart`, `stop`."""

    def __init__(
        self,
        model: str,
        settings: InferenceSettings,
        launch: Callable[[], WorkerProcess],
        listener: SupervisorListener,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._settings = settings
        self._launch = launch
        self._listener = listener
        self._clock = clock
        self._commands: SimpleQueue[str | None] = SimpleQueue()
        self._unplanned: deque[float] = deque()
        self._in_a_row = 0
        self._failed_loads = 0
        self._launched_at = 0.0
        self._kill_at = 0.0
        self._stopping = False
        self._stop_reason = ""
        self.holds_two = False
        """Whether the worker has two versions in memory; set by the event loop during a swap."""
        self.status = SupervisorStatus(budget_left=settings.restart_budget)

    # --- commands, from any thread

    def restart(self, reason: str) -> None:
        """Ask for a planned restart; it also renews a spent budget."""
        self._commands.put(reason)

    def stop(self, reason: str = "the service stops") -> None:
        """Ask the worker to drain and end; it is not started again unless somebody asks for it."""
        self._stop_reason = reason
        self._commands.put(None)

    # --- the supervisor's thread

    def tick(self) -> None:
        """Look once at the worker and do what follows."""
        now = self._clock()
        self._take_commands(now)
        match self.status.state:
            case SupervisorState.STARTING:
                self._watch_start(now)
            case SupervisorState.RUNNING:
                self._watch_run(now)
            case SupervisorState.TERMINATING:
                self._watch_end(now)
            case SupervisorState.BACKOFF if now >= self.status.retry_at:
                self._start(now)
            case _:
                pass

    def start(self) -> None:
        """Start the first worker."""
        self._start(self._clock())

    def _take_commands(self, now: float) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            self._stopping = command is None
            if command is not None:
                self._unplanned.clear()
                self._in_a_row = self._failed_loads = 0
                self._update(budget_left=self._settings.restart_budget)
            self._end_or_start(command, now)

    def _end_or_start(self, reason: str | None, now: float) -> None:
        """Carry out a command: end the worker that there is, or start one."""
        if self.status.state in {SupervisorState.STARTING, SupervisorState.RUNNING}:
            self._end(RestartReason.PLANNED, reason or self._stop_reason, now)
        elif self.status.state is SupervisorState.TERMINATING:
            self._update(ending=RestartReason.PLANNED)
        elif reason is None:
            self._update(state=SupervisorState.STOPPED, reason=self._stop_reason)
        else:
            if self.status.state is not SupervisorState.STOPPED:
                self._count(RestartReason.PLANNED)
            self._start(now)

    def _start(self, now: float) -> None:
        try:
            worker = self._launch()
        except OSError as error:
            self._log("worker_launch_failed", error=str(error))
            self._after_unplanned(f"the worker cannot be started: {error}", now)
            return
        self._launched_at = now
        self._update(
            state=SupervisorState.STARTING,
            reason="the model loads",
            worker=worker,
            ending=None,
            launched_at=now,
        )
        self._log("worker_started", pid=worker.pid)
        self._listener.worker_launched(worker)

    def _watch_start(self, now: float) -> None:
        worker = self._worker()
        status = worker.poll()
        record = worker.heartbeat()
        if status is not None:
            self._lose(record.detail or f"the worker ended with status {status} while it loaded")
            if record.state == WorkerState.DEVICE_LOST:
                self._update(device_lost=record.detail)
            self._after_load_failure(now)
        elif record.ready:
            self._failed_loads = 0
            self._update(
                state=SupervisorState.RUNNING, reason="", usage=worker.usage(), device_lost=""
            )
            self._log("worker_ready", pid=worker.pid, seconds=round(now - self._launched_at, 3))
        elif now - self._launched_at > self._settings.load_budget_seconds:
            limit = self._settings.load_budget_seconds
            self._end(RestartReason.HANG, f"the model did not load within {limit:g} s", now)

    def _watch_run(self, now: float) -> None:
        worker = self._worker()
        status = worker.poll()
        if status is not None:
            self._count(RestartReason.CRASH)
            record = worker.heartbeat()
            if record.state == WorkerState.DEVICE_LOST:
                self._update(device_lost=record.detail)
                how = f"the device was lost: {record.detail}"
            else:
                how = f"signal {-status}" if status < 0 else f"status {status}"
                how = f"the worker ended with {how}"
            self._lose(how)
            self._after_unplanned(self.status.reason, now)
            return
        usage = worker.usage()
        self._update(usage=usage)
        age = step_age_seconds(worker.heartbeat(), self._listener.pending_since(), now)
        if age > self._settings.progress_budget_seconds:
            message = f"work is pending and no step finished for {age:.1f} s"
            self._end(RestartReason.HANG, message, now)
        elif usage.resident_memory_bytes > self._memory_limit_bytes():
            message = f"the worker holds {usage.resident_memory_bytes} bytes"
            self._end(RestartReason.MEMORY, message, now)
        elif now - self._launched_at > self._settings.stable_seconds:
            self._in_a_row = 0

    def _memory_limit_bytes(self) -> int:
        """Return the limit; twice as much while a second version is loaded beside the first."""
        return self._settings.memory_limit_bytes * (2 if self.holds_two else 1)

    def _watch_end(self, now: float) -> None:
        worker = self._worker()
        if worker.poll() is None:
            if now >= self._kill_at:
                worker.kill()
                self._log("worker_killed", pid=worker.pid)
                self._kill_at = now + self._settings.terminate_grace_seconds
            return
        reason = self.status.ending or RestartReason.CRASH
        if not self._stopping:
            self._count(reason)
        self._lose(self.status.reason)
        if self._stopping:
            self._update(state=SupervisorState.STOPPED)
        elif reason is RestartReason.PLANNED:
            self._start(now)
        else:
            self._after_unplanned(self.status.reason, now)

    def _end(self, reason: RestartReason, message: str, now: float) -> None:
        """Begin to end the worker: SIGTERM now, SIGKILL after the grace.

        A worker that hangs gets no grace: it reads no message, so there is nothing it could finish.
        """
        worker = self._worker()
        self._kill_at = now + self._settings.terminate_grace_seconds
        self._update(state=SupervisorState.TERMINATING, reason=message, ending=reason)
        self._log("worker_ending", reason=reason.value, detail=message, pid=worker.pid)
        if reason is RestartReason.HANG:
            worker.kill()
        else:
            worker.terminate()

    def _lose(self, message: str) -> None:
        """Let go of a dead worker."""
        worker = self._worker()
        worker.close()
        status = self.status
        planned = status.ending is RestartReason.PLANNED
        totals = status.totals.plus(worker.heartbeat(), status.usage.cpu_seconds)
        self._update(worker=None, reason=message, usage=Usage(), totals=totals)
        self._log("worker_lost", detail=message, pid=worker.pid)
        self._listener.worker_lost(message, planned=planned)

    def _after_load_failure(self, now: float) -> None:
        self._failed_loads += 1
        self._update(load_failures=self.status.load_failures + 1)
        if self._failed_loads >= self._settings.load_attempts:
            self._fail(f"loading failed {self._failed_loads} times: {self.status.reason}")
        else:
            self._after_unplanned(self.status.reason, now)

    def _after_unplanned(self, message: str, now: float) -> None:
        """Wait and start again, or give up when the budget is spent."""
        if self._stopping:
            self._update(state=SupervisorState.STOPPED)
            return
        settings = self._settings
        while self._unplanned and now - self._unplanned[0] > settings.restart_window_seconds:
            self._unplanned.popleft()
        if len(self._unplanned) >= settings.restart_budget:
            window = settings.restart_window_seconds
            self._fail(f"{len(self._unplanned)} restarts within {window:g} s; last: {message}")
            return
        self._unplanned.append(now)
        wait = settings.backoff_initial_seconds * 2.0**self._in_a_row
        self._in_a_row += 1
        self._update(
            state=SupervisorState.BACKOFF,
            reason=message,
            retry_at=now + min(wait, settings.backoff_limit_seconds),
            budget_left=settings.restart_budget - len(self._unplanned),
        )

    def _fail(self, message: str) -> None:
        self._update(state=SupervisorState.FAILED, reason=message)
        self._log("worker_given_up", detail=message)

    def _count(self, reason: RestartReason) -> None:
        restarts = dict(self.status.restarts)
        restarts[reason] = restarts.get(reason, 0) + 1
        self._update(restarts=restarts)

    def _worker(self) -> WorkerProcess:
        if self.status.worker is None:
            raise RuntimeError(f"no worker in state {self.status.state}")
        return self.status.worker

    def _update(self, **changes: object) -> None:
        # One assignment of a frozen snapshot: readers in other threads need no lock.
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]

    def _log(self, event: str, **values: object) -> None:
        _log.info(event, model=self._model, **values)


class SupervisorThread(threading.Thread):
    """Ticks supervisors at an interval, and at once when a worker dies or a command comes."""

    def __init__(self, supervisors: Sequence[Supervisor], interval_seconds: float) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._supervisors = tuple(supervisors)
        self._finishing = False
        self._interval_seconds = interval_seconds
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)

    def wake(self) -> None:
        """Tick soon; after a command, from any thread."""
        try:
            self._wake_write.send(b"\0")
        except BlockingIOError:
            return  # it is full of wake-ups already

    def add(self, supervisor: Supervisor) -> None:
        """Tick another one from now on; it starts its worker when it is told to restart it."""
        self._supervisors = (*self._supervisors, supervisor)
        self.wake()

    def remove(self, supervisor: Supervisor) -> None:
        """Forget one whose worker is stopped."""
        self._supervisors = tuple(s for s in self._supervisors if s is not supervisor)

    def finish(self) -> None:
        """End once every worker is stopped."""
        self._finishing = True
        self.wake()

    def run(self) -> None:
        """Supervise until told to finish."""
        for supervisor in self._supervisors:
            supervisor.start()
        while not self._finishing or any(
            s.status.state is not SupervisorState.STOPPED for s in self._supervisors
        ):
            self._wait()
            for supervisor in self._supervisors:
                try:
                    supervisor.tick()
                except Exception:  # noqa: BLE001 - the last that may give up; it is logged
                    _log.exception("supervisor_tick_failed")

    def _wait(self) -> None:
        """Wait for the interval, a wake-up or the end of a worker's lifeline."""
        lifelines = [
            s.status.worker.lifeline
            for s in self._supervisors
            if s.status.worker is not None and hasattr(s.status.worker, "lifeline")
        ]
        fast = any(s.status.state is SupervisorState.STARTING for s in self._supervisors)
        timeout = min(0.02, self._interval_seconds) if fast else self._interval_seconds
        readable, _, _ = select.select([self._wake_read, *lifelines], [], [], timeout)
        if self._wake_read in readable:
            self._wake_read.recv(4096)
