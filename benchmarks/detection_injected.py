"""Finds out how large an event of one metric must be for the off-line detector to raise it.

    python -m benchmarks detection_injected [--json]

Made series, 56 days of five minutes, of which 14 train: steady, with a daily rhythm twenty times the
noise, and the same with heavy-tailed noise (Student's t, 4 degrees of freedom). Every five days an
event of so many standard deviations of the noise. Beside what is found: alerts a day without any event.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.offline import detect_frame

STEP_SECONDS = 300
DAY_ROWS = 288
DAYS = 56
TRAIN_ROWS = DAY_ROWS * DAYS // 4
EVERY_ROWS = 5 * DAY_ROWS + 71
"""Not a multiple of a day, so that events come at all times of it."""
LATE_ROWS = 5
SIZES = (6, 8, 12)
LENGTHS = (1, 5, 20)


def normal(kind: str, random: np.random.Generator) -> NDArray[np.float64]:
    """Return a series without events whose noise has the standard deviation 1."""
    rows = DAY_ROWS * DAYS
    if kind == "heavy":
        noise = random.standard_t(4, rows) / np.sqrt(2.0)
    else:
        noise = random.normal(0.0, 1.0, rows)
    rhythm = 20.0 * np.sin(2 * np.pi * np.arange(rows) / DAY_ROWS)
    return np.asarray(70.0 + noise + (0.0 if kind == "steady" else rhythm))


def alerts(values: NDArray[np.float64]) -> NDArray[np.int64]:
    times = 1_700_006_400 + STEP_SECONDS * np.arange(len(values))
    frame = pd.DataFrame({"timestamp": times, "value": values})
    return np.flatnonzero(detect_frame(frame, TRAIN_ROWS)["is_anomaly"].to_numpy())


def found(kind: str, size: float, length: int, seed: int) -> float:
    """Return the share of events that an alert falls into, or follows by a few rows."""
    random = np.random.default_rng(seed)
    values = normal(kind, random)
    starts = np.arange(TRAIN_ROWS + 50, len(values) - 50, EVERY_ROWS)
    for start in starts:
        values[start : start + length] += size * random.choice([-1.0, 1.0])
    at = alerts(values)
    reach = max(length, LATE_ROWS)
    return float(np.mean([((at >= start) & (at < start + reach)).any() for start in starts]))


def main() -> None:
    """Print the share of events that are found, by kind, size and length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="series of each kind")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    rows = []
    for kind in ("steady", "rhythm", "heavy"):
        quiet = [len(alerts(normal(kind, np.random.default_rng(n)))) for n in range(given.repeat)]
        for size in SIZES:
            row = {"noise": kind, "deviations": size}
            for length in LENGTHS:
                shares = [found(kind, size, length, seed) for seed in range(given.repeat)]
                row[f"{length} rows"] = float(np.mean(shares))
            row["alerts a day"] = float(np.mean(quiet)) / (DAYS - TRAIN_ROWS / DAY_ROWS)
            rows.append(row)
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
