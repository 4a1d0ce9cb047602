"""GPUs of this machine, through ``nvidia-smi``."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from collectors.gpu.release import GpuRelease, ReleaseError
from healing.errors import ExecutionError
from healing.executors.gpu import GpuControl, PowerLimits

log = structlog.get_logger(__name__)

_KILL_SECONDS = 1.0
# What is left of the time for a reset when the collector takes long to let go.
_LEAST_RESET_SECONDS = 1.0

Run = Callable[[Sequence[str], float], str]
"""Runs a program within a deadline in seconds and returns what it printed."""


class NvidiaSmiControl:
    """A GPU of this machine through ``nvidia-smi``.

    NVML calls can hang in the driver for good, and a thread that hangs cannot be ended; a child
    process can be given up. Setting a limit needs root.
    """

    _QUERY = "power.limit,power.default_limit,power.min_limit,power.max_limit"

    def __init__(
        self, gpu: str, *, run: Run | None = None, release: GpuRelease | None = None
    ) -> None:
        """Act on one GPU.

        Args:
            gpu: its UUID, PCI bus id or index.
            run: runs ``nvidia-smi``.
            release: how Galen's own reading of GPUs is asked to let go; None where nothing reads them.
        """
        self._gpu = gpu
        self._run = run or run_program
        self._release = release

    def power_limits(self, deadline_seconds: float) -> PowerLimits:
        """Ask for the four limits."""
        printed = self._run(
            ["nvidia-smi", "-i", self._gpu, f"--query-gpu={self._QUERY}",
             "--format=csv,noheader,nounits"],
            deadline_seconds,
        )  # fmt: skip
        try:
            limit, default, minimum, maximum = (float(field) for field in printed.split(","))
        except ValueError as error:
            raise ExecutionError(
                f"GPU {self._gpu} does not tell its power limits: {printed.strip()[:80]!r}"
            ) from error
        return PowerLimits(limit, default, minimum, maximum)

    def set_power_limit(self, watts: float, deadline_seconds: float) -> None:
        """Set the limit."""
        self._run(["nvidia-smi", "-i", self._gpu, f"--power-limit={watts:.0f}"], deadline_seconds)

    def reset(self, deadline_seconds: float) -> None:
        """Reset the device; the driver refuses while a process has it open.

        Galen's own reader lets go of it meanwhile; any other process is for a person to end.
        """
        command = ["nvidia-smi", "-i", self._gpu, "--gpu-reset"]
        if self._release is None:
            self._run(command, deadline_seconds)
            return
        started = time.monotonic()
        try:
            with self._release.held(self._gpu, deadline_seconds, "nvidia-smi --gpu-reset") as free:
                if not free:
                    # Where nothing of Galen reads GPUs nobody answers, and the reset works all the same.
                    log.info("gpu_release_unanswered", gpu=self._gpu)
                left = deadline_seconds - (time.monotonic() - started)
                self._run(command, max(_LEAST_RESET_SECONDS, left))
        except ReleaseError as error:
            raise ExecutionError(f"GPU {self._gpu} is not released: {error}") from error


class LocalGpus(Mapping[str, GpuControl]):
    """A control for every GPU that a collector has seen by now.

    Args:
        uuids: says which GPUs there are, as UUID by entity.
        make: makes the control of a UUID.
    """

    def __init__(
        self, uuids: Callable[[], Mapping[str, str]], make: Callable[[str], GpuControl]
    ) -> None:
        self._uuids = uuids
        self._make = make

    def __getitem__(self, entity: str) -> GpuControl:
        return self._make(self._uuids()[entity])

    def __iter__(self) -> Iterator[str]:
        return iter(self._uuids())

    def __len__(self) -> int:
        return len(self._uuids())


def run_program(arguments: Sequence[str], deadline_seconds: float) -> str:
    """Run a program and return its output.

    Raises:
        ExecutionError: when it is missing or ends with an error.
        TimeoutError: when it does not end in time; it is killed, and not waited for if that fails.
    """
    try:
        child = subprocess.Popen(  # noqa: S603 - fixed program, arguments are not parsed by a shell
            list(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise ExecutionError(f"{arguments[0]} cannot be run: {error}") from error
    try:
        printed, _ = child.communicate(timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        # One that hangs in the driver cannot be killed; waiting longer would hang this thread too.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=_KILL_SECONDS)
        raise TimeoutError(f"{arguments[0]} gave no answer in {deadline_seconds:.0f} s") from None
    if child.returncode != 0:
        words = " ".join(printed[:300].split())
        raise ExecutionError(f"{' '.join(arguments)} failed: {words}")
    return printed
