"""Dispatch: from the admission queue into the worker's slots and back, for one model.

Everything here runs on the event loop. A slot counts as free only when the worker said so: a
request whose client has left or whose deadline has passed still holds its slot until then.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Collection

import structlog

from inference.admission import AdmissionQueue, displaced
from inference.breaker import Outcome
from inference.breaking import ask_breaker, make_breaker
from inference.errors import (
    ClientGoneError,
    DeadlineExceededError,
    EngineFailedError,
    InvalidRequestError,
    MemoryLimitError,
    ServiceError,
)
from inference.estimates import GenerationTime
from inference.gradient import GradientOptions
from inference.model import GoldenPrompt, ModelMetadata
from inference.poison.sandbox import Numbered, numbered
from inference.requests import GenerationRequest, Ticket, TicketState
from inference.settings import InferenceSettings
from inference.worker.frames import BatchDone
from inference.worker.link import WorkerLink
from inference.worker.wire import Cancel, Failed, Finished, Generate, Ready, Request, Token

_log = structlog.get_logger(__name__)

TicketListener = Callable[[Ticket, Finished | ServiceError], None]
"""Told how a ticket ended, once, whether a client still waits for it or not."""

# A request whose deadline passes on the engine is the engine's failure if it was there for so many
# times as long as others are; else its deadline was short.
_STUCK_FACTOR = 3.0


class Dispatcher:
    """Queue and running requests of one model."""

    def __init__(
        self,
        model: str,
        settings: InferenceSettings,
        clock: Callable[[], float],
        on_end: TicketListener,
    ) -> None:
        self._model = model
        self._clock = clock
        self._on_end = on_end
        self.queue: AdmissionQueue[Ticket] = AdmissionQueue(
            settings.max_queue,
            settings.slots,
            clock,
            ageing_seconds=settings.priority_ageing_seconds,
            gradient=gradient_options(settings) if settings.adaptive_concurrency else None,
        )
        self._max_output_tokens = settings.max_output_tokens
        self.times = GenerationTime(clock)
        self.breaker = make_breaker(model, settings, clock)
        self._numbers = itertools.count(1)
        self._running: dict[int, Ticket] = {}
        self._link: WorkerLink | None = None
        self._version = 0
        self.golden_seconds = 0.0
        """Time that golden examples have held slots."""
        self.pending_since: float | None = None
        """Since when the worker has had work without a break; read by the supervisor's thread."""

    @property
    def running(self) -> int:
        """Requests that hold a slot, canaries included."""
        return len(self._running)

    @property
    def max_slots(self) -> int:
        """Requests that may hold a slot."""
        return self.queue.slots

    @max_slots.setter
    def max_slots(self, slots: int) -> None:
        self.queue.slots = slots

    @property
    def active_users(self) -> int:
        """User requests that hold a slot."""
        return sum(not ticket.request.canary for ticket in self._running.values())

    @property
    def idle(self) -> bool:
        """Whether no user request waits or runs."""
        return not self.queue.depth and not self.active_users

    def submit(self, request: GenerationRequest, max_tokens: int) -> Ticket:
        """Admit a request.

        Raises:
            OverloadedError: admission refuses it.
            DeadlineExceededError: it cannot be answered in its time.
            UnavailableError: the circuit breaker is open.
        """
        ticket = Ticket(request, next(self._numbers), max_tokens)
        now = ticket.enqueued_at = self._clock()
        if request.deadline <= now:
            raise DeadlineExceededError("the deadline passed before the request was admitted")
        ticket.permit = ask_breaker(self.breaker, self._model, canary=request.canary)
        try:
            expected = self.times.seconds(request.task, max_tokens)
            leaves = self.queue.admit(ticket, self.running, expected, self.times.soonest_seconds)
        except ServiceError:
            self._record(ticket, Outcome.UNKNOWN)
            raise
        if leaves is not None:
            wait = self.queue.drain_rate.wait_seconds(self.queue.depth, self.max_slots)
            self._end(leaves, displaced(wait))
        loop = asyncio.get_running_loop()
        ticket.expiry = loop.call_later(request.deadline - now, self._expire, ticket)
        self.pump()
        return ticket

    def cancel(self, ticket: Ticket, error: ServiceError | None = None) -> None:
        """End a request for its client, and take it off the engine."""
        state = ticket.state
        self._end(ticket, error or ClientGoneError("the client closed the connection"))
        if state is TicketState.QUEUED:
            self.queue.remove(ticket)
        elif state is TicketState.RUNNING and self._link is not None:
            self._link.send(Cancel(ticket.number))

    def pump(self) -> None:
        """Fill free slots from the queue."""
        while self._link is not None and self.running < self.max_slots:
            ticket = self.queue.pop()
            if ticket is None:
                return
            now = self._clock()
            if ticket.request.deadline <= now:
                self._expire(ticket)
                continue
            if self._hopeless(ticket, now):
                self._end(ticket, _no_time_left())
                continue
            if not self._running:
                self.pending_since = now
            ticket.state = TicketState.RUNNING
            ticket.dispatched_at = now
            self._running[ticket.number] = ticket
            self._link.send(generate(ticket))

    def control(self, metadata: ModelMetadata) -> list[Request]:
        """Return the golden prompts as messages."""
        return [
            Generate(
                number=0,
                task=golden.task,
                text=golden.text,
                max_tokens=golden.max_tokens or self._max_output_tokens,
                temperature=0.0,
                top_p=1.0,
                seed=0,
                stop=[],
                stream=False,
                deadline=math.inf,
                canary=True,
            )
            for golden in metadata.golden
            if isinstance(golden, GoldenPrompt)
        ]

    def attach(self, link: WorkerLink, ready: Ready) -> None:
        """Begin to dispatch to a worker that is ready."""
        self._link = link
        self._version = ready.version
        self.pump()

    def pause(self) -> None:
        """Stop dispatching; what runs may finish."""
        self._link = None

    def lose(
        self, reason: str, *, planned: bool, blamed: Collection[int], retry_after_seconds: float
    ) -> list[tuple[GenerationRequest, Numbered]]:
        """Deal with the requests of a worker that is gone; return those that may be the cause.

        Those on which the worker was working (``blamed``) may be what brought it down and are not
        tried again, whether their clients still wait or not. The others wait for the next worker,
        once, unless a part of their answer was sent; after a planned restart all do, each time.
        """
        self._link = None
        self.pending_since = None
        lost, self._running = list(self._running.values()), {}
        guilty = () if planned else blamed
        suspects = [t for t in lost if t.number in guilty and not t.request.golden]
        for ticket in reversed(lost):
            if ticket.state is TicketState.DONE:
                continue
            innocent = ticket.number not in blamed and ticket.repeats == 0
            if not ticket.begun and (planned or innocent):
                ticket.state = TicketState.QUEUED
                ticket.repeats += not planned
                self.queue.requeue(ticket)
            else:
                error = EngineFailedError(
                    f"the engine failed: {reason}", retry_after_seconds=retry_after_seconds
                )
                self._end(ticket, error)
        return [(ticket.request, numbered(generate(ticket))) for ticket in suspects]

    def receive(self, message: Token | Finished | Failed | BatchDone) -> None:
        """Take what the worker says about a request."""
        ticket = self._running.get(message.number)
        if ticket is None or isinstance(message, BatchDone):
            _log.warning("answer_without_request", model=self._model, number=message.number)
            return
        if isinstance(message, Token):
            ticket.put(message)
            return
        del self._running[message.number]
        if ticket.request.golden:
            self.golden_seconds += self._clock() - ticket.dispatched_at
        self.pending_since = self._clock() if self._running else None
        if isinstance(message, Finished):
            # What is said of a swap comes before the first answer of the new version.
            ticket.version = self._version
            self._measure(ticket, message)
            self._end(ticket, message)
        else:
            self._end(ticket, _error_of(message))
            if message.code == "deadline":
                # It held its slot for that long: without this, an engine that has become too slow
                # for everybody would look as fast as before, and the queue fill with the lost.
                self.queue.finished(self._clock() - ticket.dispatched_at, self.running)
        self.pump()

    def _end(self, ticket: Ticket, event: Finished | ServiceError) -> None:
        """End a ticket, once, and tell everybody who counts."""
        if ticket.state is TicketState.DONE:
            return
        self._record(ticket, self._outcome(ticket, event))
        self._on_end(ticket, event)
        ticket.put(event)

    def _hopeless(self, ticket: Ticket, now: float) -> bool:
        """Say whether a slot would be wasted on it, while others wait who may have the time."""
        if ticket.canary or not self.queue.depth or not self.queue.drain_rate.fresh:
            return False
        expected = self.times.seconds(ticket.request.task, ticket.max_tokens)
        return expected is not None and now + expected > ticket.deadline

    def _measure(self, ticket: Ticket, answer: Finished) -> None:
        """Learn how long requests take."""
        self.queue.finished(self._clock() - ticket.dispatched_at, self.running)
        self.times.observe(
            ticket.request.task,
            answer.first_token_at - ticket.dispatched_at,
            answer.last_token_at - answer.first_token_at,
            answer.completion_tokens,
        )

    def _outcome(self, ticket: Ticket, event: Finished | ServiceError) -> Outcome:
        """Judge what an end says about the engine."""
        if isinstance(event, Finished):
            return Outcome.SUCCESS
        if isinstance(event, EngineFailedError):
            return Outcome.FAILURE
        usual = self.queue.drain_rate.service_seconds
        if (
            isinstance(event, DeadlineExceededError)
            and ticket.state is TicketState.RUNNING
            and usual
        ):
            ran = self._clock() - ticket.dispatched_at
            return Outcome.FAILURE if ran > _STUCK_FACTOR * usual else Outcome.UNKNOWN
        return Outcome.UNKNOWN

    def _record(self, ticket: Ticket, outcome: Outcome) -> None:
        if self.breaker is not None:
            self.breaker.record(ticket.permit, outcome)

    def _expire(self, ticket: Ticket) -> None:
        where = "waiting for a slot" if ticket.state is TicketState.QUEUED else "decoding"
        error = DeadlineExceededError(f"the deadline passed while {where}", retry_after_seconds=1.0)
        self.cancel(ticket, error)


