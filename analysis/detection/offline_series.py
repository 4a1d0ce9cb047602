"""Off-line scoring of one metric: unusual for the time, for the level, for the last minutes.

Each row is looked at in six ways (:mod:`analysis.detection.series_views` and the distance from the
level), each distance becomes a surprise by what the metric itself did before
(:mod:`analysis.detection.series_tails`), and the surprises are averaged, the large ones counting more.
Rows that surprise are not learned from, unless nearly all do for days: then they are the new normal.
An event is raised once, at its onset, and again only when it becomes worse than it was; while it lasts
its rows score just below 1, above every normal row.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.detection.contract import FloatArray
from analysis.detection.seasonal_fit import DAY_SECONDS, WEEK_SECONDS
from analysis.detection.series_tails import Tails
from analysis.detection.series_views import views_of

_LIMIT = 5.0
"""Surprise at which a row is an anomaly: that of p = 0.7% on all scales at once."""
_LARGEST = 60.0
_FIRST_ROWS = 50
_TRIMS = 2
_REFIT_SHARE = 0.02
_MEMORY_ROWS = 100_000
_ABSORB_DAYS = 3.0
_ABSORB_ROWS = (500, 20_000)
_ABSORBED = 0.63
"""1 - 1/e: the running share of surprising rows after one absorb time of nothing else."""
_WORSE = 1.05
_FORGET_ROWS = 100.0
"""The worst of an event halves in this many rows: what an event must exceed to be raised again."""


def score_series(times: FloatArray, values: FloatArray, train_rows: int) -> FloatArray:
    """Score one metric row by row.

    Args:
        times: ``[rows]`` seconds since the epoch.
        values: ``[rows]``, NaN where missing.
        train_rows: how many of the first rows give the usual step.

    Returns:
        Scores ``[rows]``: above 1 where an event is raised, 0.5 to 1 while it lasts, else below 0.5; 0
        where the metric is missing.
    """
    step = float(np.median(np.diff(times[:train_rows])))
    views = views_of(times, values, step, (DAY_SECONDS, WEEK_SECONDS))
    absorb = float(np.clip(_ABSORB_DAYS * DAY_SECONDS / step, *_ABSORB_ROWS))
    return once(_surprises(values, views, train_rows, absorb) / _LIMIT)


def _surprises(
    values: FloatArray, views: FloatArray, train_rows: int, absorb_rows: float
) -> FloatArray:
    """Return the fused surprise ``[rows]``, NaN in training rows and where the metric is missing."""
    rows = len(values)
    present = np.isfinite(values)
    distances = np.column_stack((views, _from_level(values, train_rows)))
    fused = np.full(rows, np.nan)
    learn = present.copy()
    # Training rows that would surprise the others are anomalies among them.
    for _ in range(_TRIMS):
        tails = _tails(distances[:train_rows], values[:train_rows], learn[:train_rows])
        learn[:train_rows] &= _fuse(tails.surprise(distances[:train_rows])) <= _LIMIT
    since, strange_share = 0, 0.0
    for at, end in _blocks(train_rows, rows):
        known = values[since:at][present[since:at]][-_MEMORY_ROWS:]
        distances[at:end, -1] = np.abs(values[at:end] - np.median(known))
        tails = _tails(distances[since:at], values[since:at], learn[since:at])
        fused[at:end] = _fuse(tails.surprise(distances[at:end]))
        strange = fused[at:end] > _LIMIT
        learn[at:end] &= ~strange
        now = present[at:end]
        if now.any():
            weight = min(1.0, now.sum() / absorb_rows)
            strange_share += weight * (strange[now].mean() - strange_share)
        if strange_share > _ABSORBED:
            since = max(since, end - int(absorb_rows))
            learn[since:end] = present[since:end]
            strange_share = 0.0
    fused[~present] = np.nan
    return fused


def _from_level(values: FloatArray, train_rows: int) -> FloatArray:
    distance = np.full(len(values), np.nan)
    x = pd.Series(values[:train_rows])
    distance[:train_rows] = (x - x.shift().expanding().median()).abs()
    return distance


def _blocks(start: int, rows: int) -> list[tuple[int, int]]:
    blocks = []
    while start < rows:
        end = min(rows, start + max(_FIRST_ROWS, int(_REFIT_SHARE * min(start, _MEMORY_ROWS))))
        blocks.append((start, end))
        start = end
    return blocks


def _tails(distances: FloatArray, values: FloatArray, learn) -> Tails:
    known = values[learn][-_MEMORY_ROWS:]
    size = float(np.median(np.abs(known))) if len(known) else 1.0
    return Tails.fit(distances[learn][-_MEMORY_ROWS:], size or 1.0)


def _fuse(surprises: FloatArray) -> FloatArray:
    """Return the root mean square of the surprises that there are, NaN for none."""
    known = np.isfinite(surprises)
    squares = np.where(known, np.minimum(surprises, _LARGEST) ** 2, 0.0).sum(axis=1)
    count = known.sum(axis=1)
    return np.asarray(np.where(count > 0, np.sqrt(squares / np.maximum(count, 1)), 0.0))


def once(ratios: FloatArray) -> FloatArray:
    """Return scores ``[rows]`` that exceed 1 where a ratio does so for the first time, or grows again."""
    scores = np.zeros(len(ratios))
    worst, fade = 0.0, 0.5 ** (1.0 / _FORGET_ROWS)
    for row, ratio in enumerate(ratios.tolist()):
        if ratio != ratio:
            continue
        worst *= fade
        if ratio <= 1.0:
            scores[row] = 0.5 * ratio
        elif ratio > _WORSE * worst:
            scores[row] = ratio
        else:
            scores[row] = 1.0 - 0.5 / ratio
        worst = max(worst, ratio)
    return scores
