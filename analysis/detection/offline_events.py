"""Off-line scores of events: what lasts counts for more than what flashes, and an event fades.

Rows are scored one by one, events last. Half of a row's logarithm is its own score, half that of the
exponentially weighted mean score, so one wild row counts for less than ten in a row. The result rises at
once and falls slowly, so that a quiet row does not cut an event in two. After a few quiet rows the event
is over: its rest ranks below all anomalies, above what was never one. The same mean over each column's
part in the score says which column leads the event; the row alone would often name a bystander.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray

_MEAN_ROWS = 10.0
_FADE_ROWS = 8.0
"""A score falls by at most this part of its logarithm's distance a row."""
_QUIET_ROWS = 4
"""An event is over after so many rows in a row that are usual by themselves."""


def sustained(logs: FloatArray) -> FloatArray:
    """Return the logarithm of the events' score ``[rows]`` from that of the rows."""
    return _smooth(logs, np.inf, np.inf)


def above_threshold(logs: FloatArray, gate: float, threshold: float) -> FloatArray:
    """Return the events' log score less the threshold ``[rows]``; above 0 is an anomaly.

    Args:
        logs: ``[rows]`` logarithm of the rows' scores.
        gate: up to where a row is usual by itself.
        threshold: what an event's log score has to exceed.
    """
    whole = _smooth(logs, np.inf, np.inf) - threshold
    cut = _smooth(logs, gate, threshold) - threshold
    return np.where(cut > 0.0, cut, np.minimum(whole, 0.0))


def _smooth(logs: FloatArray, gate: float, ceiling: float) -> FloatArray:
    """Smooth; when an event is over, what it left in mean and fading sinks to the ceiling."""
    smooth = np.zeros(len(logs))
    highest = float(np.exp(ceiling))
    mean = faded = np.nan
    quiet = 0
    for row, (log, power) in enumerate(zip(logs.tolist(), np.exp(logs).tolist(), strict=True)):
        mean = power if row == 0 else mean + (power - mean) / _MEAN_ROWS
        raised = 0.5 * (log + math.log(mean))
        faded = raised if row == 0 else max(raised, faded + (raised - faded) / _FADE_ROWS)
        quiet = quiet + 1 if log <= gate else 0
        if quiet >= _QUIET_ROWS:
            mean, faded = min(mean, highest), min(faded, ceiling)
        smooth[row] = faded
    return smooth


def leading(logs: FloatArray, shares: FloatArray) -> NDArray[np.int64]:
    """Return the column that leads the event at each row ``[rows]``.

    Args:
        logs: ``[rows]`` logarithm of the rows' scores.
        shares: ``[rows, width]`` each column's share in its row's score.
    """
    parts = pd.DataFrame(shares * np.exp(logs)[:, None])
    summed = parts.ewm(alpha=1.0 / _MEAN_ROWS, adjust=False).mean().to_numpy()
    return np.asarray(summed.argmax(axis=1))
