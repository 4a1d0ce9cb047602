"""What the libraries' own detectors score on one series, fitted on its training part."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from statsmodels.tsa.seasonal import seasonal_decompose

FloatArray = NDArray[np.float64]

_DAY_SECONDS = 86_400.0
WINDOW_ROWS = 10


def forest_scores(values: FloatArray, train_rows: int, window_rows: int, seed: int) -> FloatArray:
    """Score causal windows by scikit-learn's isolation forest; a window of 1 is the values alone."""
    padded = np.concatenate((np.full(window_rows - 1, values[0]), values))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window_rows)
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(windows[:train_rows])
    return np.asarray(-forest.score_samples(windows[train_rows:]))


def decomposition_scores(times: FloatArray, values: FloatArray, train_rows: int) -> FloatArray:
    """Score by the size of statsmodels' residual of the day, its trend taken from past rows only."""
    step = float(np.median(np.diff(times[:train_rows])))
    phases = round(_DAY_SECONDS / step)
    slot = np.round((times - times[0]) / step).astype(np.int64)
    grid = np.full(slot[-1] + 1, np.nan)
    grid[slot] = values
    filled = pd.Series(grid).ffill()
    trained = filled.iloc[: slot[train_rows]]
    seasonal = np.asarray(seasonal_decompose(trained, period=phases, two_sided=False).seasonal)
    trend = filled.rolling(phases).mean().to_numpy()
    rest = filled.to_numpy() - trend - seasonal[np.arange(len(grid)) % phases]
    middle = np.nanmedian(rest[: slot[train_rows]])
    return np.asarray(np.abs(rest - middle)[slot[train_rows:]])
