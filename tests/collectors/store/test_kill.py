"""The writer is killed at any moment; everything that a call had returned for is there, once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from collectors.store.sqlite import SqliteSeriesStore

T0 = 1_700_002_800  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}
SERIES = 40

# Writes ticks, compacts and prunes, and says what it has committed. It never ends by itself.
PROGRAM = f"""
import sys
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
path, tick = sys.argv[1], int(sys.argv[2])
store = SqliteSeriesStore(path, most_hot_samples=1500)
print("open", flush=True)
while True:
    store.write([Sample({T0} + tick * 30, f"host/{{n}}", "x", tick + n / 64) for n in range({SERIES})])
    tick += 1
    print(tick, flush=True)
    store.compact(now_seconds={T0} + tick * 30, budget_seconds=0.0)
    if tick % 50 == 0:
        store.prune_rollups(minutes_before_seconds={T0}, hours_before_seconds={T0})
        store.give_back()
"""


def run_and_kill(path: Path, tick: int, after_seconds: float) -> int:
    """Run the writer, kill it, and return the number of ticks that it had committed for sure."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), str(tick)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    timer = threading.Timer(after_seconds, child.send_signal, [signal.SIGKILL])
    timer.start()
    lines = child.stdout.read().splitlines(keepends=True)
    child.wait(30)
    timer.cancel()
    whole = [int(line) for line in lines if line.endswith("\n")]
    return whole[-1] if whole else tick


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_any_moment_loses_nothing_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "series.sqlite"
    tick = 0
    for _ in range(5):
        committed = run_and_kill(path, tick, chance.uniform(0.0, 0.6))
        store = SqliteSeriesStore(path)
        frame = store.read(**EVER)
        rolled = store.read_rollup(**EVER, resolution_seconds=3600)
        assert (store._connection.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
        store.close()
        # The tick that was under way may be there or not, but whole.
        tick, rest = divmod(len(frame), SERIES)
        assert (tick - committed in {0, 1}, rest) == (True, 0)
        assert frame["time"].tolist() == [T0 + at * 30 for at in range(tick) for _ in range(SERIES)]
        assert frame["value"].tolist() == [at + n / 64 for at in range(tick) for n in range(SERIES)]
        assert rolled["count"].sum() == len(frame)
    assert tick > 0
    assert not list(tmp_path.glob("*.damaged-*"))