def gradient_options(settings: InferenceSettings) -> GradientOptions:
    """Return what the settings say about the adaptive limit."""
    return GradientOptions(
        tolerance=settings.concurrency_tolerance,
        patience_seconds=settings.concurrency_patience_seconds,
    )


def generate(ticket: Ticket) -> Generate:
    """Build the message that hands a request to the worker."""
    request = ticket.request
    return Generate(
        number=ticket.number,
        task=request.task,
        text=request.text,
        max_tokens=ticket.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=list(request.stop),
        stream=request.stream,
        deadline=request.deadline,
        canary=request.canary,
        ignore_eos=request.ignore_eos,
        min_tokens=request.min_tokens,
        messages=[list(message) for message in request.messages],
    )


def _no_time_left() -> DeadlineExceededError:
    return DeadlineExceededError(
        "too little time was left when a slot was free",
        reason="deadline_unreachable",
        retry_after_seconds=1.0,
    )


def _error_of(failure: Failed) -> ServiceError:
    """Translate a worker's refusal or failure for the client."""
    match failure.code:
        case "prompt_too_long":
            return InvalidRequestError(failure.message, reason="context_length_exceeded")
        case "invalid_prompt" | "unknown_task":
            param = "task" if failure.code == "unknown_task" else "prompt"
            return InvalidRequestError(failure.message, param=param)
        case "deadline":
            return DeadlineExceededError("the deadline passed while decoding")
        case "cancelled":
            return ClientGoneError(failure.message)
        case "memory_limit":
            return MemoryLimitError(failure.message, retry_after_seconds=1.0)
        case _:
            return EngineFailedError(
                f"the engine failed: {failure.message}", retry_after_seconds=1.0
            )
