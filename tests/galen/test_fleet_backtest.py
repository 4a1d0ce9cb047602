"""`galen backtest --workers`: what several processes say of a store is what one says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
pytest.importorskip("distributed")

START, STEP, TICKS = 1_700_000_010, 15, 200


def _fill(path: Path) -> None:
    random = np.random.default_rng(0)
    store = SqliteSeriesStore(path)
    for service in range(4):
        for signal in ("llm_request_latency_seconds", "llm_queue_depth"):
            values = 60 + random.normal(0, 0.5, TICKS)
            if service == 2 and signal == "llm_request_latency_seconds":
                values[-40:] *= 10
            store.write(
                [
                    Sample(START + STEP * tick, f"service/s{service}", signal, float(value))
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
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.stdout.startswith("{"), done.stderr
    return json.loads(done.stdout), done.returncode


def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    _fill(tmp_path / "series.sqlite")
    (tmp_path / "galen.toml").write_text("[analysis.fleet]\nshard_series = 3\n")
    alone, status = _backtest(tmp_path)
    together, same_status = _backtest(tmp_path, "--workers", "2")
    assert status == same_status == 1
    assert [alarm["entity"] for alarm in alone["alarms"]] == ["service/s2"]
    for same in ("alarms", "qualities", "series", "noisiest"):
        assert together[same] == alone[same], same
