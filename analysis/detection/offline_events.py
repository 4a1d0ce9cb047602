"""Off-line scores of events: what lasts counts for more than what flashes, and an event fades.

Rows are scored one by one, events last. Half of a row's logarithm is its own score, half that of the
exponentially weighted mean score, so one wild row counts for less than ten in a row. The result rises at
once and falls slowly, so that a quiet row does not cut an event in two. The same mean over each column's
part in the score says which column leads the event; the row alone would often name a bystander.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray

_MEAN_ROWS = 10.0
_FADE_ROWS = 8.0
"""A score falls by at most this part of its logarithm's distance a row."""


def sustained(logs: FloatArray) -> FloatArray:
    """Return the logarithm of the events' score ``[rows]`` from that of the rows."""
    if not len(logs):
        return logs
    mean = pd.Series(np.exp(logs)).ewm(alpha=1.0 / _MEAN_ROWS, adjust=False).mean()
    raised = 0.5 * (logs + np.log(mean.to_numpy()))
    faded = raised.tolist()
    for row in range(1, len(faded)):
        faded[row] = max(faded[row], faded[row - 1] + (faded[row] - faded[row - 1]) / _FADE_ROWS)
    return np.array(faded)


def leading(logs: FloatArray, shares: FloatArray) -> NDArray[np.int64]:
    """Return the column that leads the event at each row ``[rows]``.

    Args:
        logs: ``[rows]`` logarithm of the rows' scores.
        shares: ``[rows, width]`` each column's share in its row's score.
    """
    parts = pd.DataFrame(shares * np.exp(logs)[:, None])
    summed = parts.ewm(alpha=1.0 / _MEAN_ROWS, adjust=False).mean().to_numpy()
    return np.asarray(summed.argmax(axis=1))
