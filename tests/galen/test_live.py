"""The whole house, live: real service, real worker, real traffic, real faults."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from analysis.journal import EventKind, Journal
from collectors.store.sqlite import SqliteSeriesReader
from galen.commands.drill import DRILL_PORT_OFFSET

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]


def free_port() -> int:
    """Return a port that is free, as is the one that a drill takes beside it.

    It lies below those that the system gives to clients, who come and go meanwhile.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        if all(_is_free(candidate) for candidate in (port, port + DRILL_PORT_OFFSET)):
            return port
    raise AssertionError("no port is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def galen(*arguments: str, state_dir: Path, port: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GALEN_INFERENCE__PORT": str(port)}
    command = [sys.executable, "-m", "galen", *arguments, "--state-dir", str(state_dir)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=400, check=False
    )


def left_behind(state_dir: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(state_dir) in " ".join(process.info["cmdline"] or [])
    ]


def test_up_runs_everything_and_stops_everything(tmp_path: Path) -> None:
    done = galen(
        "up", "--demo", "--no-dashboard", "--for", "12", state_dir=tmp_path, port=free_port()
    )
    assert done.returncode == 0, done.stderr
    journal = Journal(tmp_path / "journal.sqlite")
    kinds = [event.kind for event in journal.events()]
    assert kinds[0] is EventKind.STARTED
    assert kinds[-1] is EventKind.STOPPED
    assert journal.broken_links() == []
    reader = SqliteSeriesReader(tmp_path / "series.sqlite")
    known = {info.key.signal: info for info in reader.series()}
    assert known["llm_requests_per_second"].last_value > 0
    assert known["canary_output_match"].last_value == 1
    assert known["gpu_utilization_percent"].labels["simulated"] == "true"
    assert left_behind(tmp_path) == []


def test_a_hang_is_found_explained_healed_and_proven(tmp_path: Path) -> None:
    done = galen(
        "drill", "--fault", "engine_hang", "--json", "--warm-up-seconds", "60",
        "--quiet-seconds", "10", state_dir=tmp_path, port=free_port(),
    )  # fmt: skip
    (row,) = json.loads(done.stdout)["faults"]
    assert row["detected"], done.stderr
    assert row["rank_of_cause"] == 1, done.stderr
    assert row["action"] == "restart_engine"
    assert row["healed"], done.stderr
    assert left_behind(tmp_path) == []


def test_a_port_that_is_taken_is_named_with_the_fix(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = galen("up", state_dir=tmp_path, port=int(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "inference.port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drill_that_is_ended_stops_what_it_has_started(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "galen", "drill", "--state-dir", str(tmp_path)]
    environment = {**os.environ, "GALEN_INFERENCE__PORT": str(free_port())}
    log = tmp_path / "drill.log"
    with log.open("wb") as output:
        drill = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            until = time.monotonic() + 120
            while b"warming up" not in log.read_bytes():
                assert drill.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            assert len(left_behind(tmp_path)) > 1
            drill.send_signal(number)
            assert drill.wait(60) != 0
        finally:
            drill.kill()
    assert left_behind(tmp_path) == []
