"""The client of the throughput table: wrk, with one thread and a Lua script for the body."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
MISSING = (
    "wrk is not installed. On Debian or Ubuntu: apt-get install wrk; elsewhere "
    "https://github.com/wg/wrk. `--client python` measures without it, but that client takes a "
    "core for itself at a few thousand requests a second, so its figures say little."
)


class ClientError(RuntimeError):
    """The client could not measure."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a closed loop of connections got in one measurement."""

    requests: int
    """Answers with a status below 400."""
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int
    """Broken connections, timeouts and refusals."""

    @property
    def per_second(self) -> float:
        """Answered requests a second."""
        return self.requests / self.seconds


def available() -> bool:
    """Say whether wrk is on the path."""
    return shutil.which("wrk") is not None


def measure(url: str, body: Path, connections: int, seconds: float) -> Load:
    """Post a body over persistent connections, each waiting for its answer before the next.

    Raises:
        ClientError: wrk is missing or fails.
    """
    if not available():
        raise ClientError(MISSING)
    whole = max(1, round(seconds))
    command = [
        "wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{whole}s",
        "--timeout", "30s", "--script", str(SCRIPT), url, "--", str(body),
    ]  # fmt: skip
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=whole + 60.0
    )
    if done.returncode:
        raise ClientError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return parse(done.stdout)


def parse(text: str) -> Load:
    """Read the line that the script ends with.

    Raises:
        ClientError: it is not there.
    """
    line = next((line for line in reversed(text.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise ClientError(f"wrk printed no result:\n{text}")
    table = json.loads(line)
    errors = table["errors"]
    return Load(
        # wrk counts a refused request among the requests and among the errors.
        requests=table["requests"] - errors["status"],
        seconds=table["seconds"],
        p50_ms=table["p50_ms"],
        p99_ms=table["p99_ms"],
        max_ms=table["max_ms"],
        errors=sum(errors.values()),
    )
