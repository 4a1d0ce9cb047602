"""Runs one piece of TensorRT work in a process of its own.

TensorRT can end the process that it runs in (a `ParserError` that outlives its parser does), so
nothing here lets it into ours. The child reads one job as JSON from standard input and answers with
one JSON document a line: any number of `Progress`, then `Done` or `Failed`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from inference.engines.offline import BuildError

_COMMAND = (sys.executable, "-m", "inference.engines.build_child")
_STDERR_TAIL_BYTES = 2000
_MAX_LINE_BYTES = 16 << 20  # the layers of a large plan are some megabytes
_EXIT_SECONDS = 10.0


class BuildJob(BaseModel):
    """Build a plan."""

    model_config = ConfigDict(frozen=True)

    task: Literal["build"] = "build"
    module: str
    onnx: Path
    out: Path
    target: str = Field(description="Compute capability as in sm80, or `current`.")
    profile: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class InspectJob(BaseModel):
    """Deserialize a plan and describe it."""

    model_config = ConfigDict(frozen=True)

    task: Literal["inspect"] = "inspect"
    module: str
    plan: Path


class Progress(BaseModel):
    """What the child is doing."""

    event: Literal["progress"] = "progress"
    text: str


class Done(BaseModel):
    """The job's result."""

    event: Literal["done"] = "done"
    result: dict[str, Any]


class Failed(BaseModel):
    """Why there is none."""

    event: Literal["failed"] = "failed"
    reason: str
    fix: str = ""


Job = Annotated[BuildJob | InspectJob, Field(discriminator="task")]
Event = Annotated[Progress | Done | Failed, Field(discriminator="event")]
JOBS: TypeAdapter[BuildJob | InspectJob] = TypeAdapter(Job)
_EVENTS: TypeAdapter[Progress | Done | Failed] = TypeAdapter(Event)


def run_child(
    job: BuildJob | InspectJob,
    on_progress: Callable[[str], None],
    *,
    timeout_seconds: float,
    command: Sequence[str] = _COMMAND,
) -> dict[str, Any]:
    """Run a job and return its result.

    Raises:
        BuildError: the child failed, died, said something else, or took too long.
    """
    expired = threading.Event()
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_seconds, expire)
        timer.start()
        try:
            outcome = _converse(process, job, on_progress)
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()  # does nothing to a process that has ended
            process.wait(_EXIT_SECONDS)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if isinstance(outcome, Done) and status == 0:
            return outcome.result
        if isinstance(outcome, Failed):
            raise BuildError(outcome.reason, fix=outcome.fix)
        if expired.is_set():
            raise BuildError(
                f"{job.module} was not done after {timeout_seconds:g} s",
                fix="Give it more time with --timeout.",
            )
        raise BuildError(f"{job.module} {_describe_exit(status)}{_tail(stderr)}")


def _converse(
    process: subprocess.Popen[bytes], job: BuildJob | InspectJob, on_progress: Callable[[str], None]
) -> Done | Failed | None:
    """Hand over the job and read what comes back; None when the child ends without a result."""
    if process.stdin is None or process.stdout is None:
        raise BuildError("the child process has no pipes")
    try:
        process.stdin.write(job.model_dump_json().encode())
        process.stdin.close()
    except BrokenPipeError:
        return None  # it died at once; its status says how
    while line := process.stdout.readline(_MAX_LINE_BYTES):
        try:
            event = _EVENTS.validate_json(line)
        except ValidationError as error:
            raise BuildError(f"the child process said {line[:200]!r}") from error
        if not isinstance(event, Progress):
            return event
        on_progress(event.text)
    return None


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"ended without a result, with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    return f"crashed its process with signal {-status} ({name})"


def _tail(stderr: IO[bytes]) -> str:
    """Return the last lines of standard error, the only trace that a crash leaves."""
    size = stderr.seek(0, 2)
    stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
    text = stderr.read().decode("utf-8", "replace").strip()
    return f"; its last words: {text}" if text else ""
