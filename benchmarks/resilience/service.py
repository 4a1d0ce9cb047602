"""The service under test, in a process of its own, seen and hurt from outside only."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.repository import bundled_repository

TOKEN = "benchmark"
MODEL, OTHER_MODEL = "demo-lm", "demo-lm-small"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0

# A tight progress budget, and a restart budget for more faults than anybody meets in minutes.
SETTINGS: Mapping[str, Any] = {
    "models": [MODEL, OTHER_MODEL],
    "slots": 8,
    "stall_seconds": 1.0,
    "progress_budget_seconds": 3.0,
    "restart_budget": 1000,
    "stable_seconds": 1.0,
    "allow_faults": True,
    "admin_token": TOKEN,
}


@dataclass(frozen=True, slots=True)
class EngineView:
    """What the service says about one engine."""

    state: str
    up: bool
    pid: int | None
    unplanned_restarts: int
    load_phase: str


class Service:
    """A running service."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self._process = process

    def alive(self) -> bool:
        """Whether the front lives."""
        return self._process.poll() is None

    def get(self, path: str, timeout_seconds: float = 10.0) -> tuple[int, bytes]:
        """Ask for a path and return status and body.

        Raises:
            OSError: there is no answer.
        """
        return self._call("GET", path, None, timeout_seconds)

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Send JSON and return status and body.

        Raises:
            OSError: there is no answer.
        """
        return self._call("POST", path, json.dumps(body).encode(), 30.0)

    def status_of(self, path: str) -> int:
        """Return the status of a path, 0 without an answer."""
        try:
            return self.get(path)[0]
        except OSError:
            return 0

    def engine(self, model: str = MODEL) -> EngineView:
        """Look at an engine."""
        table = json.loads(self.get("/api/system/status")[1])["models"][model]
        restarts = {key: count for key, count in table["restarts"].items() if key != "planned"}
        return EngineView(
            table["state"],
            table["up"],
            table["worker_pid"],
            sum(restarts.values()),
            table["load_phase"],
        )

    def poison(self) -> dict[str, Any]:
        """Return what the service knows about poison."""
        found: dict[str, Any] = json.loads(self.get("/admin/state")[1])["poison"]
        return found

    def _call(
        self, method: str, path: str, body: bytes | None, timeout_seconds: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except http.client.HTTPException as error:
                raise OSError(f"{method} {path}: {error!r}") from error


@contextlib.contextmanager
def serve(folder: Path, *, wait: bool = True, **changes: Any) -> Iterator[Service]:
    """Run a service until the block ends.

    Raises:
        OSError: it does not start; its log is in the folder.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**SETTINGS, "state_dir": str(folder / "state"), **changes}
    program = (
        "from inference.server import run\n"
        "from inference.settings import InferenceSettings\n"
        f"run(InferenceSettings.model_validate_json({json.dumps(settings)!r}), '127.0.0.1', {port})"
    )
    log = folder / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output)
    service = Service(port, process)
    try:
        until = time.monotonic() + _START_SECONDS
        path = "/health/ready" if wait else "/health/live"
        while service.status_of(path) != 200:
            if time.monotonic() > until or not service.alive():
                raise OSError(f"the service did not start; see {log}")
            time.sleep(0.05)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def slow_repository(folder: Path, seconds: float) -> Iterator[Path]:
    """Return a repository whose default model loads for this long: its storage is that slow.

    The tokenizer is a named pipe that nobody writes to before the time is over, so that the worker
    waits inside its load, as on a disk or a network that does not answer.
    """
    root = folder / "models"
    shutil.copytree(bundled_repository(), root)
    version = max((root / MODEL).iterdir(), key=lambda path: int(path.name))
    path = version / "tokenizer.json"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)

    def feed() -> None:
        with contextlib.suppress(OSError), path.open("wb") as pipe:
            time.sleep(seconds)
            pipe.write(content)

    threading.Thread(target=feed, daemon=True).start()
    yield root
