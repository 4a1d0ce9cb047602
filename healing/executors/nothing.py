"""The executor that touches nothing: for waiting, and for what a person does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collectors.contract import Support
from healing.executors.contract import Command, ExecutionResult, Outcome


class NothingExecutor:
    """Does nothing, at once, to any entity."""

    name = "none"
    operations = frozenset({"await_supervisor", "page_human", "reboot_host"})
    entities: Sequence[str] = ()

    def is_supported(self) -> Support:
        """Say that it works everywhere."""
        return Support(supported=True)

    def controls(self, entity: str) -> str | None:
        """Return the entity itself."""
        return entity

    def snapshot(self, command: Command, deadline_seconds: float) -> Mapping[str, Any]:
        """Return nothing: there is nothing to take back."""
        del command, deadline_seconds
        return {}

    def execute(self, command: Command, deadline_seconds: float) -> ExecutionResult:
        """Do nothing, successfully."""
        del command, deadline_seconds
        return ExecutionResult(Outcome.DONE)

    def undo(
        self, command: Command, undo: Mapping[str, Any], deadline_seconds: float
    ) -> ExecutionResult:
        """Do nothing, successfully."""
        del command, undo, deadline_seconds
        return ExecutionResult(Outcome.DONE)

    def close(self) -> None:
        """Do nothing: nothing is held."""
