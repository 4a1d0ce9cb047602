"""Runs the parts of Galen as child processes, keeps them running, and stops them in order.

A part that ends by itself is started again with exponential backoff. Each part's output goes to a log
file of its own, so that one that fails to start can say why.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_STABLE_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Part:
    """One child process."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 10.0
    """How long it may take to stop before it is killed."""


class _Running:
    def __init__(self, part: Part, log_file: Path) -> None:
        self.part = part
        self.log_file = log_file
        self.process: subprocess.Popen[bytes] | None = None
        self.started_seconds = 0.0
        self.start_again_seconds = 0.0
        self.failures = 0
        self._output: IO[bytes] | None = None

    def start(self, now_seconds: float) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._output = self.log_file.open("ab")
        # A session of its own: Ctrl-C reaches the supervisor alone, which then stops all in order.
        self.process = subprocess.Popen(  # noqa: S603 - the command is ours
            list(self.part.command),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.part.environment},
            start_new_session=True,
        )
        self.started_seconds = now_seconds

    def ended(self, now_seconds: float) -> int | None:
        if self.process is None or (status := self.process.poll()) is None:
            return None
        if now_seconds - self.started_seconds > _STABLE_AFTER_SECONDS:
            self.failures = 0
        self.failures += 1
        backoff = _FIRST_BACKOFF_SECONDS * 2 ** (self.failures - 1)
        self.start_again_seconds = now_seconds + min(_LONGEST_BACKOFF_SECONDS, backoff)
        self.process = None
        self.close()
        return status

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait_or_kill(self) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(self.part.stop_seconds)
        except subprocess.TimeoutExpired:
            log.warning("part_killed", part=self.part.name, after_seconds=self.part.stop_seconds)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5.0)
        self.close()

    def close(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None


class Supervisor:
    """Starts parts in order, restarts those that end, stops them in the opposite order."""

    def __init__(self, log_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log_dir = log_dir
        self._clock = clock
        self._running: dict[str, _Running] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, part: Part) -> None:
        """Start a part now, and keep it running from then on."""
        running = _Running(part, self._log_dir / f"{part.name}.log")
        running.start(self._clock())
        self._running[part.name] = running

    def check(self) -> list[str]:
        """Restart what has ended and is due; return what happened in words. Call it often."""
        happened: list[str] = []
        now = self._clock()
        for name, running in self._running.items():
            status = running.ended(now)
            if status is not None:
                wait = running.start_again_seconds - now
                happened.append(f"{name} ended with status {status}; starts again in {wait:.1f} s")
                log.warning("part_ended", part=name, status=status, restart_in_seconds=wait)
            elif running.process is None and now >= running.start_again_seconds:
                running.start(now)
                happened.append(f"{name} started again")
        return happened

    def is_running(self, name: str) -> bool:
        """Say whether a part's process is alive now."""
        process = self._running[name].process
        return process is not None and process.poll() is None

    def log_tail(self, name: str, *, lines: int = 15) -> str:
        """Return the end of a part's log."""
        path = self._running[name].log_file
        if not path.exists():
            return ""
        return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Stop all parts: newest first, each with the time that it asks for."""
        for running in reversed(list(self._running.values())):
            running.ask_to_stop()
            running.wait_or_kill()
        self._running.clear()
