"""What can go wrong in healing. ``retryable`` says whether the same call may work later."""

from __future__ import annotations


class HealingError(Exception):
    """Base of all errors of healing; ``fix`` says what to do about it."""

    def __init__(self, message: str, *, retryable: bool = False, fix: str = "") -> None:
        super().__init__(message)
        self.retryable = retryable
        self.fix = fix


class PolicyError(HealingError, ValueError):
    """The policy has a fault; the message names file, action and field."""


class LedgerError(HealingError):
    """The ledger cannot do what it was asked for."""


class ActionNotFoundError(LedgerError, LookupError):
    """The ledger knows no action of this id."""


class WrongStateError(LedgerError):
    """The action is not in a state from which it can go where it was told to."""


class DuplicateActionError(LedgerError):
    """An action of the same idempotency key has been recorded before."""


class EntityBusyError(LedgerError):
    """Another action is under way on this entity, a parent or a child of it."""

    def __init__(self, entity: str, busy_with: str) -> None:
        super().__init__(f"{entity} is busy with {busy_with}", retryable=True)
        self.busy_with = busy_with


class ExecutionError(HealingError):
    """An executor could not read or change its target; nothing was changed."""
