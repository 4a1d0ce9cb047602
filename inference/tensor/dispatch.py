"""Dynamic batching for one tensor model: from the line into batches, to the worker and back.

Everything here runs on the event loop. Requests that arrive in one turn of the loop are seen
together. While a batch is computed, rows gather for free; the next full batch is sent ahead, so that
the engine does not wait for the front. An idle engine gets what there is, unless waiting pays
(`HoldPolicy`).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from inference.breaker import Outcome, Permit
from inference.breaking import ask_breaker, make_breaker
from inference.errors import (
    ClientGoneError,
    DeadlineExceededError,
    EngineFailedError,
    MemoryLimitError,
    RequestTooLargeError,
    ServiceError,
    UnavailableError,
)
from inference.model import GoldenTensors, ModelMetadata
from inference.poison.sandbox import Numbered, numbered
from inference.requests import TicketState
from inference.settings import InferenceSettings
from inference.tensor.codec import InferCodec
from inference.tensor.costs import BatchCost, HoldPolicy, WaitingRows
from inference.tensor.datatypes import TensorInfo, to_array, to_buffer
from inference.tensor.line import TensorLine
from inference.tensor.requests import BatchOutputs, TensorTicket
from inference.worker.frames import BatchDone, RunBatch, Tensor
from inference.worker.link import WorkerLink
from inference.worker.wire import Failed, Finished, Ready, Request, Token

_log = structlog.get_logger(__name__)

# One that is computed and one that lies ready in the worker's socket.
_MOST_IN_FLIGHT = 2
# Upper bounds of the histogram of batch sizes; the last one is infinity.
ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_QUEUED = TicketState.QUEUED
# Deadlines are looked at together; one is at most this late.
_SWEEP_SECONDS = 0.005


@dataclass(slots=True)
class BatchStats:
    """Counters of one model's batches since the start."""

    batches: list[int] = field(default_factory=lambda: [0] * (len(ROW_BOUNDS) + 1))
    """By size; see `ROW_BOUNDS`."""
    rows: int = 0
    splits: int = 0
    """Batches that failed and were computed again in two halves."""
    wait_seconds: float = 0.0
    """Total time in line, of all requests that were dispatched."""
    dispatched: int = 0
    """Requests that were."""


@dataclass(slots=True)
class _Batch:
    """A batch that the worker has."""

    number: int
    tickets: list[TensorTicket]
    rows: int


