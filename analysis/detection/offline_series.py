"""Off-line scoring of one metric: unusual for the time, for its level, for the last minutes.

Each row is looked at in six ways: the five of :mod:`analysis.detection.series_views` and the distance
from the level. What the metric did before says how surprising each distance is
(:mod:`analysis.detection.distance_tails`), and the root mean square of the surprises is what counts.

Of rows that surprise only a few are learned: what happens again and again stops being news, while a
long anomaly does not become normal. Where nearly all rows surprise for days, what was before is
forgotten and the present is the new normal.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray
from analysis.detection.distance_tails import LEAST_ROWS, fit_all, surprises
from analysis.detection.offline_alerts import raise_once
from analysis.detection.seasonal_fit import DAY_SECONDS, WEEK_SECONDS, found_periods
from analysis.detection.series_views import views_of

_LIMIT = 5.0
"""Surprise at which a row is an anomaly: that of a probability of 0.7% in each view, or of 0.0005% in
one of the six."""
_LARGEST = 60.0
_BLOCK_SHARE = 0.02
"""Tails are fitted anew when the history has grown by this share, and at least after 50 rows."""
_MEMORY_ROWS = 100_000
_TRIMS = 2
_STRANGE_ROWS = 1_000
_STRANGE_LEARNED = 50
"""Of so many rows so many that surprise are learned."""
_ABSORB_DAYS = 3.0
_ABSORB_ROWS = (500, 20_000)
_ABSORBED = 0.63
"""1 - 1/e: the running share of surprising rows after one absorb time of nothing else."""


def score_series(times: FloatArray, values: FloatArray, train_rows: int) -> FloatArray:
    """Score one metric row by row; a score depends on rows up to its own only.

    Args:
        times: ``[rows]`` seconds since the epoch.
        values: ``[rows]``, NaN where missing.
        train_rows: how many of the first rows are taken for mostly normal.

    Returns:
        Scores ``[rows]``: above 1 where an event is raised, see
        :func:`analysis.detection.offline_alerts.raise_once`; 0 for training rows and missing values.
    """
    if not np.isfinite(values).any():
        return np.zeros(len(values))
    step = float(np.median(np.diff(times[:train_rows])))
    found = found_periods(times[:train_rows], values[:train_rows], step)
    periods = (DAY_SECONDS, WEEK_SECONDS, *(period for period in found if period < DAY_SECONDS))
    views = views_of(times, values, step, periods)
    absorb_rows = float(np.clip(_ABSORB_DAYS * DAY_SECONDS / step, *_ABSORB_ROWS))
    return raise_once(_ratios(values, views, train_rows, absorb_rows))


def _ratios(
    values: FloatArray, views: FloatArray, train_rows: int, absorb_rows: float
) -> FloatArray:
    """Return surprise over its limit ``[rows]``, NaN in training rows and where a value is missing."""
    rows = len(values)
    present = np.isfinite(values)
    distances = np.column_stack((views, _from_level(values, train_rows)))
    learn, strange = present.copy(), np.zeros(rows, dtype=bool)
    ratios = np.full(rows, np.nan)
    # Training rows that would surprise the others are anomalies among them.
    for _ in range(_TRIMS):
        chosen = np.flatnonzero(learn[:train_rows])[-_MEMORY_ROWS:]
        judged = _judge(distances[chosen], values[chosen], distances[:train_rows])
        strange[:train_rows] = judged > 1.0
        learn[:train_rows] = _learned(present, strange, 0, train_rows)
    since, share = 0, 0.0
    for at, end in _blocks(train_rows, rows):
        known = values[since:at][present[since:at]][-_MEMORY_ROWS:]
        if len(known):
            distances[at:end, -1] = np.abs(values[at:end] - np.median(known))
        chosen = since + np.flatnonzero(learn[since:at])[-_MEMORY_ROWS:]
        ratios[at:end] = _judge(distances[chosen], values[chosen], distances[at:end])
        strange[at:end] = ratios[at:end] > 1.0
        learn[at:end] = _learned(present, strange, at, end)
        if present[at:end].any():
            weight = min(1.0, present[at:end].sum() / absorb_rows)
            share += weight * (float(strange[at:end][present[at:end]].mean()) - share)
        if share > _ABSORBED:
            since, share = max(since, end - int(absorb_rows)), 0.0
            learn[since:end], strange[since:end] = present[since:end], False
    return np.where(present, ratios, np.nan)


def _from_level(values: FloatArray, train_rows: int) -> FloatArray:
    """Return the distances of training rows from the median before them ``[rows]``, NaN of others."""
    train = pd.Series(values[:train_rows])
    level = train.shift().expanding().median()
    return np.concatenate(((train - level).abs(), np.full(len(values) - train_rows, np.nan)))


def _judge(past: FloatArray, known: FloatArray, distances: FloatArray) -> FloatArray:
    """Return surprise over its limit ``[rows]`` of distances, by the past ones and values learned."""
    size = float(np.median(np.abs(known))) if len(known) else 0.0
    found = surprises(fit_all(past, size or 1.0), distances)
    given = np.isfinite(found)
    squares = np.where(given, np.minimum(found, _LARGEST) ** 2, 0.0).sum(axis=1)
    return np.asarray(np.sqrt(squares / np.maximum(given.sum(axis=1), 1)) / _LIMIT)


def _learned(
    present: NDArray[np.bool_], strange: NDArray[np.bool_], start: int, end: int
) -> NDArray[np.bool_]:
    """Return which rows from start to end are learned: normal ones, and the first few strange ones."""
    before = max(0, start - _STRANGE_ROWS)
    count = np.concatenate(([0], np.cumsum(strange[before:end])))
    upto = np.arange(start, end) + 1 - before
    lately = count[upto] - count[np.maximum(upto - _STRANGE_ROWS, 0)]
    return np.asarray(present[start:end] & (~strange[start:end] | (lately <= _STRANGE_LEARNED)))


def _blocks(start: int, rows: int) -> list[tuple[int, int]]:
    """Return the first and the end row of blocks that one fit judges."""
    blocks = []
    while start < rows:
        size = max(LEAST_ROWS, int(_BLOCK_SHARE * min(start, _MEMORY_ROWS)))
        blocks.append((start, min(rows, start + size)))
        start += size
    return blocks
