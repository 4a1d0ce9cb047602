"""NVIDIA GPUs through NVML, asked in a child process that can be killed when the driver hangs."""

from __future__ import annotations

import ctypes
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import structlog

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity

log = structlog.get_logger(__name__)

CHILD_COMMAND = (sys.executable, "-m", "collectors.gpu.nvml_child")
_LIBRARY = "libnvidia-ml.so.1"
_MAX_ANSWER_BYTES = 1024 * 1024
# The first question also starts an interpreter and NVML, which takes seconds on a cold machine with
# many GPUs.
_START_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 30.0


class KillableChild:
    """A child process that answers lines with lines, and dies when it is too slow.

    Args:
        command: what to run; it must end when its standard input ends.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False

    @property
    def warm(self) -> bool:
        """Whether the child runs and has answered before."""
        return self._answered and self._process is not None and self._process.poll() is None

    def ask(self, deadline_seconds: float) -> bytes:
        """Send one line and return the answer's line.

        Raises:
            CollectorError: when there is no answer in time; the child has been killed then, and the
                next question starts a new one.
        """
        process = self._running()
        try:
            answer = self._exchange(process, time.monotonic() + deadline_seconds)
        except (OSError, TimeoutError) as error:
            self.kill()
            reason = str(error) or type(error).__name__
            raise CollectorError(f"the NVML process gave no answer: {reason}") from error
        self._answered = True
        return answer

    def kill(self) -> None:
        """End the child now."""
        process, self._process = self._process, None
        self._answered = False
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        # A process that is stuck inside the driver dies only when the driver lets go of it; waiting for
        # that would hang us, too.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.kill()
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own module, no shell
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
                )
            except OSError as error:
                raise CollectorError(f"cannot start {self._command[0]}: {error}") from error
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], deadline: float) -> bytes:
        if process.stdin is None or process.stdout is None:
            raise OSError("the child has no pipes")
        process.stdin.write(b"\n")
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("too slow; the driver may hang")
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    raise OSError(f"it ended with status {process.poll()}")
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise OSError("its answer has no end")
        return bytes(answer)


class NvmlCollector:
    """Every GPU of this machine, on ``host/<host>/gpu/<index>``.

    A field that a device does not support is absent. A device that is lost, or was seen before and is
    gone, gives ``gpu_available`` 0 and nothing else. ``gpu_count`` on the host counts those that answer.

    Args:
        host: the host's name.
        deadline_seconds: the longest that one probe may take; a child that is slower is killed.
        command: the child's command line.
        library_present: whether NVML can be loaded here.
        monotonic: the clock that the probe is timed with.
    """

    def __init__(
        self,
        host: str,
        *,
        deadline_seconds: float = 0.7,
        command: Sequence[str] = CHILD_COMMAND,
        library_present: Callable[[], bool] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._deadline_seconds = deadline_seconds
        self._child = KillableChild(command)
        self._library_present = library_present or nvml_library_present
        self._monotonic = monotonic
        self._known: set[int] = set()
        self._pause_seconds = 0.0
        self._paused_until = -math.inf

    @property
    def name(self) -> str:
        """``gpu-nvml``."""
        return "gpu-nvml"

    @property
    def deadline_seconds(self) -> float:
        """The longest that one probe may take; longer for the first, which starts the child."""
        return self._deadline_seconds if self._child.warm else _START_SECONDS

    def is_supported(self) -> Support:
        """Say whether the driver's NVML library is there."""
        if self._library_present():
            return Support(supported=True)
        return Support(
            supported=False,
            reason=f"{_LIBRARY} cannot be loaded, so there is no NVIDIA driver here",
            fix='install the NVIDIA driver, or set gpu_mode = "simulated" or "none" in [collectors]',
        )

    def collect(self, now_seconds: float) -> Collection:
        """Ask the child once.

        After a failure the next child is started only after a pause that doubles up to half a minute:
        starting one every second would cost more than all other collecting together.

        Raises:
            CollectorError: when NVML does not answer in time, or answers with an error.
        """
        started = self._monotonic()
        if started < self._paused_until:
            wait = self._paused_until - started
            raise CollectorError(f"NVML failed before; the next try is in {wait:.0f} s")
        try:
            devices = self._devices(self._child.ask(self.deadline_seconds))
        except CollectorError:
            self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, max(1.0, 2 * self._pause_seconds))
            self._paused_until = self._monotonic() + self._pause_seconds
            raise
        self._pause_seconds = 0.0
        seconds = self._monotonic() - started
        samples = [
            Sample(now_seconds, name, signal, value, labels)
            for name, labels, signals in self._readings(devices, seconds)
            for signal, value in signals.items()
        ]
        answering = sum(device["signals"].get("gpu_available") == 1 for device in devices)
        samples.append(
            Sample(now_seconds, entity("host", self._host), "gpu_count", float(answering))
        )
        return Collection(samples=samples)

    def close(self) -> None:
        """End the child."""
        self._child.kill()

    def _devices(self, answer: bytes) -> list[dict[str, Any]]:
        try:
            document = json.loads(answer)
            devices = document["devices"] if "error" not in document else None
        except (ValueError, KeyError, TypeError) as error:
            self._child.kill()
            raise CollectorError(f"the NVML process answered {answer[:120]!r}") from error
        if devices is None:
            self._child.kill()
            raise CollectorError(
                f"NVML: {document['error']}", fix="check `nvidia-smi`; the driver may need a reload"
            )
        found: list[dict[str, Any]] = devices
        return found

    def _readings(
        self, devices: list[dict[str, Any]], seconds: float
    ) -> Iterator[tuple[str, dict[str, str], dict[str, float]]]:
        present = {int(device["index"]) for device in devices}
        for device in devices:
            name = entity("host", self._host, "gpu", str(device["index"]))
            labels = {key: device[key] for key in ("uuid", "name") if device[key]}
            signals = dict(device["signals"])
            if signals.get("gpu_available") == 1:
                signals["gpu_driver_call_seconds"] = seconds
            yield name, labels, signals
        for index in sorted(self._known - present):
            log.warning("gpu_gone", host=self._host, index=index)
            yield entity("host", self._host, "gpu", str(index)), {}, {"gpu_available": 0.0}
        self._known |= present


def nvml_library_present() -> bool:
    """Say whether the NVML library of the NVIDIA driver can be loaded. Calls nothing in it."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True
