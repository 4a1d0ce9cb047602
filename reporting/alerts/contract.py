"""What a notifier is: one channel to people or machines, such as Slack or a webhook."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from collectors.contract import Support
from reporting.alerts.messages import AlertMessage


class DeliveryResult(StrEnum):
    """How one try ended."""

    DELIVERED = "delivered"
    RETRY = "retry"
    """Nothing wrong with the message; another try may succeed."""
    RATE_LIMITED = "rate_limited"
    """The channel asked to wait."""
    REJECTED = "rejected"
    """The channel will never take this message."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one try to send."""

    result: DeliveryResult
    detail: str = ""
    """Why, in words that hold no secret."""
    retry_after_seconds: float | None = None
    """How long the channel asked to wait."""


@runtime_checkable
class Notifier(Protocol):
    """Sends messages over one channel. Calls come from one thread at a time."""

    @property
    def name(self) -> str:
        """A short unique name, kept in the outbox: a message belongs to a channel by this name."""

    @property
    def min_interval_seconds(self) -> float:
        """The shortest time between two messages that the channel puts up with."""

    def is_supported(self) -> Support:
        """Say whether this channel is configured well enough to be used."""

    def send(self, message: AlertMessage, deadline_seconds: float) -> Delivery:
        """Try once to deliver a message, giving up after ``deadline_seconds``.

        A failure is an outcome and not an exception. Whoever receives a message twice can tell by its
        ``idempotency_key``.
        """

    def close(self) -> None:
        """Release what the channel holds."""
