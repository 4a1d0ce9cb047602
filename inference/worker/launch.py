"""Starting a worker process and holding its front end: socket, lifeline, heartbeat."""

from __future__ import annotations

import contextlib
import mmap
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Protocol

import psutil

from inference.worker.heartbeat import SIZE_BYTES, Heartbeat, HeartbeatReader
from inference.worker.wire import Start, encode


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker uses; `cpu_seconds` is since its start."""

    resident_memory_bytes: int = 0
    cpu_seconds: float = 0.0


class WorkerProcess(Protocol):
    """A started worker, as the supervisor sees it."""

    @property
    def pid(self) -> int:
        """Process id."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, or None while it lives."""
        ...

    def terminate(self) -> None:
        """Ask it to drain and end (SIGTERM)."""
        ...

    def kill(self) -> None:
        """End it (SIGKILL)."""
        ...

    def heartbeat(self) -> Heartbeat:
        """Read its heartbeat without blocking."""
        ...

    def usage(self) -> Usage:
        """Read its memory and CPU time; zeros once it is gone."""
        ...

    def close(self) -> None:
        """Let go of what belongs to a dead worker."""
        ...


class LaunchedWorker:
    """A worker process of this machine."""

    def __init__(self, start: Start, nice: int = 0) -> None:
        self.connection, connection = socket.socketpair()
        self.lifeline, lifeline = socket.socketpair()
        with connection, lifeline, tempfile.TemporaryFile() as memory:
            memory.truncate(SIZE_BYTES)
            self._memory = mmap.mmap(memory.fileno(), SIZE_BYTES)
            descriptors = (connection.fileno(), lifeline.fileno(), memory.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable, "-m", "inference.worker",
                    "--connection", str(descriptors[0]),
                    "--lifeline", str(descriptors[1]),
                    "--heartbeat", str(descriptors[2]),
                    "--nice", str(nice),
                ],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._reader = HeartbeatReader(self._memory)
        self._usage = psutil.Process(self._process.pid)
        self.connection.sendall(encode(start))
        self.connection.setblocking(False)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it lives."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end and return the exit status; after `kill`."""
        return self._process.wait()

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def clear_faults(self) -> None:
        """Make it forget injected faults; works while its step loop hangs."""
        self._process.send_signal(signal.SIGUSR1)

    def heartbeat(self) -> Heartbeat:
        """Read its heartbeat."""
        return self._reader.read()

    def usage(self) -> Usage:
        """Read its memory and CPU time."""
        try:
            with self._usage.oneshot():
                memory = self._usage.memory_info().rss
                cpu = self._usage.cpu_times()
        except psutil.Error:
            return Usage()
        return Usage(int(memory), float(cpu.user + cpu.system))

    def close(self) -> None:
        """Close the lifeline; the connection belongs to the event loop."""
        with contextlib.suppress(OSError):
            self.lifeline.close()
