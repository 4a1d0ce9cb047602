"""Off-line deviations of columns from the nearest level that is usual for them.

A column has two levels: that of training and that of its recent past, the median of about a day. A value
is as strange as its distance from the nearer one. So a shift of level is strange until it has lasted
for half of that window and is normal from then on, the way back is no second event, and slow drift is
followed; an event shorter than half of the window moves neither level.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from analysis.detection.contract import FloatArray
from analysis.detection.seasonal_fit import DAY_SECONDS

BLOCK_ROWS = 50
"""Rows that are judged together, before any of them is learned."""
_LEVEL_ROWS = (1_000, 5_000)
"""Bounds of the window of a day in rows: events have to be shorter than half of it, and its median
costs time."""
_LEAST_SHARE = 0.01
"""A column's spread is at least this share of its range in training: one that rests but for a few
spikes would have next to none."""
_STILL_SHARE = 1e-9
"""Deviations below this share of a level are rounding."""
_STILL_FARTHEST = 10.0
"""A column that never moved in training says that it moved, not how strange that is: it counts as ten
deviations at most, and as fewer the more it has moved since."""
_COMPRESS_ABOVE = 30.0
"""Beyond this many deviations a value counts by its logarithm: spreads are not known well enough to
call 1,000 of them stranger than 100 in proportion."""

_LARGEST = 1e100
"""So that even a value at the end of the floating-point range gives a finite score."""


def blocks(start: int, end: int) -> list[tuple[int, int]]:
    """Return the blocks from ``start`` to before ``end``; the last one may be shorter."""
    return [(at, min(at + BLOCK_ROWS, end)) for at in range(start, end, BLOCK_ROWS)]


@dataclass(frozen=True)
class _Usual:
    """What training says of each column ``[width]``."""

    centre: FloatArray
    spread: FloatArray
    """0 where the column never moved, infinite where it has no value."""

    @classmethod
    def of(cls, train: FloatArray) -> _Usual:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # columns without any value
            centre = np.nanmean(train, axis=0)
            spread = np.nanstd(train, axis=0)
            span = np.nanmax(train, axis=0) - np.nanmin(train, axis=0)
        empty = np.isnan(centre)
        still = span <= _STILL_SHARE * np.abs(centre)
        spread = np.where(still, 0.0, np.maximum(spread, _LEAST_SHARE * span))
        return cls(np.where(empty, 0.0, centre), np.where(empty, np.inf, spread))


def deviations(
    views: FloatArray, train_rows: int, step_seconds: float, memory_rows: float
) -> FloatArray:
    """Return each value's distance from the nearer level in deviations ``[rows, width]``.

    Args:
        views: ``[rows, width]``; NaN where missing, and 0 there in the result.
        train_rows: how many of the first rows give level and spread.
        step_seconds: the usual distance of two rows.
        memory_rows: over how many rows a column that never moved in training learns its spread.
    """
    usual = _Usual.of(views[:train_rows])
    day_rows = float(np.clip(DAY_SECONDS / max(step_seconds, 1e-9), *_LEVEL_ROWS))
    recent = _recent_levels(views, train_rows, round(day_rows / BLOCK_ROWS), usual.centre)
    distance, other = views - usual.centre, views - recent
    distance = np.where(np.abs(other) < np.abs(distance), other, distance)
    distance = np.nan_to_num(distance, nan=0.0)
    still = usual.spread == 0.0
    z = distance / np.where(still, 1.0, usual.spread)
    if still.any():
        small = np.abs(distance[:, still]) <= _STILL_SHARE * np.abs(usual.centre[still])
        moved = np.where(small, 0.0, distance[:, still])
        z[:, still] = _of_still(moved, train_rows, memory_rows)
    size = np.minimum(np.abs(z), _LARGEST)
    far = _COMPRESS_ABOVE * (1.0 + np.log(np.maximum(size, _COMPRESS_ABOVE) / _COMPRESS_ABOVE))
    return np.asarray(np.where(size <= _COMPRESS_ABOVE, z, np.sign(z) * far))


def _recent_levels(
    views: FloatArray, train_rows: int, window_blocks: int, centre: FloatArray
) -> FloatArray:
    """Return each block's median over the medians of the blocks before it, at each of its rows."""
    cuts = blocks(0, train_rows) + blocks(train_rows, len(views))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block without any value of a column
        medians = np.array([_median(views[start:end]) for start, end in cuts])
        before = np.vstack((np.tile(centre, (window_blocks, 1)), medians[:-1]))
        windows = np.lib.stride_tricks.sliding_window_view(before, window_blocks, axis=0)
        levels = np.array([_median(window.T) for window in windows])
    levels = np.where(np.isnan(levels), centre, levels)
    return np.repeat(levels, [end - start for start, end in cuts], axis=0)


def _median(rows: FloatArray) -> FloatArray:
    """Return the medians of the columns; numpy's form for missing values is 20 times slower."""
    if np.isnan(rows).any():
        return np.asarray(np.nanmedian(rows, axis=0))
    return np.asarray(np.median(rows, axis=0))


def _of_still(moved: FloatArray, train_rows: int, memory_rows: float) -> FloatArray:
    """Return deviations of columns that never moved in training, by how far they have strayed since."""
    z, square = np.zeros_like(moved), np.zeros(moved.shape[1])
    for start, end in blocks(train_rows, len(moved)):
        spread = np.sqrt(square)
        largest = np.abs(moved[start:end]) >= _STILL_FARTHEST * spread
        ratio = np.divide(
            moved[start:end], spread, out=np.zeros_like(z[start:end]), where=spread > 0
        )
        z[start:end] = np.where(largest, _STILL_FARTHEST * np.sign(moved[start:end]), ratio)
        weight = 1.0 - np.exp(-(end - start) / memory_rows)
        square += weight * ((moved[start:end] ** 2).mean(axis=0) - square)
    return z
