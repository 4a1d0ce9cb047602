"""A fleet's past in a real server: VictoriaMetrics, filled by its import of JSON lines."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import psutil

USUAL = {
    "llm_requests_per_second": 12,
    "llm_tokens_per_second": 600,
    "llm_error_ratio": 0.004,
    "llm_request_latency_seconds": 0.4,
    "llm_time_to_first_token_seconds": 0.05,
    "llm_time_per_output_token_seconds": 0.006,
    "llm_queue_depth": 2,
    "llm_queue_wait_seconds": 0.01,
    "llm_active_requests": 4,
    "llm_slot_usage_ratio": 0.4,
    "llm_cache_hit_ratio": 0.5,
    "llm_batch_size": 4,
    "engine_steps_per_second": 150,
    "engine_step_seconds": 0.005,
    "engine_busy_ratio": 0.5,
    "engine_resident_memory_bytes": 4e8,
    "engine_cpu_percent": 60,
    "canary_latency_seconds": 0.2,
    "llm_request_latency_p50_seconds": 0.2,
    "llm_client_error_ratio": 0.01,
}
"""Twenty signals of a service, and their level."""
_CYCLE_SECONDS = 7200.0
_READY_SECONDS = 60.0
_LINES = 200


@dataclass(frozen=True)
class Past:
    """What the server is filled with: services that follow a cycle of two hours."""

    services: int
    start_seconds: float
    end_seconds: float
    step_seconds: float

    @property
    def series(self) -> int:
        return self.services * len(USUAL)

    @property
    def samples(self) -> int:
        return self.series * int((self.end_seconds - self.start_seconds) / self.step_seconds)

    def lines(self) -> Iterator[bytes]:
        """Yield a line a series; the latency of each fiftieth service is tenfold near the end."""
        times = np.arange(self.start_seconds, self.end_seconds, self.step_seconds)
        stamps = (times * 1000).astype(np.int64)
        for service in range(self.services):
            random = np.random.default_rng(service)
            for signal, level in USUAL.items():
                wave = 0.2 * np.sin(2 * np.pi * (times / _CYCLE_SECONDS + random.random()))
                values = level * (1 + wave + 0.03 * random.normal(size=len(times)))
                if service % 50 == 0 and signal == "llm_request_latency_seconds":
                    values[-60:-30] *= 10
                labels = {
                    "__name__": signal, "entity": f"service/s{service:04}", "job": "galen",
                    "instance": "bench:9101",
                }  # fmt: skip
                line = {"metric": labels, "values": values.round(6), "timestamps": stamps}
                yield orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)


class HistoryServer:
    """The running server."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = psutil.Process(process.pid)

    def fill(self, past: Past) -> float:
        """Import a past; return how many seconds it took."""
        began = time.monotonic()
        lines: list[bytes] = []
        for line in past.lines():
            lines.append(line)
            if len(lines) == _LINES:
                self._post(lines)
                lines = []
        self._post(lines)
        urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=60).close()
        return time.monotonic() - began

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _post(self, lines: list[bytes]) -> None:
        if lines:
            request = urllib.request.Request(f"{self.url}/api/v1/import", b"\n".join(lines))
            urllib.request.urlopen(request, timeout=60).close()


@contextmanager
def history_server(folder: Path) -> Iterator[HistoryServer]:
    """Run VictoriaMetrics over an empty folder while the block runs."""
    binary = shutil.which("victoria-metrics")
    if binary is None:
        raise SystemExit(
            "there is no victoria-metrics on the PATH: apt-get install victoria-metrics"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        binary, f"-storageDataPath={folder}", "-retentionPeriod=100y", "-loggerLevel=ERROR",
        f"-httpListenAddr=127.0.0.1:{port}", "-search.maxSeries=1000000",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        until = time.monotonic() + _READY_SECONDS
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("victoria-metrics did not start")
            time.sleep(0.1)
        yield HistoryServer(url, process)
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False
