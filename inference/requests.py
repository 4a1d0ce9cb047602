"""A request inside the service: what is asked, and the ticket that follows it to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from inference.breaker import Permit
from inference.errors import ServiceError
from inference.queueing import Priority
from inference.worker.wire import Finished, Token


class TicketState(StrEnum):
    """Where a request is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, whichever protocol it came by. ``deadline`` is CLOCK_MONOTONIC seconds."""

    request_id: str
    model: str
    task: str
    text: str
    deadline: float
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False
    canary: bool = False
    priority: Priority = Priority.NORMAL
    ignore_eos: bool = False
    min_tokens: int = 0
    messages: tuple[tuple[str, str], ...] = ()
    """The conversation as role and content, for a model with a chat template."""
    golden: bool = False
    """A golden prompt of the service's own canary."""
    exemplar: dict[str, str] | None = None
    """Ids of its trace, for histograms that name an example."""

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that decides what the engine computes, beside model and version."""
        chance = (self.temperature, self.top_p, self.seed) if self.temperature > 0.0 else ()
        length = (self.max_tokens, self.min_tokens, self.ignore_eos)
        return (self.task, self.text, self.messages, length, chance, self.stop)


class Ticket:
    """A request on its way through queue and engine; belongs to the event loop's thread."""

    def __init__(self, request: GenerationRequest, number: int, max_tokens: int) -> None:
        self.request = request
        self.number = number
        self.max_tokens = max_tokens
        self.state = TicketState.QUEUED
        self.permit = Permit.PASS
        """What the circuit breaker said."""
        self.version = 0
        """The version that answered; 0 while there is no answer."""
        self.enqueued_at = 0.0
        self.dispatched_at = 0.0
        self.answer: Finished | None = None
        """The end of an answered request, for whoever looks back at it."""
        self.begun = False
        """Whether the client has a part of the answer; it cannot be given anew then."""
        self.repeats = 0
        """How often it was given to another worker after one was lost."""
        self.expiry: asyncio.TimerHandle | None = None
        # One event a token and the end; an answer cannot be longer than that.
        self._events: asyncio.Queue[Token | Finished | ServiceError] = asyncio.Queue(max_tokens + 2)

    @property
    def priority(self) -> Priority:
        """Its lane in the queue."""
        return self.request.priority

    @property
    def canary(self) -> bool:
        """Whether it is a probe, not user load."""
        return self.request.canary

    @property
    def deadline(self) -> float:
        """When it must be answered; CLOCK_MONOTONIC seconds."""
        return self.request.deadline

    def put(self, event: Token | Finished | ServiceError) -> None:
        """Deliver an event; what comes after the end is dropped."""
        if self.state is TicketState.DONE:
            return
        if isinstance(event, Token):
            self.begun = True
        else:
            self.state = TicketState.DONE
            if isinstance(event, Finished):
                self.answer = event
            if self.expiry is not None:
                self.expiry.cancel()
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[Token | Finished]:
        """Yield the texts of a streamed answer and its end.

        Texts that wait already are one: a client that reads slowly gets fewer and longer events.

        Raises:
            ServiceError: the request failed.
        """
        while True:
            event = await self._events.get()
            texts = []
            while isinstance(event, Token):
                texts.append(event.text)
                if self._events.empty():
                    break
                event = self._events.get_nowait()
            if texts:
                yield Token(self.number, "".join(texts))
            if isinstance(event, ServiceError):
                raise event
            if isinstance(event, Finished):
                yield event
                return

    async def result(self) -> Finished:
        """Wait for the end.

        Raises:
            ServiceError: the request failed.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ServiceError):
                raise event
            if isinstance(event, Finished):
                return event
