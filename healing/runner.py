"""Runs commands in worker threads, so that the tick of the watch loop never waits for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor as Workers
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum

import structlog

from healing.actions import Action
from healing.errors import ExecutionError
from healing.executors.contract import Command, ExecutionResult, Executor, Outcome
from healing.ledger import Ledger, related
from healing.policy import Remedy

log = structlog.get_logger(__name__)

MOST_JOBS = 16
_GRACE_SECONDS = 2.0
"""An executor honours its deadline; this much later it is taken to be stuck."""


class JobKind(StrEnum):
    """What is being done with an action."""

    EXECUTE = "execute"
    ROLL_BACK = "roll_back"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a job."""

    action_id: str
    kind: JobKind
    result: ExecutionResult


@dataclass(slots=True)
class _Job:
    action_id: str
    entity: str
    kind: JobKind
    future: Future[ExecutionResult]
    give_up_seconds: float
    reported: bool = False


class Runner:
    """Keeps the jobs that are under way.

    Args:
        executors: by name.
        ledger: where what undoes an action is written before it is done.
        workers: the threads; given from outside so that tests can run jobs at once.
        veto: asked right before anything is changed; what it returns, unless empty, forbids it.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        ledger: Ledger,
        workers: Workers,
        veto: Callable[[], str],
    ) -> None:
        self._executors = executors
        self._ledger = ledger
        self._workers = workers
        self._veto = veto
        self._jobs: list[_Job] = []

    @property
    def is_full(self) -> bool:
        """Whether so many jobs are under way that no other is taken."""
        return len(self._jobs) >= MOST_JOBS

    def busy_with(self, entity: str) -> str | None:
        """Return the entity of a job under way that touches an entity, its parents or children."""
        return next((job.entity for job in self._jobs if related(job.entity, entity)), None)

    def has_job(self, action_id: str) -> bool:
        """Return whether a job of an action is under way."""
        return any(job.action_id == action_id for job in self._jobs)

    def start(self, kind: JobKind, action: Action, remedy: Remedy, now: float) -> None:
        """Start a job; its end shows in :meth:`finished`."""
        executor = self._executors[remedy.executor]
        run = self._execute if kind is JobKind.EXECUTE else self._take_back
        future = self._workers.submit(run, executor, action, remedy)
        # Reading the state before and the change itself each have the remedy's timeout.
        give_up = now + 2 * remedy.timeout_seconds + _GRACE_SECONDS
        self._jobs.append(_Job(action.id, action.entity, kind, future, give_up))

    def finished(self, now: float) -> list[Finished]:
        """Return the jobs that ended since the last call, each once.

        One that is stuck is reported as unknown, and keeps its entity busy for as long as it lasts.
        """
        ended: list[Finished] = []
        for job in list(self._jobs):
            done = job.future.done()
            if done:
                self._jobs.remove(job)
            if job.reported or not (done or now > job.give_up_seconds):
                continue
            job.reported = True
            result = _result(job.future) if done else _STUCK
            ended.append(Finished(job.action_id, job.kind, result))
        return ended

    def close(self) -> None:
        """Let what is under way end, and start nothing more."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _execute(self, executor: Executor, action: Action, remedy: Remedy) -> ExecutionResult:
        command = _command(action, remedy)
        if remedy.reversible:
            try:
                undo = executor.snapshot(command, remedy.timeout_seconds)
            except ExecutionError as error:
                return ExecutionResult(
                    Outcome.NOT_DONE, f"what it would change cannot be read: {error} {error.fix}"
                )
            # Written before the change: after a crash between the two it can still be taken back.
            self._ledger.remember_undo(action.id, undo)
        if reason := self._veto():
            return ExecutionResult(Outcome.NOT_DONE, reason)
        return executor.execute(command, remedy.timeout_seconds)

    def _take_back(self, executor: Executor, action: Action, remedy: Remedy) -> ExecutionResult:
        if reason := self._veto():
            return ExecutionResult(Outcome.NOT_DONE, reason)
        return executor.undo(_command(action, remedy), action.undo, remedy.timeout_seconds)


_STUCK = ExecutionResult(Outcome.UNKNOWN, "no answer in time")


def _command(action: Action, remedy: Remedy) -> Command:
    return Command(
        remedy.operation,
        action.entity,
        action.parameters,
        f"{action.cause} ({action.confidence:.0%}), incident {action.incident_id}",
        action.idempotency_key,
    )


def _result(future: Future[ExecutionResult]) -> ExecutionResult:
    if future.cancelled():
        return ExecutionResult(Outcome.NOT_DONE, "Galen was stopped before it began")
    error = future.exception()
    if error is None:
        return future.result()
    # A fault of an executor itself: what it did before is not known, so it is verified.
    log.error("executor_failed", error=repr(error), exc_info=error)
    return ExecutionResult(Outcome.UNKNOWN, f"the executor failed: {type(error).__name__}: {error}")
