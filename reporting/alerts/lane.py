"""One call at a time, given up on after a deadline.

A socket timeout bounds each read and not the whole call: a server that drips one byte a second holds its
client for ever. The call therefore runs in a thread of its own, and the caller stops waiting for it. The
thread ends when its sockets do; until then the lane is busy and takes no other call, so that a hanging
channel costs one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class DeadlineExceededError(Exception):
    """The call did not come back in time."""


class Lane(Generic[Answer]):
    """Runs calls of one kind, at most one at a time, in a daemon thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._answers: SimpleQueue[Answer | Exception] = SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether a call that was given up on is still running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, call: Callable[[], Answer]) -> None:
        """Start a call.

        Raises:
            RuntimeError: while the lane is busy.
        """
        if self.busy:
            raise RuntimeError(f"lane {self._name} is busy with an earlier call")
        # A queue of its own, so that the answer to a call that was given up on goes nowhere.
        answers = self._answers = SimpleQueue()

        def run() -> None:
            try:
                answers.put(call())
            except Exception as error:  # noqa: BLE001 - handed to the caller, who logs it
                answers.put(error)

        self._thread = threading.Thread(target=run, name=f"lane-{self._name}", daemon=True)
        self._thread.start()

    def wait(self, deadline_seconds: float) -> Answer:
        """Return the answer to the started call.

        Raises:
            DeadlineExceededError: when none has come in time.
            Exception: whatever the call raised.
        """
        try:
            answer = self._answers.get(timeout=deadline_seconds)
        except Empty:
            raise DeadlineExceededError(f"no answer within {deadline_seconds:g} s") from None
        if self._thread is not None:
            self._thread.join(timeout=1.0)  # it has answered: only its last instruction is left
        if isinstance(answer, Exception):
            raise answer
        return answer
