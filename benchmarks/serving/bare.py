"""The ceiling: ONNX Runtime in a loop, without a server: ``python -m benchmarks.serving.bare``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.serving.apps.onnx_session import Session


def samples_per_second(file: Path, batch: int, seconds: float) -> float:
    """Measure in a process of its own, as a worker would run it."""
    command = [sys.executable, "-m", "benchmarks.serving.bare", str(file), str(batch), str(seconds)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=root, timeout=seconds + 120.0
    )
    return float(json.loads(done.stdout)["samples_per_second"])


def _loop(file: str, batch: int, seconds: float) -> float:
    session = Session(file)
    rows = np.random.default_rng(0).normal(size=(batch, 64)).astype(np.float32)
    session.run(rows)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        session.run(rows)
        count += 1
    return count * batch / elapsed


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("batch", type=int)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    rate = _loop(options.file, options.batch, options.seconds)
    print(json.dumps({"samples_per_second": rate}))


if __name__ == "__main__":
    main()
