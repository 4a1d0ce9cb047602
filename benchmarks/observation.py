"""What it costs the front to be observed: CPU time per request without, with, and with all traces.

One service per way, side by side; their rounds alternate, so that the machine's noise meets all of
them. Counts CPU time of the front process, not seconds: ``python -m benchmarks.observation``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

MICROSECONDS = 1e6
PROGRAM = """
import json, sys
from inference.server import run
from inference.settings import InferenceSettings
run(InferenceSettings(**json.loads(sys.argv[1])), "127.0.0.1", int(sys.argv[2]))
"""


class _Collector(BaseHTTPRequestHandler):
    """Takes every span and keeps none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def collector() -> Iterator[str]:
    """Run a collector and give its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def service(port: int, **settings: Any) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """Run a service on the small bundled model until it is ready."""
    with tempfile.TemporaryDirectory() as state:
        values = {
            "models": ["demo-lm-small"], "state_dir": state, "canary_interval_seconds": 600.0,
            "chat_deadline_seconds": 30.0, **settings,
        }  # fmt: skip
        command = [sys.executable, "-c", PROGRAM, json.dumps(values), str(port)]
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
                _wait(client)
                yield psutil.Process(process.pid), client
        finally:
            process.terminate()
            process.wait(30)


def _wait(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the service did not become ready within 60 s")


def cost(process: psutil.Process, client: httpx.Client, requests: int) -> float:
    """Return the front's CPU time per request, in microseconds."""
    before = process.cpu_times()
    for _ in range(requests):
        client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1}).raise_for_status()
    after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    return seconds / requests * MICROSECONDS


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--port", type=int, default=18900, help="first of four ports")
    options = parser.parse_args()
    rounds, requests = (3, 200) if options.quick else (9, 500)
    with ExitStack() as stack:
        url = stack.enter_context(collector())
        ways: dict[str, dict[str, Any]] = {
            "off": {},
            "traced, none sampled": {"trace_endpoint": url, "trace_sample_ratio": 0.0},
            "traced, all sampled": {"trace_endpoint": url, "trace_sample_ratio": 1.0},
            "access audited": {"audit_access": True},
        }
        running = {
            name: stack.enter_context(service(options.port + number, **settings))
            for number, (name, settings) in enumerate(ways.items())
        }
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (process, client) in running.items():
                costs[name].append(cost(process, client, requests))
    base = statistics.median(costs["off"])
    print(f"{'way':22} {'front CPU us/request':>22} {'ratio':>6}")
    for name, values in costs.items():
        median = statistics.median(values)
        print(f"{name:22} {median:22.0f} {median / base:6.2f}")


if __name__ == "__main__":
    main()
