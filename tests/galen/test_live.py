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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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


@contextmanager
def running(*arguments: str, state_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a command in the background; it is killed at the end, whatever becomes of the test."""
    command = [sys.executable, "-m", "galen", *arguments, "--state-dir", str(state_dir)]
    environment = {**os.environ, "GALEN_INFERENCE__PORT": str(free_port())}
    log = state_dir / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            yield process, log
        finally:
            process.kill()
            process.wait()


def eventually(check: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while not check():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


def newest_values(state_dir: Path) -> dict[str, float]:
    """Return the newest value of every signal that is stored."""
    path = state_dir / "series.sqlite"
    if not path.exists():
        return {}
    with closing(SqliteSeriesReader(path)) as reader:
        return {info.key.signal: info.last_value for info in reader.series()}


def test_up_runs_everything_and_stops_everything(tmp_path: Path) -> None:
    def all_of_it_runs() -> bool:
        values = newest_values(tmp_path)
        return (
            values.get("llm_requests_per_second", 0) > 0 and values.get("canary_output_match") == 1
        )

    with running("up", "--demo", "--no-dashboard", state_dir=tmp_path) as (demo, log):
        eventually(all_of_it_runs, demo, log)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 0, log.read_text()
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        kinds = [event.kind for event in journal.events()]
        assert (kinds[0], kinds[-1]) == (EventKind.STARTED, EventKind.STOPPED)
        assert journal.broken_links() == []
    with closing(SqliteSeriesReader(tmp_path / "series.sqlite")) as reader:
        labels = {info.key.signal: info.labels for info in reader.series()}
    assert labels["gpu_utilization_percent"]["simulated"] == "true"
    assert left_behind(tmp_path) == []


def test_up_ends_by_itself_after_its_time(tmp_path: Path) -> None:
    done = galen("up", "--no-dashboard", "--for", "1", state_dir=tmp_path, port=free_port())
    assert done.returncode == 0, done.stderr
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
    with running("drill", state_dir=tmp_path) as (drill, log):
        eventually(lambda: b"warming up" in log.read_bytes(), drill, log)
        assert len(left_behind(tmp_path)) > 1
        drill.send_signal(number)
        assert drill.wait(60) != 0
    assert left_behind(tmp_path) == []
