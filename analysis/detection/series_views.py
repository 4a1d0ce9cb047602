"""Causal views of one metric: how far a row is from what is usual, on several scales of time.

A view is a distance, 0 or more, that depends on rows up to its own only. None of them is a verdict:
:mod:`analysis.detection.distance_tails` learns how large a distance is unusual.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.detection.contract import FloatArray
from analysis.detection.seasonal_fit import DAY_SECONDS, WEEK_SECONDS

SHORT_ROWS = 20
"""What has just happened: the mean and the roughness of this many rows."""
_BEFORE_ROWS = 200
"""What the last rows are compared with to see a shift of the mean."""
_CYCLES = 7
_WEEKS = 4
"""Cycles whose median predicts a row, as far as there are so many: a week of days, a month of weeks."""
_LEAST_PHASES = 4


def views_of(
    times: FloatArray, values: FloatArray, step_seconds: float, periods_seconds: Sequence[float]
) -> FloatArray:
    """Return five views ``[rows, 5]``, NaN where the metric or what it is compared with is missing.

    The distance from the same phase of past cycles, at the row and in the mean of the last rows; the
    step from the row before, as far as past cycles did not have it too; the shift of the mean of the
    last rows from that before them; and the roughness of the last rows, which sees a change of
    variance and stays up after a spike.

    Args:
        times: ``[rows]`` seconds; a time that falls back counts as the highest before it.
        values: ``[rows]``, NaN where missing.
        step_seconds: the usual distance of two rows.
        periods_seconds: periods to predict by; at each row the one that did best lately is used.
    """
    present = np.isfinite(values)
    clock = np.maximum.accumulate(times)[present]
    known = pd.Series(values[present])
    rest = known - _same_phase(clock, known, step_seconds, periods_seconds)
    step = pd.Series(np.fmin(known.diff().abs(), rest.diff().abs()))
    short = known.rolling(SHORT_ROWS, min_periods=1).mean()
    before = known.shift(SHORT_ROWS).rolling(_BEFORE_ROWS, min_periods=SHORT_ROWS).mean()
    columns = (
        rest.abs(),
        rest.rolling(SHORT_ROWS, min_periods=1).mean().abs(),
        step,
        (short - before).abs(),
        (step**2).rolling(SHORT_ROWS, min_periods=1).mean() ** 0.5,
    )
    views = np.full((len(values), len(columns)), np.nan)
    views[present] = np.column_stack(columns)
    return views


def _same_phase(
    clock: FloatArray, known: pd.Series, step_seconds: float, periods_seconds: Sequence[float]
) -> FloatArray:
    """Return the prediction of the period with the least error over the last day, NaN without one."""
    day_rows = max(1.0, DAY_SECONDS / step_seconds)
    best, least = np.full(len(known), np.nan), np.full(len(known), np.inf)
    for period in periods_seconds:
        if period < _LEAST_PHASES * step_seconds:
            continue
        cycles = _WEEKS if period >= WEEK_SECONDS else _CYCLES
        predicted = _past_cycles(clock, known.to_numpy(), period, cycles, step_seconds)
        error = (known - predicted).abs().shift().ewm(span=day_rows, ignore_na=True).mean()
        better = np.isfinite(predicted) & (error.fillna(np.inf).to_numpy() < least)
        better |= np.isfinite(predicted) & np.isnan(best)
        best = np.where(better, predicted, best)
        least = np.where(better, error.fillna(np.inf).to_numpy(), least)
    return best


def _past_cycles(
    clock: FloatArray, known: FloatArray, period: float, cycles: int, step: float
) -> FloatArray:
    """Return the median of the values one, two, ... periods ago, NaN where there is none."""
    ago = np.full((len(clock), cycles), np.nan)
    for cycle in range(cycles):
        wanted = clock - (cycle + 1) * period
        at = np.searchsorted(clock, wanted - 0.5 * step)
        # A gap in the past has no value near the wanted time.
        near = (np.abs(clock[at] - wanted) <= 2.0 * step) & (wanted >= clock[0] - 0.5 * step)
        ago[near, cycle] = known[at[near]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.asarray(np.nanmedian(ago, axis=1))
