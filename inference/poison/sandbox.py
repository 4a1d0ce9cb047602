"""A worker outside the serving path, in which suspects show whether they bring it down.

It is the same program with the same model in a process of its own, with the lowest priority and the
workers' memory limit, and sees one group of requests at a time. What brings it down costs nobody an
answer. On a GPU it takes the memory of a second copy of the model while it runs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from inference.waiting import wait_at_most
from inference.worker.heartbeat import Heartbeat
from inference.worker.launch import LaunchedWorker
from inference.worker.link import WorkerLink
from inference.worker.wire import Message, Ready, Request, Token

_log = structlog.get_logger(__name__)

# How often a trial looks whether the worker lives, moves, and keeps its memory limit.
_LOOK_SECONDS = 0.05

Numbered = Callable[[int], Message]
"""Makes a request's message under another number."""


def numbered(request: Request) -> Numbered:
    """Return what makes a request's message under another number, without a deadline."""
    return lambda number: replace(request, number=number, deadline=math.inf)


class SandboxError(Exception):
    """The sandbox cannot judge."""


class ControlFailedError(SandboxError):
    """The sandbox goes down without any suspect, which exonerates them."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a sandbox may use."""

    load_seconds: float
    progress_seconds: float
    """Pending work without a finished step for this long is a hang, as in service."""
    memory_bytes: int


class Trial(Protocol):
    """Something in which a group of requests can be tried."""

    async def survives(self, group: Sequence[Numbered]) -> bool:
        """Answer a group at the same time; say whether the worker outlived it.

        Raises:
            SandboxError: nothing can be said about the group.
        """
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Sandbox:
    """Tries groups of requests; starts a new worker after each one that went down."""

    def __init__(
        self,
        launch: Callable[[], LaunchedWorker],
        control: Sequence[Numbered],
        limits: SandboxLimits,
        clock: Callable[[], float],
    ) -> None:
        self._launch = launch
        self._control = control
        self._limits = limits
        self._clock = clock
        self._run: _Run | None = None

    async def survives(self, group: Sequence[Numbered]) -> bool:
        """Try a group; see `Trial`.

        Raises:
            SandboxError: the worker does not start.
            ControlFailedError: not even golden prompts let it live.
        """
        if not self._control:
            raise SandboxError("there are no golden examples to compare the suspects with")
        if self._run is None:
            self._run = await self._start()
            if not await self._run.answer(self._control):
                await self.close()
                raise ControlFailedError("the sandbox goes down without any suspect")
        survived = await self._run.answer(group)
        if not survived:
            await self.close()
        return survived

    async def close(self) -> None:
        """End the worker that there is."""
        run, self._run = self._run, None
        if run is not None:
            await run.close()

    async def _start(self) -> _Run:
        try:
            worker = await asyncio.to_thread(self._launch)
        except OSError as error:
            raise SandboxError(f"the sandbox cannot be started: {error}") from error
        run = _Run(worker, self._limits, self._clock)
        try:
            await run.connect()
        except BaseException:
            await run.close()
            raise
        return run


class _Run:
    """One sandbox worker, from its start to its end."""

    def __init__(
        self, worker: LaunchedWorker, limits: SandboxLimits, clock: Callable[[], float]
    ) -> None:
        self._worker = worker
        self._limits = limits
        self._clock = clock
        self._link = WorkerLink(self._receive, self._on_lost)
        self._event = asyncio.Event()
        self._ready = False
        self._lost = False
        self._pending: set[int] = set()
        self._number = 0

    async def connect(self) -> None:
        """Wait until the model is loaded.

        Raises:
            SandboxError: it never is.
        """
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._link, sock=self._worker.connection)
        until = self._clock() + self._limits.load_seconds
        while not self._ready:
            if self._lost or self._worker.poll() is not None:
                raise SandboxError(
                    f"the sandbox does not start: {self._worker.heartbeat().detail or 'it ended'}"
                )
            if self._clock() > until:
                raise SandboxError(f"the sandbox did not load within {self._limits.load_seconds} s")
            await self._look()

    async def answer(self, group: Sequence[Numbered]) -> bool:
        """Answer a group; say whether the worker lives and every request came to an end."""
        began = self._clock()
        for make in group:
            self._number += 1
            self._pending.add(self._number)
            self._link.send(make(self._number))
        while self._pending:
            if self._lost or self._worker.poll() is not None:
                return False
            if self._stuck(self._worker.heartbeat(), began):
                _log.info("sandbox_hangs", pid=self._worker.pid)
                return False
            usage = await asyncio.to_thread(self._worker.usage)
            if usage.resident_memory_bytes > self._limits.memory_bytes:
                _log.info("sandbox_memory", pid=self._worker.pid, bytes=usage.resident_memory_bytes)
                return False
            await self._look()
        return not self._lost

    async def close(self) -> None:
        """End the process; there is nothing in it to save."""
        self._link.close()
        self._worker.kill()
        await asyncio.to_thread(self._worker.wait)
        self._worker.close()

    def _stuck(self, record: Heartbeat, began: float) -> bool:
        moved = max(began, record.last_step_at)
        return self._clock() - moved > self._limits.progress_seconds

    async def _look(self) -> None:
        """Wait for a message, at most until the next look."""
        self._event.clear()
        await wait_at_most(self._event, _LOOK_SECONDS)

    def _receive(self, message: Message) -> None:
        if isinstance(message, Ready):
            self._ready = True
        elif not isinstance(message, Token):
            self._pending.discard(getattr(message, "number", 0))
        self._event.set()

    def _on_lost(self, _link: WorkerLink) -> None:
        self._lost = True
        self._event.set()
