"""What is run in the environment of a peer: scores a series and prints how many points a second.

    python programs.py river|pyod|adtk FILE.npy PERIOD

Needs the peer and numpy only; it is run as a file, so that nothing of Galen is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np


def river(values: np.ndarray, period: int) -> Callable[[], object]:  # noqa: ARG001
    from river.anomaly import HalfSpaceTrees  # noqa: PLC0415

    low, high = float(values.min()), float(values.max())
    scaled = ((values - low) / (high - low)).tolist()

    def run() -> object:
        model = HalfSpaceTrees(n_trees=10, height=8, window_size=250, seed=0)
        scores = []
        for value in scaled:
            point = {"value": value}
            scores.append(model.score_one(point))
            model.learn_one(point)
        return scores

    return run


def pyod(values: np.ndarray, period: int) -> Callable[[], object]:  # noqa: ARG001
    from pyod.models.ecod import ECOD  # noqa: PLC0415

    return lambda: ECOD().fit(values[:, None]).decision_scores_


def adtk(values: np.ndarray, period: int) -> Callable[[], object]:
    import pandas as pd  # noqa: PLC0415
    from adtk.detector import SeasonalAD  # noqa: PLC0415

    index = pd.date_range("2026-01-01", periods=len(values), freq="min")
    series = pd.Series(values, index)
    return lambda: SeasonalAD(freq=period).fit_detect(series)


def main() -> None:
    name, path, period = sys.argv[1], sys.argv[2], int(sys.argv[3])
    values = np.load(path)
    run = {"river": river, "pyod": pyod, "adtk": adtk}[name](values, period)
    run()  # imports and compilation are no part of it
    spent = []
    while len(spent) < 3 or (sum(spent) < 2.0 and len(spent) < 50):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    print(json.dumps({"points_per_second": len(values) / sorted(spent)[len(spent) // 2]}))


if __name__ == "__main__":
    main()
