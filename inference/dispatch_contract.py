"""What every kind of model's dispatcher does for its engine host, whatever it dispatches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from inference.breaker import CircuitBreaker
from inference.model import ModelMetadata
from inference.poison.sandbox import Numbered
from inference.worker.frames import BatchDone
from inference.worker.link import WorkerLink
from inference.worker.wire import Failed, Finished, Ready, Request, Token


class Suspect(Protocol):
    """A request that was there when a worker went down, and can be recognised."""

    @property
    def identity(self) -> Iterable[object]:
        """Everything that decides what the engine computes, beside model and version."""
        ...


class Line(Protocol):
    """Requests that wait."""

    max_queue: int

    @property
    def depth(self) -> int:
        """User requests that wait."""
        ...


class EngineDispatcher(Protocol):
    """From a queue to one worker and back; belongs to the event loop."""

    max_slots: int
    """Requests, or rows of requests, that are computed together at most."""
    pending_since: float | None
    """Since when the worker has had work without a break; read by the supervisor's thread."""
    breaker: CircuitBreaker | None
    """None where it is switched off."""
    golden_seconds: float
    """Time that the service's own golden examples held slots; grows."""

    @property
    def queue(self) -> Line:
        """Who waits."""
        ...

    @property
    def running(self) -> int:
        """Requests that the worker has, canaries included."""
        ...

    @property
    def active_users(self) -> int:
        """User requests that the worker has."""
        ...

    @property
    def idle(self) -> bool:
        """Whether no user request waits or runs."""
        ...

    def control(self, metadata: ModelMetadata) -> Sequence[Request]:
        """Return golden examples as messages: what a sandbox must survive before any suspect."""
        ...

    def attach(self, link: WorkerLink, ready: Ready) -> None:
        """Begin to dispatch to a worker that is ready."""
        ...

    def pause(self) -> None:
        """Stop dispatching; what runs may finish."""
        ...

    def pump(self) -> None:
        """Give the worker what it can take."""
        ...

    def receive(self, message: Token | Finished | Failed | BatchDone) -> None:
        """Take what the worker says about its work."""
        ...

    def lose(
        self, reason: str, *, planned: bool, blamed: Collection[int], retry_after_seconds: float
    ) -> Sequence[tuple[Suspect, Numbered]]:
        """End or keep the requests of a worker that is gone; return those that may be the cause.

        Args:
            reason: Why it is gone, for clients.
            planned: Whether it was ended on purpose: then nobody is to blame.
            blamed: Numbers that the worker was working on.
            retry_after_seconds: When the next worker is expected.
        """
        ...