class TensorDispatcher:
    """Line and batches of one model; see `EngineDispatcher` for what is common to all kinds."""

    def __init__(
        self,
        model: str,
        settings: InferenceSettings,
        clock: Callable[[], float],
        *,
        loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._model = model
        self._clock = clock
        self._loop = loop
        self._settings = settings
        self.cost = BatchCost()
        self._policy = HoldPolicy(self.cost, settings.tensor_max_wait_seconds)
        self.queue = TensorLine(
            settings.tensor_max_queue,
            settings.tensor_queue_seconds,
            settings.tensor_max_wait_seconds,
            self.cost,
            chance,
        )
        self.stats = BatchStats()
        self.max_slots = settings.tensor_max_batch_rows
        self.codec = InferCodec((), ())
        self._model_rows = 0
        self._version = 0
        self._numbers = itertools.count(1)
        self._in_flight: dict[int, _Batch] = {}
        self._running_rows = 0
        self._halves: list[list[TensorTicket]] = []
        self._link: WorkerLink | None = None
        self._newest_at = 0.0
        self._pump_asked = False
        self._hold: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = math.inf
        self.pending_since: float | None = None
        """Since when the worker has had work without a break; read by the supervisor's thread."""
        self.breaker = make_breaker(model, settings, clock)
        self._probe: TensorTicket | None = None
        """The request by which the breaker finds out whether the engine is back."""
        self.golden_seconds = 0.0

    # --- what it says

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The model's inputs; empty until it was loaded once."""
        return self.codec.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The model's outputs; empty until it was loaded once."""
        return self.codec.outputs

    @property
    def running(self) -> int:
        """Requests in batches that the worker has, canaries included."""
        return sum(len(batch.tickets) for batch in self._in_flight.values())

    @property
    def active_users(self) -> int:
        """User requests in batches that the worker has."""
        batches = self._in_flight.values()
        return sum(not ticket.canary for batch in batches for ticket in batch.tickets)

    @property
    def idle(self) -> bool:
        """Whether no user request waits or runs."""
        return not self.queue.depth and not self.active_users and not self._halves

    @property
    def max_batch_rows(self) -> int:
        """Rows computed together at most: the service's limit, or the model's if that is less."""
        return min(self.max_slots, self._model_rows or self.max_slots)

    # --- requests

    def submit(self, ticket: TensorTicket) -> None:
        """Admit a request.

        Raises:
            OverloadedError: admission refuses it.
            UnavailableError: the circuit breaker is open.
            RequestTooLargeError: it has more rows than a batch.
            DeadlineExceededError: it arrived too late.
        """
        now = ticket.enqueued_at = self._clock()
        if ticket.deadline <= now:
            raise DeadlineExceededError("the deadline passed before the request was admitted")
        limit = self.max_batch_rows
        if ticket.rows > limit:
            raise RequestTooLargeError(
                f"the request has {ticket.rows} rows; {self._model} takes {limit} at once",
                reason="too_many_rows",
            )
        if self.breaker is not None and not self.breaker.closed:
            permit = ask_breaker(self.breaker, self._model, canary=ticket.canary)
            if permit is Permit.PROBE:
                self._probe = ticket
        try:
            self.queue.admit(ticket, self._running_rows, limit, now)
        except ServiceError as error:
            self._settle_probe(ticket, error)
            raise
        self._newest_at = now
        if ticket.deadline < self._sweep_at:
            self._arm_sweep(ticket.deadline, now)
        if not self._pump_asked:
            self._pump_asked = True
            self._loop().call_soon(self.pump)

    def cancel(self, ticket: TensorTicket, error: ServiceError | None = None) -> None:
        """End a request for its client; if it waits, it leaves the line.

        A batch that runs is not stopped: its other rows belong to others.
        """
        if ticket.state is TicketState.QUEUED:
            self.queue.remove(ticket)
        self._finish(ticket, error or ClientGoneError("the client closed the connection"))

    def pump(self) -> None:
        """Send the worker what it should have now."""
        self._pump_asked = False
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        while self._link is not None and len(self._in_flight) < _MOST_IN_FLIGHT:
            tickets = self._next_batch()
            if not tickets:
                return
            self._dispatch(tickets, self._link)

    # --- the worker's life

    def control(self, metadata: ModelMetadata) -> list[Request]:
        """Return the golden examples as batches."""
        batches: list[Request] = []
        for golden in metadata.golden:
            if not isinstance(golden, GoldenTensors):
                continue
            arrays = [
                np.asarray(golden.inputs[info.name], dtype=info.datatype.dtype)
                for info in self.inputs
            ]
            tensors = [
                Tensor(info.datatype, array.shape, [to_buffer(array)])
                for info, array in zip(self.inputs, arrays, strict=True)
            ]
            if tensors:
                batches.append(RunBatch(0, len(arrays[0]), math.inf, tensors, canary=True))
        return batches

    def attach(self, link: WorkerLink, ready: Ready) -> None:
        """Begin to dispatch to a worker that is ready."""
        self._link = link
        self.codec = InferCodec(
            tuple(map(TensorInfo.from_wire, ready.inputs)),
            tuple(map(TensorInfo.from_wire, ready.outputs)),
        )
        self._model_rows = ready.max_batch_rows
        self._version = ready.version
        self.pump()

    def pause(self) -> None:
        """Stop dispatching; what runs may finish."""
        self._link = None

    def lose(
        self, reason: str, *, planned: bool, blamed: Collection[int], retry_after_seconds: float
    ) -> list[tuple[TensorTicket, Numbered]]:
        """Deal with the requests of a worker that is gone; return those that may be the cause.

        The batches on which the worker was working (``blamed``) may have brought it down. They are
        not tried again; their requests are returned, each as a batch of its own, so that whoever
        looks into it can tell them apart. Other batches wait for the next worker, once; after a
        planned restart all do.
        """
        self._link = None
        self.pending_since = None
        lost, self._in_flight = list(self._in_flight.values()), {}
        self._running_rows = 0
        suspects: list[tuple[TensorTicket, Numbered]] = []
        for batch in reversed(lost):
            guilty = batch.number in blamed and not planned
            for ticket in reversed(batch.tickets):
                if guilty and not ticket.golden:
                    suspects.append((ticket, numbered(self._message(0, [ticket]))))
                self._after_loss(
                    ticket,
                    reason,
                    again=not guilty and (planned or ticket.repeats == 0),
                    counted=not planned,
                    retry_after_seconds=retry_after_seconds,
                )
        return suspects

    def receive(self, message: Token | Finished | Failed | BatchDone) -> None:
        """Take what the worker says about a batch."""
        batch = self._in_flight.pop(message.number, None)
        if batch is None:
            _log.warning("answer_without_request", model=self._model, number=message.number)
            return
        now = self._clock()
        self._running_rows -= batch.rows
        self.pending_since = now if self._in_flight else None
        if isinstance(message, BatchDone):
            seconds = message.ended_at - message.started_at
            self.cost.observe(batch.rows, seconds)
            golden = sum(ticket.rows for ticket in batch.tickets if ticket.golden)
            if golden:
                # As if each of its rows had held one of the batch's places.
                self.golden_seconds += seconds * golden / batch.rows * self.max_slots
            self._policy.ended(batch.rows, self.queue.rows, now)
            self.pump()  # the engine first: answers are written while it computes
            self._answer(batch, message)
        elif isinstance(message, Failed):
            self._fail(batch, message)
            self.pump()

    # --- batches

    def _next_batch(self) -> list[TensorTicket]:
        """Return the tickets to send now; empty if there are none, or if waiting is better."""
        while self._halves:
            now = self._clock()
            half = [t for t in self._halves.pop() if not self._expired(t, now)]
            if half:
                return half
        while self.queue.rows:
            limit, now = self.max_batch_rows, self._clock()
            if self._in_flight:
                if self.queue.rows < limit:
                    return []
            elif self.queue.rows < limit and self._held(limit, now):
                return []
            batch = [
                ticket
                for ticket in self.queue.take(limit)
                if (ticket.deadline > now and ticket.state is _QUEUED)
                or not self._expired(ticket, now)
            ]
            if batch:
                return batch
        return []

    def _held(self, limit: int, now: float) -> bool:
        """Say whether to wait for more rows, and take care to be called again."""
        waiting = WaitingRows(
            rows=self.queue.rows,
            newest_at=self._newest_at,
            oldest_at=min(ticket.enqueued_at for ticket in self.queue),
            deadline=min(ticket.deadline for ticket in self.queue),
        )
        until = self._policy.hold_until(waiting, limit, now)
        if until <= now:
            return False
        self._hold = self._loop().call_later(until - now, self.pump)
        return True

    def _expired(self, ticket: TensorTicket, now: float) -> bool:
        if ticket.state is TicketState.DONE:
            return True
        if ticket.deadline > now:
            return False
        self._finish(ticket, _late("waiting for a batch"))
        return True

    def _dispatch(self, tickets: list[TensorTicket], link: WorkerLink) -> None:
        now = self._clock()
        stats, rows = self.stats, 0
        for ticket in tickets:
            ticket.state = TicketState.RUNNING
            ticket.dispatched_at = now
            stats.wait_seconds += now - ticket.enqueued_at
            rows += ticket.rows
        number = next(self._numbers)
        if not self._in_flight:
            self.pending_since = now
        self._in_flight[number] = _Batch(number, tickets, rows)
        self._running_rows += rows
        stats.dispatched += len(tickets)
        stats.rows += rows
        stats.batches[next((i for i, b in enumerate(ROW_BOUNDS) if rows <= b), -1)] += 1
        link.send(self._message(number, tickets))

    def _message(self, number: int, tickets: Sequence[TensorTicket]) -> RunBatch:
        rows = sum(ticket.rows for ticket in tickets)
        tensors = [
            Tensor(info.datatype, (rows, *shape), [ticket.data[i] for ticket in tickets])
            for i, (info, shape) in enumerate(zip(self.inputs, tickets[0].shapes, strict=True))
        ]
        deadline = max(ticket.deadline for ticket in tickets)
        return RunBatch(number, rows, deadline, tensors)

    def _answer(self, batch: _Batch, done: BatchDone) -> None:
        """Give each request its rows."""
        try:
            arrays = [to_array(t.datatype, t.shape, t.data[0]) for t in done.tensors]
        except ValueError as error:
            self._fail(batch, Failed(batch.number, "step_failed", str(error)))
            return
        answer = BatchOutputs(arrays, done.started_at, done.ended_at, self._version)
        invalid = np.asarray(done.invalid_rows, dtype=np.int64)
        offset = 0
        for ticket in batch.tickets:
            ticket.answer, ticket.offset = answer, offset
            offset += ticket.rows
            failure: ServiceError | None = None
            if done.invalid_rows and np.any((invalid >= ticket.offset) & (invalid < offset)):
                failure = EngineFailedError(
                    "the model's output is not finite",
                    reason="invalid_output",
                    retry_after_seconds=1.0,
                )
            if self._probe is None:
                ticket.finish(failure)
            else:
                self._finish(ticket, failure)
        valid = len(invalid) < batch.rows
        self._record(Outcome.SUCCESS if valid else Outcome.FAILURE)

    def _fail(self, batch: _Batch, failure: Failed) -> None:
        """End the requests of a batch that failed; one bad row must not take the others along."""
        waiting = [ticket for ticket in batch.tickets if ticket.state is not TicketState.DONE]
        if len(waiting) > 1 and failure.code in {"step_failed", "memory_limit"}:
            half = len(waiting) // 2
            self._halves += [waiting[half:], waiting[:half]]
            self.stats.splits += 1
            return
        for ticket in waiting:
            self._finish(ticket, _error_of(failure))
        if waiting and isinstance(_error_of(failure), EngineFailedError):
            self._record(Outcome.FAILURE)

    def _after_loss(
        self,
        ticket: TensorTicket,
        reason: str,
        *,
        again: bool,
        counted: bool,
        retry_after_seconds: float,
    ) -> None:
        if ticket.state is TicketState.DONE:
            return
        if again:
            ticket.state = TicketState.QUEUED
            ticket.repeats += counted
            self.queue.requeue(ticket)
            return
        message = f"the engine failed: {reason}"
        self._finish(ticket, EngineFailedError(message, retry_after_seconds=retry_after_seconds))
        self._record(Outcome.FAILURE)

    # --- the circuit breaker

    def _finish(self, ticket: TensorTicket, error: ServiceError | None) -> None:
        """End a request, and let the breaker learn from it if it was the probe."""
        if self._probe is ticket and ticket.state is not TicketState.DONE:
            self._settle_probe(ticket, error)
        ticket.finish(error)

    def _settle_probe(self, ticket: TensorTicket, error: ServiceError | None) -> None:
        if self.breaker is None or self._probe is not ticket:
            return
        self._probe = None
        outcome = Outcome.UNKNOWN
        if error is None:
            outcome = Outcome.SUCCESS
        elif isinstance(error, EngineFailedError):
            outcome = Outcome.FAILURE
        self.breaker.record(Permit.PROBE, outcome)

    def _record(self, outcome: Outcome) -> None:
        """Take the outcome of a batch, or of a request that was lost with a worker."""
        if self.breaker is not None:
            self.breaker.record(Permit.PASS, outcome)

    # --- deadlines

    def _arm_sweep(self, deadline: float, now: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = deadline
        # Not more often than that, however many different deadlines there are.
        delay = max(_SWEEP_SECONDS, deadline - now)
        self._sweep = self._loop().call_later(delay, self._sweep_expired)

    def _sweep_expired(self) -> None:
        """End what is past its deadline, wherever it is; one timer serves all requests."""
        now = self._clock()
        self._sweep, self._sweep_at = None, math.inf
        running = [ticket for batch in self._in_flight.values() for ticket in batch.tickets]
        halves = [ticket for half in self._halves for ticket in half]
        live = [t for t in (*self.queue, *running, *halves) if t.state is not TicketState.DONE]
        for ticket in live:
            if ticket.deadline <= now:
                waits = ticket.state is TicketState.QUEUED
                self.cancel(ticket, _late("waiting for a batch" if waits else "computing"))
        earliest = min((t.deadline for t in live if t.deadline > now), default=math.inf)
        if earliest < math.inf:
            self._arm_sweep(earliest, now)


def _late(where: str) -> DeadlineExceededError:
    return DeadlineExceededError(f"the deadline passed while {where}", retry_after_seconds=1.0)


def _error_of(failure: Failed) -> ServiceError:
    """Translate a worker's failure for the client."""
    match failure.code:
        case "deadline":
            return _late("waiting for the engine")
        case "memory_limit":
            return MemoryLimitError(failure.message, retry_after_seconds=1.0)
        case "device_lost":
            return UnavailableError(failure.message, retry_after_seconds=2.0)
        case _:
            return EngineFailedError(
                f"the engine failed: {failure.message}", retry_after_seconds=1.0
            )
