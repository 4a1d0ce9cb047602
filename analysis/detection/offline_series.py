"""Off-line views of a single metric: unusual for the time, for the last minutes, and as a jump."""

from __future__ import annotations

import numpy as np

from analysis.detection.contract import FloatArray
from analysis.detection.seasonal_fit import fit_shape

_SHORT_ROWS = 20.0
_LONG_ROWS = 400.0


def views_of_one(times: FloatArray, values: FloatArray, train_rows: int) -> FloatArray:
    """Return three causal views ``[rows, 3]`` of one metric, NaN where it is missing."""
    shape = fit_shape(times[:train_rows], values[:train_rows])
    rest = values if shape is None else values - shape.over(times)
    views = np.full((len(values), 3), np.nan)
    long = short = previous = np.nan
    for row, value in enumerate(rest):
        if not np.isfinite(value):
            continue
        if np.isnan(previous):
            long = short = previous = value
        views[row] = value - long, value - short, value - previous
        long += (value - long) / _LONG_ROWS
        short += (value - short) / _SHORT_ROWS
        previous = value
    return views
