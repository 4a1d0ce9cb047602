"""Processes under measurement: what a whole tree of them has used."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Used:
    """What a tree of processes used over a span of time."""

    seconds: float
    cpu_seconds: float
    resident_mib: float
    """Resident memory at the end, summed over the processes: what they share counts for each."""
    distinct_mib: float
    """The same with what the processes of the tree share counted once: what they need by themselves."""

    @property
    def core_share(self) -> float:
        """CPU time as the share of one core."""
        return self.cpu_seconds / self.seconds


class Tree:
    """A process and its descendants; what one that ended had used counts as it was last seen."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._last: dict[int, float] = {}

    def cpu_seconds(self) -> float:
        """Return the CPU time of all that were ever seen."""
        for process in self._alive():
            try:
                times = process.cpu_times()
                self._last[process.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return sum(self._last.values())

    def memory_mib(self) -> tuple[float, float]:
        """Return resident memory of those that are alive, as a sum, and with shared pages once."""
        resident = private = 0
        shared: dict[tuple[str, int, str], int] = {}
        for process in self._alive():
            for part in process.memory_maps(grouped=False):
                resident += part.rss
                private += part.private_clean + part.private_dirty
                key = (part.path, part.size, part.perms)
                own = part.shared_clean + part.shared_dirty
                shared[key] = max(shared.get(key, 0), own)
        return resident / MIB, (private + sum(shared.values())) / MIB

    def over(self, seconds: float) -> Used:
        """Watch for a while and return what was used."""
        before, began = self.cpu_seconds(), time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            self.cpu_seconds()
        spent, took = self.cpu_seconds() - before, time.monotonic() - began
        resident, distinct = self.memory_mib()
        return Used(took, spent, resident, distinct)

    def _alive(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


@contextmanager
def running(
    command: Sequence[str], log: Path, *, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command with its messages in a file; its output can be read."""
    with log.open("w", encoding="utf-8") as messages:
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=messages, text=True, env=environment
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
