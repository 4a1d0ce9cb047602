"""A child process that answers lines with lines, and dies when it is too slow."""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from collectors.contract import CollectorError
from collectors.gpu.nvml_calls import NO_GPU, NOTE_BYTES, ProgressNote

log = structlog.get_logger(__name__)

_MAX_ANSWER_BYTES = 1024 * 1024
_MOST_UNDEAD = 3
KILL_SECONDS = 0.2
"""How long a killed child is waited for; one that is stuck inside the driver does not die."""


class TooSlow(CollectorError):  # noqa: N818  # a CollectorError already
    """There was no answer in time. ``gpu`` is the NVML index at which it hung, or ``NO_GPU``."""

    def __init__(self, message: str, *, gpu: int, function: str) -> None:
        super().__init__(message)
        self.gpu = gpu
        self.function = function


class KillableChild:
    """Starts the child when it is asked, and again after it died.

    A child that is stuck inside the driver survives its killing until the driver lets go of it. No
    more than three such are left behind: then none is started until one of them has died.

    Args:
        command: what to run; it must end when its standard input ends.
        noted: whether the child takes ``--progress FD`` and notes there which call is under way.
    """

    def __init__(self, command: Sequence[str], *, noted: bool = False) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._undead: list[subprocess.Popen[bytes]] = []
        self._answered = False
        self._noted = noted
        self._note: ProgressNote | None = None

    @property
    def warm(self) -> bool:
        """Whether the child runs and has answered before."""
        return self._answered and self._process is not None and self._process.poll() is None

    @property
    def gone(self) -> bool:
        """Whether no child is left, not even one that was killed and is stuck in the driver."""
        self._undead = [process for process in self._undead if process.poll() is None]
        return self._process is None and not self._undead

    @property
    def process_id(self) -> int | None:
        """The running child's process id."""
        return None if self._process is None else self._process.pid

    def ask(self, line: bytes, deadline_seconds: float) -> bytes:
        """Send one line and return the answer's line.

        Raises:
            TooSlow: when there is no answer in time; the child has been killed then.
            CollectorError: when the child cannot be started, or ended. The next question starts a new
                one.
        """
        process = self._running()
        try:
            answer = self._exchange(process, line, time.monotonic() + deadline_seconds)
        except TimeoutError as error:
            gpu, function = self._note.read() if self._note is not None else (NO_GPU, "")
            self.kill()
            place = f" in {function}" if function else ""
            place += f" of GPU {gpu}" if gpu != NO_GPU else ""
            raise TooSlow(
                f"NVML gave no answer in {deadline_seconds:g} s{place}; the driver may hang",
                gpu=gpu,
                function=function,
            ) from error
        except OSError as error:
            self.kill()
            raise CollectorError(f"the NVML process gave no answer: {error}") from error
        self._answered = True
        return answer

    def kill(self) -> None:
        """End the child now."""
        process, self._process = self._process, None
        self._answered = False
        if self._note is not None:
            self._note.close()
            self._note = None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            process.wait(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("nvml_child_does_not_die", process_id=process.pid)
            self._undead.append(process)

    def _running(self) -> subprocess.Popen[bytes]:
        self._undead = [process for process in self._undead if process.poll() is None]
        if self._process is None or self._process.poll() is not None:
            self.kill()
            if len(self._undead) >= _MOST_UNDEAD:
                raise TooSlow(
                    f"{len(self._undead)} killed NVML processes are stuck in the driver",
                    gpu=NO_GPU,
                    function="",
                )
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            with tempfile.TemporaryFile() as shared:
                extra: list[str] = []
                if self._noted:
                    shared.truncate(NOTE_BYTES)
                    self._note = ProgressNote(shared.fileno())
                    self._note.write(NO_GPU, "")
                    extra = ["--progress", str(shared.fileno())]
                return subprocess.Popen(  # noqa: S603  # our own module, no shell
                    [*self._command, *extra],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=(shared.fileno(),),
                    # An interrupt from the terminal is for the parent, whose end ends the child.
                    start_new_session=True,
                )
        except OSError as error:
            raise CollectorError(f"cannot start {self._command[0]}: {error}") from error

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes:
        if process.stdin is None or process.stdout is None:
            raise OSError("the child has no pipes")
        process.stdin.write(line + b"\n")
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=KILL_SECONDS)
                    raise OSError(f"it ended with status {process.returncode}")
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise OSError("its answer has no end")
        return bytes(answer)
