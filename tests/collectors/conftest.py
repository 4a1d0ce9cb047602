from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

READY_SECONDS = 30.0


class Target:
    """A target of Prometheus; assign ``text`` to change what it exposes."""

    def __init__(self) -> None:
        self.text = ""
        target = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
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
        assert process.poll() is None, "Prometheus ended"
        waiter.wait(0.1)
    raise AssertionError(f"not within {READY_SECONDS:g} s: {check}")


@contextmanager
def _running_prometheus(
    folder: Path, target_port: int
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start Prometheus on an ephemeral port, scraping one target five times a second."""
    binary = shutil.which("prometheus")
    if binary is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no prometheus on the PATH")
        pytest.skip("there is no prometheus on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        "scrape_configs:\n"
        "  - job_name: fleet\n"
        "    static_configs:\n"
        f"      - targets: ['127.0.0.1:{target_port}']\n"
    )
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(timeout=30)


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
    """What a test needs to run a real Prometheus: ``Target``, ``prometheus`` and ``eventually``."""
    return SimpleNamespace(Target=Target, prometheus=_running_prometheus, eventually=_eventually)
