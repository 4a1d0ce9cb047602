"""`galen backtest --workers`: what several processes say of a store is what one says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
pytest.importorskip("distributed")

START, STEP, TICKS = 1_700_000_010, 15, 200
SAME_CODE = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _fill(path: Path) -> None:
    random = np.random.default_rng(0)
    store = SqliteSeriesStore(path)
    for service in range(4):
        for name in ("llm_request_latency_seconds", "llm_queue_depth"):
            values = 60 + random.normal(0, 0.5, TICKS)
            if service == 2 and name == "llm_request_latency_seconds":
                values[-40:] *= 10
            store.write(
                [
                    Sample(START + STEP * tick, f"service/s{service}", name, float(value))
                    for tick, value in enumerate(values)
                ]
            )
    store.close()


def _backtest(folder: Path, *options: str) -> tuple[dict[str, Any], int]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "galen", "backtest", "--json", "--source", "series.sqlite"),
            *("--from", str(START), "--to", str(START + STEP * TICKS), "--step", str(STEP)),
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | SAME_CODE,
    )
    # Nothing but the document: what workers log goes to standard error.
    assert (done.stdout[:1], done.stdout[-2:]) == ("{", "}\n"), done.stderr
    return json.loads(done.stdout), done.returncode


def test_ctrl_c_ends_the_workers_too_and_shows_what_is_done(tmp_path: Path) -> None:
    _fill(tmp_path / "series.sqlite")
    # Far more steps than anybody waits for.
    command = [
        *(sys.executable, "-m", "galen", "backtest", "--source", "series.sqlite", "--workers", "2"),
        *("--from", str(START), "--to", str(START + STEP * TICKS), "--step", "0.002"),
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | SAME_CODE,
        start_new_session=True,
    )
    try:
        assert _until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2)
        assert process.stderr is not None
        assert "workers" in process.stderr.readline()
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert "stopped" in told
        assert "Traceback" not in told
        assert _until(lambda: not any(worker.is_running() for worker in workers))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _until(check: Callable[[], bool]) -> bool:
    waiter = threading.Event()
    for _ in range(600):
        if check():
            return True
        waiter.wait(0.1)
    return False


def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    _fill(tmp_path / "series.sqlite")
    (tmp_path / "galen.toml").write_text("[analysis.fleet]\nshard_series = 3\n")
    alone, status = _backtest(tmp_path)
    together, same_status = _backtest(tmp_path, "--workers", "2")
    assert status == same_status == 1
    assert [alarm["entity"] for alarm in alone["alarms"]] == ["service/s2"]
    for same in ("alarms", "qualities", "series", "noisiest"):
        assert together[same] == alone[same], same
