"""Servers as processes: started, proven to answer right, and ended with all their children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.serving.contestants import Contestant, Place
from benchmarks.serving.models import ModelUnderTest

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_TOLERANCE = 1e-4


class ServerError(RuntimeError):
    """A server did not start or answers wrong; the message holds the end of its log."""


class Server:
    """A running server that has answered right."""

    def __init__(
        self, contestant: Contestant, model: ModelUnderTest, port: int, process: psutil.Process
    ) -> None:
        self.contestant = contestant
        self.url = f"http://127.0.0.1:{port}{contestant.path(model)}"
        self.port = port
        self._process = process

    def cpu_seconds(self) -> float:
        """Return the CPU time of the server and its children so far."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            for process in (self._process, *self._process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
        return total


@contextlib.contextmanager
def serve(
    contestant: Contestant,
    model: ModelUnderTest,
    python: Path,
    folder: Path,
    deadline_seconds: float | None = None,
) -> Iterator[Server]:
    """Run a server until the block ends.

    Raises:
        ServerError: it does not answer one row as ONNX Runtime does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    launch = contestant.launch(model, Place(python, port, folder, deadline_seconds))
    log = folder / "server.log"
    with log.open("wb") as output:
        started = subprocess.Popen(
            launch.command,
            cwd=launch.folder,
            env={**os.environ, **launch.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = Server(contestant, model, port, psutil.Process(started.pid))
    try:
        _wait_until_right(server, model, started, log)
        yield server
    finally:
        _stop(started)


def ask(server: Server, model: ModelUnderTest, row: Sequence[float]) -> list[float]:
    """Send one row and return the answer's.

    Raises:
        OSError: no connection, or a status that is not 200.
    """
    request = urllib.request.Request(
        server.url,
        server.contestant.encode(model, row),
        {"content-type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        return server.contestant.row(json.load(answer))


def _wait_until_right(
    server: Server, model: ModelUnderTest, started: subprocess.Popen[bytes], log: Path
) -> None:
    """Wait for the first answer and compare it by value."""
    deadline = time.monotonic() + _START_SECONDS
    problem = "no answer"
    while time.monotonic() < deadline and started.poll() is None:
        try:
            answer = ask(server, model, model.row)
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = repr(error)
            time.sleep(0.2)
            continue
        if np.allclose(answer, model.expected, atol=_TOLERANCE, rtol=_TOLERANCE):
            return
        problem = f"answers {answer[:4]}, ONNX Runtime {list(model.expected[:4])}"
        break
    end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise ServerError(f"{server.contestant.name} on {server.url}: {problem}\n{end}")


def _stop(started: subprocess.Popen[bytes]) -> None:
    """End a server with everything that it started."""
    family = [psutil.Process(started.pid)] if started.poll() is None else []
    for process in list(family):
        with contextlib.suppress(psutil.Error):
            family += process.children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    started.wait(_STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
