"""What an executor is.

Executors are called from worker threads, several at a time for different entities. A command is
idempotent: done twice it has the effect of once. An executor never decides; it does, or says why not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from collectors.contract import Support


class Outcome(StrEnum):
    """What is known of a command after it was given."""

    DONE = "done"
    NOT_DONE = "not_done"
    """Refused, or it never got there: nothing was changed."""
    UNKNOWN = "unknown"
    """No answer in time, or the connection broke: it may have happened."""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to do to one entity."""

    operation: str
    entity: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why, in words; the target's own log should show it."""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """How it went."""

    outcome: Outcome
    detail: str = ""
    """In words that a person can act on."""


@runtime_checkable
class Executor(Protocol):
    """Changes entities of one kind."""

    @property
    def name(self) -> str:
        """A short unique name: what the policy's ``executor`` field says."""

    @property
    def operations(self) -> frozenset[str]:
        """The operations that it knows."""

    @property
    def entities(self) -> Sequence[str]:
        """The entities that it can act on; the blast radius is a share of them."""

    def is_supported(self) -> Support:
        """Say whether it can work here."""

    def controls(self, entity: str) -> str | None:
        """Return the entity to act on for ``entity``: itself or a parent of it; None where neither."""

    def snapshot(self, command: Command, deadline_seconds: float) -> Mapping[str, Any]:
        """Read what :meth:`undo` needs to restore the present state; empty where nothing can.

        Raises:
            ExecutionError: when the state cannot be read; nothing was changed.
        """

    def execute(self, command: Command, deadline_seconds: float) -> ExecutionResult:
        """Do it. Returns within ``deadline_seconds`` and does not raise for a target that fails."""

    def undo(
        self, command: Command, undo: Mapping[str, Any], deadline_seconds: float
    ) -> ExecutionResult:
        """Restore what :meth:`snapshot` read before the command."""

    def close(self) -> None:
        """Release what the executor holds."""
