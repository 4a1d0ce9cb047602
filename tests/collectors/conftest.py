from __future__ import annotations

import http.server
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

READY_SECONDS = 30.0


class Target:
    """A target of Prometheus; assign ``text`` to change what it exposes."""

    def __init__(self) -> None:
        self.text = ""
        self.scrapes = 0
        target = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                target.scrapes += 1
                body = target.text.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _eventually(check: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """Return the first true result of a check that is repeated while the server lives."""
    waiter = threading.Event()
    for _ in range(int(READY_SECONDS / 0.1)):
        result = check()
        if result:
            return result
        assert process.poll() is None, "the server ended"
        waiter.wait(0.1)
    raise AssertionError(f"not within {READY_SECONDS:g} s: {check}")


def _binary(name: str) -> str:
    """Find a server's binary; without it the test is skipped, or fails where servers are required."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail(f"GALEN_REQUIRE_SERVICES=1 and there is no {name} on the PATH")
        pytest.skip(f"there is no {name} on the PATH")
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _scrape_config(folder: Path, target_port: int | None, more: str = "") -> Path:
    config = folder / "scrape.yml"
    text = "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n" + more
    if target_port is not None:
        text += (
            "scrape_configs:\n"
            "  - job_name: fleet\n"
            "    static_configs:\n"
            f"      - targets: ['127.0.0.1:{target_port}']\n"
        )
    config.write_text(text)
    return config


class Server:
    """A real server that can be stopped, killed and started again over the same data."""

    def __init__(self, command: list[str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.write_url = f"{self.url}/api/v1/write"
        self._command = command
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)
        _eventually(self._ready, self.process)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=READY_SECONDS)
            self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def samples(self, selector: str, span: str = "1h") -> list[tuple[float, float]]:
        """Return the stored samples of a selector over the last hour, by time, without markers."""
        query = urllib.parse.urlencode({"query": f"{selector}[{span}]", "nocache": "1"})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        points = [(float(at), float(value)) for one in found for at, value in one["values"]]
        return sorted(point for point in points if not math.isnan(point[1]))

    def now(self, selector: str) -> list[float]:
        """Return what a query gives at this moment."""
        query = urllib.parse.urlencode({"query": selector, "nocache": "1"})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as answer:
            return [float(one["value"][1]) for one in json.load(answer)["data"]["result"]]

    def flush(self) -> None:
        """Make what was written visible; Prometheus does so by itself."""
        if "victoria" in self._command[0]:
            urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=10).close()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _prometheus(folder: Path, target_port: int | None = None, *, late: bool = True) -> Server:
    """Prometheus on a port of its own that scrapes one target five times a second, if there is one.

    ``late`` lets samples come out of order, which it does not by default.
    """
    port = _free_port()
    window = "storage: {tsdb: {out_of_order_time_window: 1d}}\n" if late else ""
    config = _scrape_config(folder, target_port, window)
    return Server(
        [
            _binary("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            "--storage.tsdb.retention.time=50y",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-remote-write-receiver",
            "--log.level=error",
        ],
        port,
    )


def _victoria_metrics(folder: Path, target_port: int | None = None) -> Server:
    """VictoriaMetrics on a port of its own that scrapes one target five times a second."""
    port = _free_port()
    return Server(
        [
            _binary("victoria-metrics"),
            f"-promscrape.config={_scrape_config(folder, target_port)}",
            f"-storageDataPath={folder / 'victoria'}",
            "-retentionPeriod=50y",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-loggerLevel=ERROR",
        ],
        port,
    )


SERVERS: dict[str, Callable[..., Server]] = {
    "prometheus": _prometheus,
    "prometheus-in-order": partial(_prometheus, late=False),
    "victoria-metrics": _victoria_metrics,
}


@contextmanager
def _running(kind: str, folder: Path, target_port: int | None = None) -> Iterator[Server]:
    """Run a server of a kind while the block runs."""
    server = SERVERS[kind](folder, target_port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def expositions() -> Path:
    """Real scrapes of real exporters, kept outside the repository."""
    shared = Path(__file__).parents[3] / "shared" / "expositions"
    folder = Path(os.environ.get("GALEN_EXPOSITIONS", shared))
    if not folder.is_dir():
        pytest.skip(f"no real scrapes at {folder}; set GALEN_EXPOSITIONS to a folder of them")
    return folder


@pytest.fixture(scope="session")
def facts() -> Path:
    """Tables of facts from public sources, kept outside the repository."""
    shared = Path(__file__).parents[3] / "shared" / "facts"
    folder = Path(os.environ.get("GALEN_FACTS", shared))
    if not folder.is_dir():
        pytest.skip(f"no tables of facts at {folder}; set GALEN_FACTS to a folder of them")
    return folder


@pytest.fixture(scope="session")
def live() -> SimpleNamespace:
    """What a test needs to run a real server: ``Target``, ``running`` and ``eventually``."""
    return SimpleNamespace(
        Target=Target, running=_running, eventually=_eventually, servers=SERVERS, binary=_binary
    )


@pytest.fixture(params=["prometheus", "victoria-metrics"], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server that Galen reads from and pushes to."""
    return str(request.param)
