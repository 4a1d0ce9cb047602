"""What ``galen agent`` costs on a host with eight GPUs, once a second, pushing to a real receiver.

``python -m benchmarks.agent [--gpus 8] [--seconds 60] [--quick] [--json FILE]``

The whole process tree of the real command: the agent and its NVML child, with the buffer on disk. The
GPUs are those of the tests' fake NVML, so the driver's own time is not in it; it needs a C compiler. The
receiver is the real Prometheus, or one that throws away where that is missing. Goal: under 3% of a core
and 80 MB, pages that both processes share counted once. Bytecode is compiled before, as installing does:
a process that compiles keeps some 15 MB of that. Exit status 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.fleet.processes import Tree, running
from tests.collectors.gpu.fake_nvml import FakeNvml, compile_library

GOAL_CORE_PERCENT = 3.0
GOAL_MEGABYTES = 80.0
_LINKS = 18
_COMPILING_SECONDS = 10.0
_WARM_UP_SECONDS = 15.0
_READY_SECONDS = 30.0


class _Discards(BaseHTTPRequestHandler):
    """Takes every request and keeps none."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _discarding() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Discards)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _prometheus(folder: Path, binary: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1h}\n", "utf-8")
    command = [
        binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver",
        "--log.level=error",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with running(command, folder / "prometheus.log"):
        deadline = time.monotonic() + _READY_SECONDS
        while not _answers(f"{url}/-/ready"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no Prometheus: {(folder / 'prometheus.log').read_text()}")
            time.sleep(0.1)
        yield url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _received(url: str) -> dict[str, float]:
    """Ask Prometheus how many series it has from the agent, and how old the newest sample is."""
    counts = {}
    for name, query in {
        "series": 'count({job="galen-agent"})',
        "gpu_series": 'count({job="galen-agent",gpu_id!=""})',
        "newest_age_seconds": 'time() - max(timestamp(gpu_temperature_celsius{job="galen-agent"}))',
    }.items():
        asked = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{url}/api/v1/query?{asked}", timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        counts[name] = float(result[0]["value"][1]) if result else 0.0
    return counts


def measure(folder: Path, gpus: int, seconds: float) -> dict[str, float | str]:
    """Run the agent and return what it costs."""
    fake = FakeNvml(folder, compile_library(folder), gpus)
    for slot in range(gpus):
        gpu = fake.gpu(slot)
        gpu.nvlinks = _LINKS
        for link in gpu.links:
            link.active = 1
        gpu.processes_are((os.getpid(), 1 << 30), (1, 1 << 30))
    config = folder / "galen.toml"
    config.write_text('[collectors]\ngpu_mode = "nvml"\n', "utf-8")
    binary = shutil.which("prometheus")
    with ExitStack() as stack:
        url = stack.enter_context(_prometheus(folder, binary) if binary else _discarding())
        command = [
            sys.executable, "-m", "galen", "agent", "--push", f"{url}/api/v1/write", "--interval",
            "1", "--config", str(config), "--state-dir", str(folder / "state"),
        ]  # fmt: skip
        log = folder / "agent.log"
        environment = {**fake.environment, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with running(command, log, environment=environment):
            time.sleep(_COMPILING_SECONDS)
        process = stack.enter_context(running(command, log, environment=environment))
        time.sleep(_WARM_UP_SECONDS)
        used = Tree(process.pid).over(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"the agent ended: {log.read_text()[-2000:]}")
        received = _received(url) if binary else {}
    return {
        "gpus": gpus,
        "receiver": "prometheus" if binary else "discards",
        "core_percent": 100 * used.core_share,
        "megabytes": used.distinct_mib * 2**20 / 1e6,
        "resident_megabytes": used.resident_mib * 2**20 / 1e6,
        **received,
    }


def missed(found: dict[str, float | str]) -> list[str]:
    """Return which goals are missed, in words."""
    words = []
    for name, goal in (
        ("core_percent", GOAL_CORE_PERCENT),
        ("megabytes", GOAL_MEGABYTES),
    ):
        if float(found[name]) >= goal:
            words.append(f"{name} is {float(found[name]):.2f}, goal {goal:g}")
    if found["receiver"] == "prometheus" and float(found["gpu_series"]) < 20 * float(found["gpus"]):
        words.append(f"only {found['gpu_series']:.0f} series of GPUs arrived")
    return words


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the numbers where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="ten seconds")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.gpus, 10.0 if options.quick else options.seconds)
    lines = missed(found)
    for name, value in found.items():
        print(f"{name:28}{value:>12}" if isinstance(value, str) else f"{name:28}{value:12.2f}")
    for words in lines:
        print(f"MISSED: {words}")
    if options.json is not None:
        options.json.write_text(json.dumps({**found, "missed": lines}, indent=2) + "\n", "utf-8")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
