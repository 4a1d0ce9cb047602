"""The processes on a GPU: how many, their memory, and those that are no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collectors.gpu.nvml_calls import NvmlCalls

# The inode of the first PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


def process_ids_are_global() -> bool:
    """Say whether process ids mean here what they mean to the driver: not in a PID namespace."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def _lives(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()


class ProcessWatch:
    """Compares the processes on each device with the last reading.

    Args:
        lives: whether a process exists; None where process ids mean something else than to the driver.
    """

    def __init__(self, lives: Callable[[int], bool] | None = None) -> None:
        self._lives = lives or (_lives if process_ids_are_global() else None)
        self._last: dict[str, frozenset[int]] = {}

    def signals(self, calls: NvmlCalls, handle: Any, uuid: str) -> dict[str, float]:
        """Read the processes of a device or a MIG instance; nothing where NVML does not tell them."""
        return dict(self._signals(calls, handle, uuid))

    def _signals(self, calls: NvmlCalls, handle: Any, uuid: str) -> Iterator[tuple[str, float]]:
        compute = calls.ask("nvmlDeviceGetComputeRunningProcesses", handle)
        if compute is None:  # the name before driver R510
            compute = calls.ask("nvmlDeviceGetComputeRunningProcesses_v2", handle)
        if compute is None:
            self._last.pop(uuid, None)
            return
        graphics = calls.ask("nvmlDeviceGetGraphicsRunningProcesses", handle) or []
        used = {int(one.pid): one.usedGpuMemory for one in (*graphics, *compute)}
        present = frozenset(used)
        yield "gpu_processes", float(len(present))
        if None not in used.values():
            yield "gpu_process_memory_bytes", float(sum(used.values()))
        if uuid in self._last:
            yield "gpu_processes_ended", float(len(self._last[uuid] - present))
        self._last[uuid] = present
        if self._lives is not None:
            vanished = [pid for pid in present if not self._lives(pid)]
            yield "gpu_processes_vanished", float(len(vanished))
